"""Frames of which each field is a picture, in packets of one field or of both."""

from pathlib import Path

import av
import numpy as np
import pytest

from hiera_video.video.fields import _H264, FieldPairs, Picture, _Bits
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError
from tests.video.field_video import GROUP, codes, make_field_video, shade, unit
from tests.video.striped_video import decode_linearly, make_striped_video

SUFFIXES = ["ts", "m2ts", "mp4", "mov", "mkv"]


def pictures_of(path: Path) -> list[np.ndarray]:
    """The plain decode, whose shades of grey are those that were written."""
    frames = decode_linearly(path)
    for number, frame in enumerate(frames):
        grey = frame.astype(float).mean(-1)
        for is_bottom in (False, True):
            # The macroblock of frame `number` that is coded in all of them.
            block = number % GROUP
            rows, columns = 16 * (block // 4), 16 * (block % 4)
            coded = grey[int(is_bottom) :: 2][rows : rows + 16, columns : columns + 16].mean()
            expected = (shade(number, is_bottom, block) - 16) * 255 / 219
            assert coded == pytest.approx(np.clip(expected, 0, 255), abs=2)
    return frames


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("codec", ["h264", "mpeg2"])
def test_two_fields_are_one_frame(tmp_path, backend, codec, suffix, in_pairs):
    path = make_field_video(tmp_path / f"a.{suffix}", codec=codec, in_pairs=in_pairs)
    expected = pictures_of(path)
    rng = np.random.default_rng(0)
    with open_video(path, backend) as reader:
        assert len(reader) == len(expected) == 24
        for position in rng.permutation(24).tolist():
            assert np.array_equal(reader[position], expected[position])
        for count in (2, 5, 30):  # between which frames are skipped that no other refers to
            indices = rng.integers(0, 24, count)
            assert np.array_equal(reader.frames(indices), [expected[n] for n in indices])
        assert np.allclose(np.diff(reader.frame_times_sec), 0.04, atol=1.1e-3)
        assert reader.end_sec - reader.frame_times_sec[0] == pytest.approx(0.96, abs=2e-3)
        assert reader.damage is None


def test_a_backend_that_gives_other_frames_hands_over(tmp_path):
    """decord gives frames 0, 0 and 8 here, and counts 24."""
    decord = pytest.importorskip("decord")
    path = make_field_video(tmp_path / "a.mkv", codec="mpeg2", in_pairs=True)
    expected = decode_linearly(path)
    alone = decord.VideoReader(str(path), num_threads=1)
    assert len(alone) == 24
    assert not np.array_equal(alone.get_batch([3, 7, 11]).asnumpy()[0], expected[3])
    with open_video(path, "decord") as reader:
        assert np.array_equal(reader.frames([3, 7, 11]), [expected[n] for n in (3, 7, 11)])
        assert reader.backend == "pyav"


def test_fields_of_joined_recordings(tmp_path, backend):
    first = make_field_video(tmp_path / "a.ts").read_bytes()
    second = make_field_video(tmp_path / "b.ts", first=8, in_pairs=True).read_bytes()
    path = tmp_path / "c.ts"
    path.write_bytes(first + second)
    expected = decode_linearly(path)
    with open_video(path, backend) as reader:
        assert len(reader) == len(expected) == 48
        for position in np.random.default_rng(0).permutation(48).tolist():
            assert np.array_equal(reader[position], expected[position])
        assert np.allclose(np.diff(reader.frame_times_sec), 0.04)


@pytest.mark.parametrize("lost", [47, 21, 20, 0])
@pytest.mark.parametrize("suffix", ["ts", "mp4"])
def test_a_field_that_is_missing(tmp_path, backend, suffix, lost):
    """The last one, a second one, a first one, and that of the first key frame."""
    source, path = make_field_video(tmp_path / "a.mov"), tmp_path / f"b.{suffix}"
    with av.open(source) as container, av.open(path, "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(p for p in container.demux(video=0) if p.size):
            if number != lost:
                packet.stream = stream
                out.mux(packet)
    expected = decode_linearly(path)
    assert len(expected) in (16, 22, 23)
    with open_video(path, backend) as reader:
        assert len(reader) == len(expected)
        for position in np.random.default_rng(0).permutation(len(expected)).tolist():
            assert np.array_equal(reader[position], expected[position])


@pytest.mark.parametrize("number", [22, 23])
def test_damage_to_either_field(tmp_path, backend, number):
    """The packet of a field of a frame to which others refer, of H.264."""
    path = make_field_video(tmp_path / "a.mp4")
    clean = pictures_of(path)
    with av.open(path) as container:
        hit = [packet for packet in container.demux(video=0) if packet.size][number]
    data = bytearray(path.read_bytes())
    data[hit.pos + 10 : hit.pos + 60] = bytes(50)  # the header of its slice, and what follows
    path.write_bytes(data)
    with open_video(path, backend) as reader:
        letters = ""
        for position in range(len(reader)):
            try:
                frame = reader[position]
            except VideoError:
                letters += "."
            else:
                letters += "=" if any(np.array_equal(frame, other) for other in clean) else "X"
        assert "X" not in letters
        assert "." in letters[8:-8]
        assert letters[:8] + letters[-8:] == 16 * "="


def test_headers_are_read_only_where_there_may_be_fields(tmp_path, monkeypatch):
    """A stream whose parameters say that all pictures are frames: key frames, which may change
    them, are looked at."""
    path = make_striped_video(tmp_path / "a.mp4", 30, options={"g": "10"})
    looked_at = []
    units = _H264._units
    monkeypatch.setattr(_H264, "_units", lambda *args: looked_at.append(0) or units(*args))
    with open_video(path) as reader:
        assert len(reader) == 30
    assert len(looked_at) < 8


def test_interlaced_frames_are_frames(tmp_path, backend):
    """Pictures that could be fields, and are frames of two fields (MBAFF)."""
    options = {"x264-params": "interlaced=1:keyint=10"}
    path = make_striped_video(tmp_path / "a.ts", 20, (64, 96), options=options)
    expected = decode_linearly(path)
    with av.open(path) as container:
        stream = container.streams.video[0]
        pairs = FieldPairs(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [pairs.completes(packet) for packet in packets] == [False] * 20
        assert all([p.structure for p in pairs.pictures(packet)] == [0] for packet in packets)
    with open_video(path, backend) as reader:
        assert np.array_equal(reader.frames(range(20)), expected)


def test_numbers_of_variable_length():
    """ue(v) and se(v), Rec. ITU-T H.264, tables 9-2 and 9-3; zeros follow the data."""
    bits = _Bits(bytes([0b10100110, 0b01000010, 0b10000000]))
    assert [bits.unsigned() for _ in range(5)] == [0, 1, 2, 3, 4]
    bits = _Bits(bytes([0b10100110, 0b01000010, 0b10000000]))
    assert [bits.signed() for _ in range(5)] == [0, 1, -1, 2, -2]
    assert bits.take(40) == 0
    assert bits.unsigned() >= 2**31


def test_parameter_sets_are_known_by_their_numbers():
    """Picture parameter set 2 of sequence parameter set 1, which allows fields; 5 bits of
    frame_num. Set 0 allows none."""
    fields = unit(
        0x67,
        format(77, "08b")
        + "0" * 8
        + format(30, "08b")
        + codes(1, 1, 2, 1)
        + "0"
        + codes(3, 1)
        + "0",
    )
    frames = unit(
        0x67,
        format(77, "08b")
        + "0" * 8
        + format(30, "08b")
        + codes(0, 0, 2, 1)
        + "0"
        + codes(3, 1)
        + "1",
    )
    sets = fields + frames + unit(0x68, codes(2, 1)) + unit(0x68, codes(0, 0))
    second = unit(0x41, codes(0, 5, 2) + format(19, "05b") + "11")
    frame = unit(0x41, codes(0, 5, 0) + format(9, "04b") + "0" * 9)
    reader = _H264(sets)
    assert reader.pictures(av.Packet(second)) == [Picture(19, 2)]
    assert reader.pictures(av.Packet(frame)) == [Picture(9, 0)]


def test_high_profile_with_scaling_lists(tmp_path):
    """Headers that have as many parts as they can; the decoder agrees on what pictures are."""
    options = {"x264-params": "interlaced=1:cqm=jvt:keyint=5:slices=3", "profile": "high"}
    path = make_striped_video(tmp_path / "a.mp4", 10, options=options)
    with av.open(path) as container:
        stream = container.streams.video[0]
        reader = _H264(stream.codec_context.extradata)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert all([p.structure for p in reader.pictures(packet)] == [0] for packet in packets)


def test_any_bytes_are_read():
    rng = np.random.default_rng(0)
    for head in (b"", b"\x01", b"\x01\x4d\x00\x1e\xff\xe1", b"\0\0\1\x67\x64", b"\0\0\1\x67\x4d"):
        for size in (0, 1, 5, 40):
            reader = _H264(head + rng.bytes(size))
            for code in (b"\0\0\1\x67", b"\0\0\1\x68", b"\0\0\1\x65", b"\0\0\0\x09\x41", b""):
                packet = av.Packet(code + rng.bytes(30))
                packet.is_keyframe = True
                assert all(isinstance(picture, Picture) for picture in reader.pictures(packet))
