"""Interlaced videos whose frames are coded as two pictures, one for each field.

No encoder of FFmpeg writes them. These are the simplest that are valid: 64 x 64 pixels in
macroblocks of one shade, which H.264 may copy from an earlier field.
"""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

TIME_BASE = Fraction(1, 90_000)
FIELD_TICKS = 1800  # 1/50 s
GROUP = 8  # frames from one key frame to the next
ORDER = (0, 2, 1, 4, 3, 6, 5, 7)  # of decoding; no other frame refers to 1, 3 and 5
FRAME_NUMS = (0, 1, 2, 2, 3, 3, 4, 4)  # of H.264, in that order
# Codes of the numbers of bits of luma DC coefficients (Rec. ITU-T H.262, table B.12).
LUMA_SIZES = ["100", "00", "01", "101", "110", "1110", "11110", "111110", "1111110"]


def shade(frame: int, is_bottom: bool, block: int) -> int:
    return 20 + (37 * frame + 11 * is_bottom + 29 * block) % 210


def codes(*values: int) -> str:
    """Exp-Golomb codes, ue(v) of Rec. ITU-T H.264, section 9.1."""
    texts = [format(value + 1, "b") for value in values]
    return "".join("0" * (len(text) - 1) + text for text in texts)


def aligned(bits: str) -> str:
    return bits + "0" * (-len(bits) % 8)


def to_bytes(bits: str) -> bytes:
    return int(aligned(bits), 2).to_bytes(len(aligned(bits)) // 8)


def unit(head: int, bits: str) -> bytes:
    """A NAL unit of H.264 with a start code, which may not occur in it."""
    body = bytearray()
    for byte in to_bytes(bits + "1"):
        if body[-2:] == b"\0\0" and byte <= 3:
            body.append(3)
        body.append(byte)
    return b"\0\0\0\1" + bytes([head]) + bytes(body)


def h264_parameters() -> bytes:
    sequence = format(77, "08b") + "0" * 8 + format(30, "08b")  # main profile, level 3
    sequence += codes(0, 0, 0, 4, 3)  # 4 bits of frame_num, 8 of pic_order_cnt_lsb, 3 references
    sequence += "0" + codes(3, 1)  # 4 macroblocks wide, 2 high in each field
    sequence += "00101" + "0" * 8 + "11"  # pictures may be fields; the order is restricted
    sequence += codes(0, 0, 10, 10, 1, 3)  # 1 frame is decoded before one and shown after it
    picture = codes(0, 0) + "00" + codes(0, 0, 0) + "000" + codes(0, 0, 0) + "100"
    return unit(0x67, sequence) + unit(0x68, picture)


def h264_field(number: int, is_bottom: bool) -> tuple[int, bytes]:
    """Field of frame `number` in decoding order: its frame in presentation order, and its code.

    All macroblocks of key frames are coded. Of others one is, and the rest is copied.
    """
    place = ORDER[number % GROUP]
    frame = number - number % GROUP + place
    is_key, is_idr, is_referred = place == 0, place == 0 and not is_bottom, place not in (1, 3, 5)
    bits = codes(0, 7 if is_key else 5, 0) + format(FRAME_NUMS[number % GROUP], "04b")
    bits += "1" + "01"[is_bottom] + (codes(number // GROUP % 2) if is_idr else "")
    bits += format(2 * place + is_bottom, "08b") + ("" if is_key else "00")
    bits += ("00" if is_idr else "0") if is_referred else ""
    bits += codes(0, 1)  # no change of the quantiser, no deblocking
    for block in range(8):
        if is_key or block == place:
            coded = codes(25) if is_key else codes(place, 30)
            shades = format(shade(frame, is_bottom, block), "08b") * 256 + format(128, "08b") * 128
            bits = aligned(bits + coded) + shades
    if not is_key and place < 7:
        bits += codes(7 - place)
    head = 0x65 if is_idr else 0x61 if is_referred else 0x01
    delimiter = b"\0\0\0\1\x09\xf0"
    return frame, delimiter + (h264_parameters() if is_idr else b"") + unit(head, bits)


def mpeg2_field(number: int, is_bottom: bool) -> tuple[int, bytes]:
    """The same for MPEG-2, without reordering; all macroblocks are coded by their mean."""
    data, place = b"", number % GROUP
    if place == 0 and not is_bottom:
        sequence = format(64, "012b") * 2 + "00010011" + "1" * 19 + "0" * 13
        extension = "0001" + "01001000" + "001" + "0" * 16 + "1" + "0" * 8 + "1" + "0" * 7
        group = "0" * 12 + "1" + "0" * 12 + "10"
        data = b"\0\0\1\xb3" + to_bytes(sequence) + b"\0\0\1\xb5" + to_bytes(extension)
        data += b"\0\0\1\xb8" + to_bytes(group)
    picture = format(place, "010b") + "001" + "1" * 16 + "0"
    coding = "1000" + "1" * 16 + "00" + ("10" if is_bottom else "01") + "0" * 10
    data += b"\0\0\1\0" + to_bytes(picture) + b"\0\0\1\xb5" + to_bytes(coding)
    for row in range(2):
        bits, before = "000010", 128
        for block in range(4 * row, 4 * row + 4):
            bits += "11"
            for _ in range(4):
                step = shade(number, is_bottom, block) - before
                size = abs(step).bit_length()
                bits += LUMA_SIZES[size]
                bits += format(step if step > 0 else step + 2**size - 1, f"0{size}b") * (size > 0)
                bits += "10"
                before += step
            bits += "0010" * 2
        data += b"\0\0\1" + bytes([row + 1]) + to_bytes(bits)
    return number, data


def make_field_video(
    path: Path, num_frames: int = 24, *, codec: str = "h264", in_pairs: bool = False, first: int = 0
) -> Path:
    """Writes such a video; the container follows from the suffix.

    Args:
        in_pairs: both fields of a frame are in one packet.
        first: the number of the first frame, on which its shades depend; a multiple of `GROUP`.
    """
    write = h264_field if codec == "h264" else mpeg2_field
    delay = 2 * FIELD_TICKS if codec == "h264" else 0
    fields: list[tuple[int, int, bytes]] = []  # time of presentation, of decoding, code
    for number in range(num_frames):
        for is_bottom in (False, True):
            frame, data = write(first + number, is_bottom)
            ticks = FIELD_TICKS * (2 * (frame - first) + is_bottom)
            fields.append((ticks + delay, FIELD_TICKS * (2 * number + is_bottom), data))
    packets: Sequence[tuple[int, int, bytes]] = fields
    if in_pairs:
        pairs = zip(fields[::2], fields[1::2], strict=True)
        packets = [(pts, dts, data + other) for (pts, dts, data), (*_, other) in pairs]
    raw = io.BytesIO(b"".join(data for *_, data in fields))
    with (
        av.open(raw, format="h264" if codec == "h264" else "mpegvideo") as source,
        av.open(str(path), "w") as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = TIME_BASE
        for number, (pts, dts, data) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, TIME_BASE
            packet.pts, packet.dts = pts, dts
            packet.duration = FIELD_TICKS * (2 if in_pairs else 1)
            packet.is_keyframe = number % (GROUP if in_pairs else 2 * GROUP) == 0
            container.mux(packet)
    return path
