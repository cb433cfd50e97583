"""A frame equals that of the undamaged file, or is an error, and damage that is known is stated."""

import contextlib
import itertools
import logging
import os
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import av
import av.logging
import numpy as np
import pytest
from PIL import Image

from hiera_video.video import decoder
from hiera_video.video.decoder import Decoder
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError, warn_once
from tests.video.striped_video import decode_linearly, make_striped_video, read_number

H264 = {"g": "25", "bf": "2", "sc_threshold": "0", "crf": "24"}


@pytest.fixture(autouse=True)
def fresh_warnings():
    warn_once.cache_clear()


def make_noisy_video(
    path: Path, num_frames: int, codec: str = "libx264", options: dict[str, str] | None = None
) -> Path:
    """Moving noise, 128 x 192, so that packets are large."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (16, 24, 3)).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = 128, 192, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(num_frames):
            moved = np.roll(texture, (2 * number, 3 * number), (0, 1))
            noisy = np.clip(moved + rng.integers(-20, 20, moved.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def one_by_one(path: Path, backend: str = "pyav") -> tuple[list[np.ndarray | None], str | None]:
    """All frames, read one by one and not in their order, None for an error; and `damage`."""
    with open_video(path, backend) as reader:
        frames: list[np.ndarray | None] = [None] * len(reader)
        causes = set()
        for position in sorted(range(len(reader)), key=lambda i: (i * 7) % len(reader)):
            try:
                frames[position] = reader.frames([position])[0]
            except VideoError as error:
                causes.add(error.cause)
        assert causes <= {"truncated"}
        return frames, reader.damage


def compare(damaged: list[np.ndarray | None], clean: list[np.ndarray | None]) -> str:
    """A letter for each frame: `=` as in the clean file, `.` an error, `X` another picture."""
    pairs = zip(damaged, clean, strict=True)
    return "".join("." if d is None else "=" if np.array_equal(d, c) else "X" for d, c in pairs)


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(path) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def num_flagged(path: Path) -> int:
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(frame.is_corrupt for frame in container.decode(video=0))


def overwrite(path: Path, begin: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[begin : begin + len(new)] = new
    path.write_bytes(data)


def test_lost_packets_of_a_transport_stream(tmp_path, backend):
    path = make_noisy_video(tmp_path / "a.ts", 75, options=H264)
    clean, damage = one_by_one(path)
    assert damage is None
    data = path.read_bytes()
    blocks = [data[i : i + 188] for i in range(0, len(data), 188)]
    starts = [i for i, b in enumerate(blocks) if b[1] & 0x40 and (b[1] & 0x1F, b[2]) == (1, 0)]
    first = starts[25]  # the second key frame, after 25 packets
    assert starts[26] > first + 6
    path.write_bytes(b"".join(blocks[: first + 2] + blocks[first + 6 :]))
    frames, damage = one_by_one(path, backend)
    assert compare(frames, clean) == 25 * "=" + 25 * "." + 25 * "="
    assert " not whole" in damage


@pytest.mark.parametrize("number", [3, 53])
def test_overwritten_bytes_of_h264(tmp_path, backend, number):
    """Bytes in the middle of a packet, whose frame FFmpeg flags when it returns it."""
    path = make_noisy_video(tmp_path / "a.mp4", 75, options=H264)
    clean, _ = one_by_one(path)
    hit, data, seed = packets_of(path)[number], path.read_bytes(), 0
    while not num_flagged(path):  # other bytes may be as valid
        path.write_bytes(data)
        overwrite(path, hit.pos + hit.size // 4, np.random.default_rng(seed).bytes(200))
        seed += 1
    letters = compare(one_by_one(path, backend)[0], clean)
    assert "X" not in letters
    group = number // 25
    assert "." in letters[25 * group :]
    assert set(letters[: 25 * group] + letters[25 * (group + 1) :]) == {"="}


def test_a_frame_that_is_missing_from_the_file(tmp_path, backend):
    """FFmpeg states it as an error only for frames that sparse reads skip."""
    source = make_noisy_video(tmp_path / "a.mp4", 75, options=H264 | {"bf": "3"})
    clean, _ = one_by_one(source)
    lost = 26  # the first P-frame of the second group
    path = tmp_path / "b.mkv"
    with av.open(source) as container, av.open(path, "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(p for p in container.demux(video=0) if p.size):
            if number != lost:
                packet.stream = stream
                out.mux(packet)
    with open_video(path, backend) as reader:
        assert len(reader) == 74
        for sparse in ([26, 40], [40, 44, 48], [46], [30, 49, 60]):
            with pytest.raises(VideoError):
                reader.frames(sparse)
        assert np.array_equal(reader.frames([3, 60]), [clean[3], clean[61]])


def test_a_damaged_frame_of_an_avi_keeps_its_place(tmp_path, backend):
    """AVI has no presentation times: the order of frames is that of the decoder."""
    options = {"g": "12", "bf": "2"}
    path = make_noisy_video(tmp_path / "a.avi", 48, "mpeg4", options)
    clean, damage = one_by_one(path)
    assert damage is None
    hit = packets_of(path)[16]
    overwrite(path, hit.pos + 40, bytes(400))
    frames, damage = one_by_one(path, backend)
    letters = compare(frames, clean)
    assert "X" not in letters
    assert letters[:10] + letters[24:] == 34 * "="
    assert "." in letters
    assert "do not decode" in damage


def test_what_libav_logs_as_an_error_is_damage(tmp_path):
    """The JPEG decoder flags nothing, and leaves old pixels where it failed."""
    path = make_striped_video(tmp_path / "a.avi", 20, codec="mjpeg", pix_fmt="yuvj420p")
    clean, _ = one_by_one(path)
    hit = packets_of(path)[8]
    overwrite(path, hit.pos + hit.size * 2 // 3, np.random.default_rng(2).bytes(60))
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    frames, _ = one_by_one(path)
    assert compare(frames, clean) == 8 * "=" + "." + 11 * "="
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


@pytest.mark.parametrize(
    ("level", "message", "is_damage"),
    [
        (av.logging.ERROR, "error while decoding MB 3 4", True),
        (av.logging.ERROR, "SEI type 5 size 2208 truncated at 32", False),
        (av.logging.WARNING, "Skipping invalid undecodable NALU: 1", True),
        (av.logging.INFO, "Skipping NAL unit 62", False),  # seen where the user asks for more
        (av.logging.WARNING, "EOI missing, emulating", False),
    ],
)
def test_which_messages_state_damage(level, message, is_damage):
    assert decoder._states_damage((level, "h264", message)) == is_damage


def test_libav_stays_silent_elsewhere(tmp_path, capfd, caplog):
    """While a damaged file is read, in this thread and another one, nothing else is logged."""
    path = make_noisy_video(tmp_path / "a.mp4", 50, options=H264)
    hit = packets_of(path)[5]
    overwrite(path, hit.pos + hit.size // 4, bytes(200))
    threads = [threading.Thread(target=one_by_one, args=(path,)) for _ in range(2)]
    with caplog.at_level(logging.DEBUG):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not [record for record in caplog.records if record.name.startswith("libav")]
    assert capfd.readouterr() == ("", "")
    assert av.logging.get_level() is None


def test_a_seek_that_lands_elsewhere_is_noticed(tmp_path, backend):
    """An AVI that lost a chunk which its index still counts: after it, time stamps differ."""
    path = make_striped_video(tmp_path / "a.avi", 30, codec="mpeg4", options={"g": "6"})
    overwrite(path, packets_of(path)[13].pos - 8, bytes(8))  # the header of the chunk
    with av.open(path) as container:
        numbers = [read_number(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert len(numbers) == 29
    with open_video(path, backend) as reader:
        assert reader.damage == "is damaged: announces 30 frames and holds 29"
        for position in (28, 19, 14, 3):
            assert read_number(reader.frames([position])[0]) == numbers[position]


def test_a_second_read_does_not_make_the_first_one_forget_damage(tmp_path):
    path = make_noisy_video(tmp_path / "a.mp4", 50, options=H264)
    clean, _ = one_by_one(path)
    hit = packets_of(path)[46]
    overwrite(path, hit.pos + hit.size // 4, np.random.default_rng(0).bytes(200))
    for pause in range(40, 50):
        with open_video(path) as reader:
            returned = []
            with contextlib.suppress(VideoError, ValueError):
                for position, frame in reader.stream(range(25, 50)):
                    returned.append(np.array_equal(frame, clean[position]))
                    if position == pause:
                        reader.frames([0])
            assert all(returned)


def test_few_frames_wait_for_a_lost_one(tmp_path, monkeypatch):
    """A packet that does not decode, whose time stamp is later than all others."""
    source = make_striped_video(tmp_path / "a.mkv", 200, codec="mpeg4", options={"g": "12"})
    path = tmp_path / "b.mkv"
    with av.open(source) as clean, av.open(path, "w") as damaged:
        stream = damaged.add_stream_from_template(clean.streams.video[0])
        for number, packet in enumerate(packets_of(source)):
            written = av.Packet(bytes(20) if number == 5 else bytes(packet))
            written.time_base, written.is_keyframe = packet.time_base, packet.is_keyframe
            written.dts, written.pts = packet.dts, packet.pts + (10**6 if number == 5 else 0)
            written.stream = stream
            damaged.mux(written)
    decoded = []
    decode = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda *args: decoded.append(args[1]) or decode(*args))
    with open_video(path) as reader:
        for position, _ in reader.stream(range(12, 150)):
            assert decoded[-1] - position < 50


def test_fields_in_packets_of_their_own(backend):
    """Three frames of H.264, each coded as two fields, which the parser does not join."""
    path = Path(__file__).with_name("fields.ts")
    assert len(packets_of(path)) == 6
    frames, damage = one_by_one(path, backend)
    assert compare(frames, decode_linearly(path)) == "==="
    assert damage is None


# Whether the end is missing


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.flv", "a.mp4", "a.avi"])
def test_files_that_were_cut_say_so_and_whole_ones_do_not(tmp_path, name):
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(name[2:], "libx264")
    faststart = {"movflags": "+faststart"} if name == "a.mp4" else {}
    path = make_striped_video(tmp_path / name, 60, codec=codec, container_options=faststart)
    with open_video(path) as reader:
        assert reader.damage is None
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with open_video(path) as reader:
        assert 5 < len(reader) < 50
        assert "announces" in reader.damage
        assert "holds" in reader.damage


@pytest.mark.parametrize(("name", "codec"), [("a.flv", "flv"), ("a.wmv", "wmv2")])
def test_a_single_frame_without_a_duration_is_no_damage(tmp_path, name, codec):
    with open_video(make_striped_video(tmp_path / name, 1, codec=codec)) as reader:
        assert (len(reader), reader.damage) == (1, None)


def test_one_frame_less_than_announced_is_noticed_in_avi_and_mp4(tmp_path):
    path = make_striped_video(tmp_path / "a.avi", 30, codec="mpeg4")
    frames = path.read_bytes().index(b"strh") + 8 + 32
    overwrite(path, frames, struct.pack("<I", 31))
    with open_video(path) as reader:
        assert reader.damage == "is damaged: announces 31 frames and holds 30"


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
def test_empty_chunks_of_an_avi_are_no_damage(tmp_path, codec):
    """Where nothing changes, AVI holds empty chunks, which its header counts."""
    pts = [40 * i for i in range(20)] + [40 * i for i in range(30, 50)]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = make_striped_video(tmp_path / "a.avi", 40, codec=codec, pix_fmt=pix_fmt, pts=pts)
    with av.open(path) as container:
        assert container.streams.video[0].frames > 40
    with open_video(path) as reader:
        assert (len(reader), reader.damage) == (40, None)


def test_frames_that_an_edit_list_leaves_out_are_no_damage(tmp_path):
    path = make_striped_video(tmp_path / "a.mp4", 100, options={"g": "10", "bf": "0"})
    data = path.read_bytes()
    entry = data.index(b"elst") + 12  # after version, flags and the number of entries
    duration = struct.unpack(">I", data[entry : entry + 4])[0]
    overwrite(path, entry, struct.pack(">I", duration * 3 // 4))
    with av.open(path) as container:
        assert container.streams.video[0].frames == 100
    with open_video(path) as reader:
        assert len(reader) < 80
        assert reader.damage is None


def make_long_sound(path: Path) -> Path:
    """25 frames, and sound of 48 packets that lasts three times as long."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for _ in range(25):
            container.mux(video.encode(av.VideoFrame(96, 64, "yuv420p")))
        container.mux(video.encode(None))
        for _ in range(48):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate = 16000
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def test_sound_that_is_longer_than_the_pictures_is_no_damage(tmp_path):
    with open_video(make_long_sound(tmp_path / "a.mkv")) as reader:
        assert (len(reader), reader.damage) == (25, None)


def test_the_search_for_the_end_has_a_deadline(tmp_path, monkeypatch):
    path = make_long_sound(tmp_path / "a.mkv")
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(seconds))  # of the reader, not of PyAV
    monkeypatch.setattr("hiera_video.video.reader.time", clock)
    with pytest.raises(VideoError, match="did not end within deadline_sec=40") as caught:
        open_video(path, deadline_sec=40)  # of 25 packets, and of all 74
    assert caught.value.cause == "timeout"


# Files that change, and files that are too large


@pytest.mark.parametrize("how", ["frames", "stream", "close"])
def test_a_file_that_is_overwritten_is_an_error(tmp_path, backend, how):
    path = make_striped_video(tmp_path / "a.mp4", 30)
    other = make_striped_video(tmp_path / "b.mp4", 40).read_bytes()
    reader = open_video(path, backend)
    reader.frames([3])
    path.write_bytes(other)
    read = {
        "frames": lambda: reader.frames([9]),
        "stream": lambda: list(reader.stream([9])),
        "close": lambda: reader.__exit__(None, None, None),
    }
    with pytest.raises(VideoError, match="was changed") as caught:
        read[how]()
    assert caught.value.cause == "changed"


def test_an_error_of_the_block_is_not_replaced(tmp_path):
    path = make_striped_video(tmp_path / "a.mp4", 30)
    reader = open_video(path)
    path.unlink()
    with pytest.raises(KeyError), reader:
        raise KeyError


def test_frames_with_too_many_pixels(tmp_path, backend):
    big = make_striped_video(tmp_path / "big.mp4", 3, (64, 96))
    with pytest.raises(VideoError, match="96 x 64 pixels; max_frame_pixels=6000") as caught:
        open_video(big, backend, max_frame_pixels=6000)
    assert caught.value.cause == "too_large"
    assert "data.max_frame_pixels" in str(caught.value)
    with open_video(big, backend, max_frame_pixels=6144) as reader:
        assert len(reader) == 3
    Image.new("1", (30_000_000, 1)).save(tmp_path / "strip.png")
    Image.new("L", (16_200, 16_200)).save(tmp_path / "large.png")
    for name in ("strip.png", "large.png"):
        with pytest.raises(VideoError, match="max_frame_pixels") as caught:
            open_video(tmp_path / name, backend)
        assert caught.value.cause == "too_large"
    (tmp_path / "frames").mkdir()
    os.link(tmp_path / "strip.png", tmp_path / "frames" / "0001.png")
    with open_video(tmp_path / "frames", frames_fps=25) as reader, pytest.raises(VideoError):
        reader.frames([0])


def test_a_read_of_too_many_bytes(tmp_path, backend):
    path = make_striped_video(tmp_path / "a.mp4", 30)
    limit = 10.5 * 64 * 96 * 3 / 2**30
    with open_video(path, backend, max_read_gib=limit) as reader:
        assert len(reader.frames(range(10))) == 10
        with pytest.raises(VideoError, match=r"data\.max_read_gib in commands") as caught:
            reader.frames([0] * 11)
        assert caught.value.cause == "too_large"
        assert len(list(reader.stream(range(30)))) == 30  # one frame at a time
