"""Which packets hold the second field of a frame, from the headers of H.264 and MPEG-2 pictures.

Interlaced video may code the two fields of a frame as two pictures. A packet then holds both of
them or one, whatever the container: camcorders and broadcasts have either.
"""

from collections.abc import Iterator
from typing import NamedTuple

import av
from av.video.stream import VideoStream

FRAME = 0  # structure of a picture that is not a field
# Values of profile_idc whose sequence parameter sets state a chroma format.
WITH_CHROMA_FORMAT = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
# Values of nal_unit_type, table 7-1.
SLICES, SEQUENCE, PARAMETER_SETS = frozenset({1, 5}), 7, frozenset({7, 8})
HEADER_BYTES = 1024  # of a unit, which hold all that is read of it


class Picture(NamedTuple):
    """A coded picture. The fields of a frame have the same number and different structures."""

    number: int  # modulo some power of 2
    structure: int


class FieldPairs:
    """Follows the packets of a stream in decoding order.

    Attributes:
        may_follow: whether pictures may be fields. If not, `completes` needs to see key frames
            only, with which that may change.
        num_single: fields whose other field does not follow; decoders may not show them.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.num_single = 0
        self._first: Picture | None = None  # a field whose other one may follow
        context = stream.codec_context
        self._h264 = _H264(context.extradata or b"") if context.name == "h264" else None
        self.may_follow = self._h264.has_fields if self._h264 else context.name == "mpeg2video"

    def pictures(self, packet: av.Packet) -> list[Picture]:
        """The pictures of a packet; none where the stream has frames only."""
        if self._h264 is None:
            return _mpeg2_pictures(packet) if self.may_follow else []
        pictures = self._h264.pictures(packet)
        self.may_follow = self._h264.has_fields
        return pictures

    def completes(self, packet: av.Packet) -> bool:
        """Whether a packet holds the other field of the frame that the packet before it began."""
        pictures, first = self.pictures(packet), self._first
        field = pictures[0] if len(pictures) == 1 and pictures[0].structure != FRAME else None
        if field and first and field.number == first.number and field != first:
            self._first = None
            return True
        self.num_single += first is not None
        self._first = field
        return False

    def end(self) -> None:
        """Counts a field after which no packet follows."""
        self.num_single += self._first is not None
        self._first = None


class _Bits:
    """Reads bits from the left; zeros follow the last one."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & (1 << count) - 1 if self._left >= 0 else 0

    def unsigned(self) -> int:
        """ue(v) of H.264, section 9.1."""
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """se(v) of H.264, section 9.1.1."""
        number = self.unsigned()
        return (number + 1) // 2 if number % 2 else -number // 2


class _H264:
    """The pictures of H.264. Numbered sections are those of Rec. ITU-T H.264."""

    def __init__(self, extradata: bytes) -> None:
        # Sequence parameter set -> whether pictures may be fields, bits before and of frame_num.
        self._sequences: dict[int, tuple[bool, int, int]] = {}
        self._sequence_of: dict[int, int] = {}  # picture parameter set -> sequence parameter set
        self.has_fields = False  # whether any sequence may have some
        self._latest: dict[int, bytes] = {}  # parameter set by kind; key frames repeat them
        self._length_bytes = 0  # of the length before a unit. 0: start codes
        if extradata[:1] == b"\x01" and len(extradata) > 6:  # ISO/IEC 14496-15, section 5.3.3.1
            self._length_bytes = 2
            place = 5
            for mask in (0x1F, 0xFF):
                count = extradata[place] & mask if place < len(extradata) else 0
                sets = list(self._units(extradata[place + 1 :]))[:count]
                place += 1 + sum(2 + len(unit) for unit in sets)
                for unit in sets:
                    self._note(unit)
            self._length_bytes = 1 + (extradata[4] & 3)
        else:
            for unit in self._units(extradata):
                self._note(unit)

    def pictures(self, packet: av.Packet) -> list[Picture]:
        """The pictures of a packet; none where the stream has frames only."""
        found: list[Picture] = []
        for unit in self._units(bytes(packet)):
            if unit[:1] and unit[0] & 0x1F in SLICES:
                picture = self._picture(unit) if self.has_fields else None
                if picture is not None and picture not in found[-1:]:
                    found.append(picture)
                if picture is None or picture.structure == FRAME:
                    break
            else:
                self._note(unit)
        return found

    def _units(self, data: bytes) -> Iterator[bytes]:
        """The beginnings of the NAL units, section 7.3.1 and annex B."""
        size, place = self._length_bytes, 0
        if size:
            while place < len(data):
                begin, length = place + size, int.from_bytes(data[place : place + size])
                yield data[begin : begin + min(length, HEADER_BYTES)]
                place = begin + length
        else:
            place = data.find(b"\0\0\1")
            while place >= 0:
                begin, end = place + 3, place + 3 + HEADER_BYTES
                place = data.find(b"\0\0\1", begin, end)
                yield data[begin : end if place < 0 else place]
                place = data.find(b"\0\0\1", begin) if place < 0 else place

    def _picture(self, unit: bytes) -> Picture | None:
        """The picture of a slice, by the slice header (section 7.3.3); None if it is unknown."""
        bits = _bits_of(unit[:32])
        bits.unsigned()  # first_mb_in_slice
        bits.unsigned()  # slice_type
        sequence = self._sequences.get(self._sequence_of.get(bits.unsigned(), -1))
        if sequence is None:
            return None
        may_be_field, skipped, length = sequence
        bits.take(skipped)
        number = bits.take(length)
        is_field = may_be_field and bits.take(1)
        return Picture(number, 1 + bits.take(1) if is_field else FRAME)

    def _note(self, unit: bytes) -> None:
        """Remembers what a parameter set states; ignores other units."""
        kind = unit[0] & 0x1F if unit else 0
        if kind not in PARAMETER_SETS or self._latest.get(kind) == unit:
            return
        self._latest[kind] = unit
        bits = _bits_of(unit)
        if kind == SEQUENCE:
            self._note_sequence(bits)
        else:
            identity = bits.unsigned()
            self._sequence_of[identity] = bits.unsigned()

    def _note_sequence(self, bits: _Bits) -> None:
        """Sequence parameter set, section 7.3.2.1.1."""
        profile = bits.take(24) >> 16
        identity, skipped = bits.unsigned(), 0
        if profile in WITH_CHROMA_FORMAT:
            chroma_format = bits.unsigned()
            skipped = 2 * bits.take(1) if chroma_format == 3 else 0  # colour_plane_id
            bits.unsigned(), bits.unsigned(), bits.take(1)  # bit depths, transform bypass
            if bits.take(1):
                for number in range(12 if chroma_format == 3 else 8):
                    if bits.take(1):
                        _skip_scaling_list(bits, 16 if number < 6 else 64)
        length = 4 + bits.unsigned()
        order_type = bits.unsigned()
        if order_type == 0:
            bits.unsigned()
        elif order_type == 1:
            bits.take(1), bits.unsigned(), bits.unsigned()
            for _ in range(min(bits.unsigned(), 255)):
                bits.unsigned()
        bits.unsigned(), bits.take(1)  # reference frames, gaps
        bits.unsigned(), bits.unsigned()  # width, height
        may_be_field = not bits.take(1)
        self._sequences[identity] = may_be_field, skipped, length
        self.has_fields |= may_be_field


def _bits_of(unit: bytes) -> _Bits:
    """What follows the type of a NAL unit, without emulation prevention (section 7.4.1)."""
    return _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """Section 7.3.2.1.1.1."""
    scale = 8
    for _ in range(size):
        scale = (scale + bits.signed()) % 256
        if scale == 0:  # the rest is not coded
            return


def _mpeg2_pictures(packet: av.Packet) -> list[Picture]:
    """The pictures of MPEG-2, Rec. ITU-T H.262, sections 6.2.3 and 6.2.3.1."""
    data, number, found = bytes(packet), 0, list[Picture]()
    place = data.find(b"\0\0\1")
    while place >= 0:
        code, body = data[place + 3 : place + 4], data[place + 4 : place + 7]
        if code == b"\0" and len(body) == 3:  # picture header: temporal_reference
            number = int.from_bytes(body) >> 14
        elif code == b"\xb5" and len(body) == 3 and body[0] >> 4 == 8:  # coding extension
            structure = body[2] & 3  # top field, bottom field, frame
            found.append(Picture(number, FRAME if structure == 3 else structure))
            if structure == 3:
                break
        place = data.find(b"\0\0\1", place + 3)
    return found
