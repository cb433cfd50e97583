"""Joined recordings, clocks that were set back, and clocks that jump forward."""

import logging
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from hiera_video.video.clock import (
    Fall,
    evened,
    find_falls,
    fits_b_frames,
    jumps_within_groups,
    placed,
    unwrapped,
    without_gaps,
)
from hiera_video.video.open import open_video
from hiera_video.video.packets import _is_hidden
from hiera_video.video.reader import warn_once
from tests.video.field_video import make_field_video
from tests.video.striped_video import decode_linearly, make_striped_video, read_number

SIZE = 15  # frames of a recording
GOPS = {"g": "6", "bf": "2", "sc_threshold": "0"}


@pytest.fixture(autouse=True)
def fresh_warnings():
    warn_once.cache_clear()


def recording(path: Path, first: int, begin_ms: int | None, codec: str, **options: str) -> bytes:
    """A video of which frame `first` is presented at `begin_ms`, by a clock of 25 fps.

    Args:
        begin_ms: None: where the encoder begins.
    """
    source = path.with_name("plain" + path.suffix)
    make_striped_video(source, SIZE, streams=(first,), codec=codec, options=GOPS | options)
    if begin_ms is None:
        return source.read_bytes()
    with av.open(source) as container, av.open(path, "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        begin = None
        for packet in container.demux(video=0):
            if packet.size:
                begin = packet.pts if begin is None else begin
                offset = round(begin_ms / 1000 / packet.time_base) - begin
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                packet.stream = stream
                out.mux(packet)
    return path.read_bytes()


def join(path: Path, begins_ms: list[int | None], codec: str = "libx264", **options: str) -> Path:
    parts = [
        recording(path, 100 * number, begin, codec, **options)
        for number, begin in enumerate(begins_ms)
    ]
    path.write_bytes(b"".join(parts))
    return path


def set_clusters(path: Path, change: Callable[[int, int], int], **options: str) -> Path:
    """A Matroska file of 40 frames from 50 s on, of which the clusters, of 10 frames each, state
    `change(number, time)` in place of their time in milliseconds."""
    make_striped_video(
        path,
        40,
        pts=[50_000 + 40 * number for number in range(40)],
        options={"g": "10", "sc_threshold": "0"} | options,
        container_options={"cluster_time_limit": "360", "write_crc32": "0"},
    )
    data, place, number = bytearray(path.read_bytes()), 0, 0
    while (place := data.find(b"\x1f\x43\xb6\x75", place + 1)) >= 0:
        time = data.index(b"\xe7", place)  # the first element of the cluster
        value = slice(time + 2, time + 2 + (data[time + 1] & 0x7F))
        moved = change(number, int.from_bytes(data[value]))
        data[value] = moved.to_bytes(value.stop - value.start)
        number += 1
    path.write_bytes(data)
    return path


def set_back_flv(path: Path, from_ms: int, by_ms: int) -> Path:
    """A video of 40 frames from 50 s on, whose clock falls before a frame that is no key frame."""
    pts = [50_000 + 40 * number for number in range(40)]
    make_striped_video(path, 40, pts=pts, codec="flv", options={"g": "100"})
    data, place = bytearray(path.read_bytes()), 13
    while place < len(data):
        size = int.from_bytes(data[place + 1 : place + 4])
        time = int.from_bytes(data[place + 4 : place + 7])
        if data[place] == 9 and time >= from_ms:
            data[place + 4 : place + 7] = (time - by_ms).to_bytes(3)
        place += 11 + size + 4
    path.write_bytes(data)
    return path


def move_stamp(data: bytearray, place: int, ticks: int) -> None:
    """Adds to a time stamp of MPEG-2 systems: 33 bits in three groups, each before a marker."""
    bits = int.from_bytes(data[place : place + 5])
    time = ticks + ((bits >> 33 & 7) << 30 | (bits >> 17 & 0x7FFF) << 15 | bits >> 1 & 0x7FFF)
    groups = (time >> 30 & 7) << 33 | (time >> 15 & 0x7FFF) << 17 | (time & 0x7FFF) << 1
    data[place : place + 5] = (bits & 0xF100010001 | groups).to_bytes(5)


# The presentation times of the parts overlap, leave a gap, or are equal. libavformat adds 2**33 to
# stamps that are more than a minute before the first.
JOINED = {
    "ts": lambda folder: join(folder / "a.ts", [0, 0, 0]),
    "ts, earlier each time": lambda folder: join(folder / "a.ts", [200_000, 90_000, 1000]),
    "ts, overlapping": lambda folder: join(folder / "a.ts", [1000, 710, 210]),
    "m2ts": lambda folder: join(folder / "a.m2ts", [1000, 0]),
    "ts, open GOPs": lambda folder: join(
        folder / "a.ts", [1000, 500], **{"x264-params": "open-gop=1:keyint=6:bframes=2"}
    ),
    "mpg": lambda folder: join(folder / "a.mpg", [100_000, 20_000, 0], "mpeg2video", bf="0"),
    "mpg, B-frames": lambda folder: join(folder / "a.mpg", [1000, 0, 500], "mpeg2video"),
    "mpeg": lambda folder: join(folder / "a.mpeg", [0, 0], "mpeg1video", bf="0"),
    "joined webm": lambda folder: join(folder / "a.webm", [None, None], "libvpx"),
    "joined mkv": lambda folder: join(folder / "a.mkv", [None, None]),
    "mkv": lambda folder: set_clusters(folder / "a.mkv", lambda number, t: t - 9000 * number),
    "mkv, by little, within a GOP": lambda folder: set_clusters(
        folder / "a.mkv", lambda number, t: t - 110 * number, g="100", bf="0"
    ),
    "mkv, by little, with B-frames": lambda folder: set_clusters(
        folder / "a.mkv", lambda number, t: t - 120 * number, g="100", bf="2"
    ),
    "flv": lambda folder: set_back_flv(folder / "a.flv", 50_500, 40_000),
    "flv, by little": lambda folder: set_back_flv(folder / "a.flv", 50_500, 90),
}


@pytest.mark.parametrize("name", JOINED)
def test_recordings_follow_one_another(tmp_path, backend, name, caplog):
    """In the order of the file, at the rate of each of them, whatever their clocks state."""
    path = JOINED[name](tmp_path)
    expected = decode_linearly(path)
    assert len(expected) in (2 * SIZE, 3 * SIZE, 40)
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.WARNING), open_video(path, backend) as reader:
        assert len(reader) == len(expected)
        for count in (1, 1, 1, 3, 8, 50):
            indices = rng.integers(0, len(reader), count)
            assert np.array_equal(reader.frames(indices), [expected[n] for n in indices])
        assert all(np.array_equal(frame, expected[n]) for n, frame in enumerate(reader))
        assert np.allclose(np.diff(reader.frame_times_sec), 0.04, atol=1.1e-3)
        assert reader.fps == pytest.approx(25, rel=2e-3)
        assert "its clock falls back by" in reader.damage
        assert f"{path}: {reader.damage}" in caplog.messages


@pytest.mark.parametrize("change_ms", [-40, -500, 5000])
@pytest.mark.parametrize("begin", [20, 23])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_clock_that_changes_within_a_recording(tmp_path, backend, codec, begin, change_ms):
    """At a key frame or among B-frames, to the time of the frame before it, or otherwise."""
    options = {"bf": "2", "g": "10", "sc_threshold": "0", "x264-params": "b-adapt=0"}
    path = make_striped_video(tmp_path / "a.ts", 40, codec=codec, options=options)
    data, number = bytearray(path.read_bytes()), -1
    for place in range(0, len(data), 188):
        if data[place + 1] & 0x40:
            begins = place + 4 + (1 + data[place + 4] if data[place + 3] & 0x20 else 0)
            if data[begins : begins + 3] == b"\0\0\1" and data[begins + 3] == 0xE0:
                number += 1
                for stamp in (9, 14) if data[begins + 7] & 0x40 else (9,):
                    if number >= begin:
                        move_stamp(data, begins + stamp, 90 * change_ms)
    assert number == 39
    path.write_bytes(data)
    expected = decode_linearly(path)
    with open_video(path, backend) as reader:
        for position in np.random.default_rng(0).permutation(40).tolist():
            assert read_number(reader[position]) == position
            assert np.array_equal(reader[position], expected[position])
        if change_ms < 0:
            assert np.allclose(np.diff(reader.frame_times_sec), 0.04, atol=1e-3)
            assert "its clock falls back by" in reader.damage


def test_joined_gifs(tmp_path, backend):
    """The last packet of a GIF, which holds the next header, is no key frame."""
    part = make_striped_video(tmp_path / "a.gif", SIZE, codec="gif", pix_fmt="rgb8")
    path = tmp_path / "b.gif"
    path.write_bytes(2 * part.read_bytes())
    expected = decode_linearly(path)
    assert len(expected) == 2 * SIZE
    with open_video(path, backend) as reader:
        assert len(reader) == 2 * SIZE
        for position in np.random.default_rng(0).permutation(2 * SIZE).tolist():
            assert np.array_equal(reader[position], expected[position])


def test_headers_of_theora_are_no_frames():
    assert [_is_hidden("theora", byte) for byte in (0x80, 0x82, 0x00, 0x40)] == [1, 1, 0, 0]


@pytest.mark.parametrize(("suffix", "read"), [("mp4", 1), ("flv", 1), ("wmv", 1), ("mkv", 2)])
def test_recordings_that_ffmpeg_does_not_read_are_named(tmp_path, suffix, read):
    codec = "wmv2" if suffix == "wmv" else "libx264"
    part = make_striped_video(tmp_path / f"a.{suffix}", SIZE, codec=codec)
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(3 * part.read_bytes())
    assert len(decode_linearly(path)) == read * SIZE
    with open_video(part) as reader:
        assert reader.damage is None
    with open_video(path) as reader:
        assert len(reader) == read * SIZE
        begin = read * part.stat().st_size
        assert f"another recording begins at byte {begin}, which FFmpeg" in reader.damage


def test_each_fall_is_named_with_its_length_and_place(tmp_path):
    with open_video(join(tmp_path / "a.ts", [200_000, 90_000, 1000])) as reader:
        last_sec = 0.04 * (SIZE - 1)  # how far a recording comes
        assert reader.damage == (
            f"is damaged: its clock falls back by {110 + last_sec:.3f} s before frame 15, "
            f"by {89 + last_sec:.3f} s before frame 30 (another recording may begin there)"
        )
        assert reader.note is None


def test_recordings_whose_packets_look_alike(tmp_path, backend):
    """Packets of the same times and sizes, and other pictures."""
    parts = [
        make_field_video(tmp_path / "a.ts", 16, first=first).read_bytes() for first in (0, 16, 32)
    ]
    path = tmp_path / "b.ts"
    path.write_bytes(b"".join(parts))
    expected = decode_linearly(path)
    assert len({frame.tobytes() for frame in expected}) == 48
    with open_video(path, backend) as reader:
        for position in np.random.default_rng(0).permutation(48).tolist():
            assert np.array_equal(reader[position], expected[position])
        assert np.allclose(np.diff(reader.frame_times_sec), 0.04)


def test_a_clock_that_passes_its_largest_value_does_not_fall(tmp_path, backend):
    """2**33 / 90,000 s are 95,443.7 s. libavformat goes on counting."""
    path = tmp_path / "a.ts"
    recording(path, 0, 95_443_400, "libx264")
    with open_video(path, backend) as reader:
        assert [read_number(frame) for frame in reader] == [*range(SIZE)]
        assert np.allclose(np.diff(reader.frame_times_sec), 0.04)
        assert (reader.damage, reader.note) == (None, None)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_jump_forward_is_reported_and_may_be_shortened(tmp_path, backend, suffix, caplog):
    path = tmp_path / f"a.{suffix}"
    if suffix == "ts":
        join(path, [1000, 3_601_600])
        jump = SIZE
    else:
        pts = [40 * n + 3_600_000 * (n >= 20) for n in range(30)]
        make_striped_video(path, 30, pts=pts, options=GOPS)
        jump = 20
    expected = decode_linearly(path)
    with caplog.at_level(logging.WARNING), open_video(path, backend) as reader:
        steps = np.diff(reader.frame_times_sec)
        assert steps[jump - 1] == pytest.approx(3600.04, abs=2e-3)
        assert f"has no frame for {steps[jump - 1]:.3f} s after frame {jump - 1}" in reader.note
        assert f"{path}: {reader.note}" in caplog.messages
        assert reader.damage is None
        whole_sec = reader.end_sec - reader.frame_times_sec[0]
        assert all(np.array_equal(frame, expected[n]) for n, frame in enumerate(reader))
    with open_video(path, backend, max_gap_sec=0.5) as reader:
        shortened = np.where(np.arange(29) == jump - 1, 0.5, steps)
        assert np.allclose(np.diff(reader.frame_times_sec), shortened, atol=1e-6)
        length_sec = reader.end_sec - reader.frame_times_sec[0]
        assert length_sec == pytest.approx(whole_sec - steps[jump - 1] + 0.5)
        assert np.array_equal(reader[jump], expected[jump])


def test_an_edit_list_of_several_parts_is_no_fall(tmp_path, backend):
    """Frames 13 to 37 and 57 to 81: the frames before 57 in its group are decoded, not shown."""
    path = make_striped_video(tmp_path / "a.mp4", 100, options={"g": "10", "bf": "2"})
    data, frame = bytearray(path.read_bytes()), 512  # units of the frames' time stamps
    place = data.index(b"elst") - 4
    (size,) = struct.unpack(">I", data[place : place + 4])
    (start,) = struct.unpack(">i", data[place + 20 : place + 24])
    entries = [(1000, start + number * frame, 0x10000) for number in (13, 57)]
    box = struct.pack(">I4sII", 40, b"elst", 0, 2)
    box += b"".join(struct.pack(">IiI", *entry) for entry in entries)
    for name in (b"edts", b"trak", b"moov"):  # which hold it, after the frames
        parent = data.rindex(name, 0, place) - 4
        (length,) = struct.unpack(">I", data[parent : parent + 4])
        data[parent : parent + 4] = struct.pack(">I", length + len(box) - size)
    data[place : place + size] = box
    path.write_bytes(data)
    with av.open(path) as container:
        dts = [packet.dts for packet in container.demux(video=0) if packet.size]
        assert np.diff(dts).min() < 0
    with open_video(path, backend) as reader:
        assert [read_number(frame) for frame in reader] == [*range(13, 38), *range(57, 82)]
        assert np.all(np.diff(reader.frame_times_sec) < 0.081)
        assert (reader.damage, reader.note) == (None, None)


def test_long_frames_that_are_usual_are_not_reported(tmp_path):
    path = make_striped_video(tmp_path / "slides.mkv", 5, pts=[0, 15000, 40000, 50000, 75000])
    with open_video(path) as reader:
        assert (reader.damage, reader.note) == (None, None)


def test_gaps_are_positive():
    with pytest.raises(ValueError, match="max_gap_sec is 0; it must be a number above 0"):
        open_video("a.mp4", max_gap_sec=0)


def test_wrong_guesses_of_decoding_times_are_no_falls():
    """Frames 0 3 1 2 6 4 5 ..., of which libavformat takes the presentation times for these."""
    guessed = [0] + [3 * group + step for group in range(33) for step in (3, 1, 2)]
    everything, first = [True] * 100, [number % 30 == 0 for number in range(100)]
    assert find_falls(guessed, everything, is_key=first, is_guessed=True) == []
    far_back = guessed + [time - 60 for time in guessed]
    falls = find_falls(far_back, everything * 2, is_key=[False] * 200, is_guessed=True)
    assert falls == [Fall(100, 98 + 60)]


def test_times_between_two_of_the_file_do_not_make_falls():
    """A program stream states a few times; libavformat's, between these, may fall."""
    is_stated = [True, False, False, True, False, True]
    assert find_falls([0, 1, 4, 3, 5, 2], is_stated) == [Fall(5, 1)]


def test_b_frames_come_before_the_reference_that_is_decoded_before_them():
    """I P B B P, of which libavformat interpolates the times, and a second field."""
    dts = [0, 1, 2, 3, 4]
    none = np.zeros(5, bool)
    assert fits_b_frames([1, 4, 2, 3, 5], dts, none)
    assert fits_b_frames([1, 4, 2, None, 5], dts, none)
    assert not fits_b_frames([1, 2, 2.5, 3, 5], [0, 1, 2.5, 3, 4], none)
    late = [0, 1, 2, 3, 5]
    assert not fits_b_frames([1, 3, 2, 4, 5], late, none)
    assert fits_b_frames([1, 3, 2, 4, 5], late, np.arange(5) == 4)


def test_times_at_a_constant_rate_agree_with_those_stated():
    guessed = np.array([0, 0.04, 0.08, 0.08, 0.12, np.nan, 0.24])
    assert np.allclose(evened(guessed, [], [25], guessed), 0.04 * np.arange(7))
    assert np.allclose(evened(guessed, [], [50, 25], guessed), 0.04 * np.arange(7))
    joined = np.concatenate([guessed, guessed + 0.4])
    assert np.allclose(evened(joined, [7], [25], joined), 0.04 * np.arange(14))
    far = np.array([0, 0.04, 0.04, 0.5])  # a gap
    assert evened(far, [], [25], far) is far
    unknown = np.array([np.nan, np.nan])
    assert evened(unknown, [], [25], far) is far


def test_a_jump_within_a_group_of_pictures_makes_the_order_doubtful():
    dts = [100 * number + (5000 if number >= 12 else 0) for number in range(30)]
    for key in (12, 10):
        is_key = [number in (0, key) for number in range(30)]
        assert jumps_within_groups(dts, is_key) == (key != 12)
    assert not jumps_within_groups([*range(30), None], [True] + [False] * 30)
    fields = [number // 2 for number in range(61)]  # more steps of 0 than of 1
    assert not jumps_within_groups([*fields, 30], [True] + [False] * 61)


def test_stretches_in_order_of_decoding_have_no_gaps():
    moved = without_gaps([Fall(2, 5)], [10, 20, 75, 85, None, 95], [10] * 6)
    assert moved == [10, 20, 30, 40, None, 50]
    assert without_gaps([Fall(1, 5)], [None, 5], [0, 0]) == [None, 5]


def test_unwrapped_times_are_near_their_neighbours():
    high = 2**33
    dts = [high - 2, None, high + 1, 2, 5, high - 3]
    assert unwrapped("mpegts", dts, dts)[1] == [
        high - 2,
        None,
        high + 1,
        high + 2,
        high + 5,
        high - 3,
    ]
    assert unwrapped("matroska,webm", [0, high], [0, high]) == ([0, high], [0, high])


def test_a_stretch_begins_where_the_one_before_ends():
    """Also where its first presentation time is not that of its first packet."""
    pts, dts = placed([Fall(2, 10)], [10, 12, 4, 2, 6], [8, 10, 0, 2, 4], [2, 3, 0, 0, 0])
    assert pts == [10, 12, 17, 15, 19]
    assert dts == [8, 10, 13, 15, 17]
