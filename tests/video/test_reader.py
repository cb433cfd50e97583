"""The conformance suite: every backend gives the frames of a linear decode, pixel for pixel."""

import gc
import io
import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from hiera_video.errors import ConfigError
from hiera_video.files import temporary_folder
from hiera_video.video import index
from hiera_video.video.backends.checked import CheckedReader
from hiera_video.video.backends.pyav import PyavReader
from hiera_video.video.open import DEFAULTS, open_video
from hiera_video.video.parts import Part, open_part
from hiera_video.video.reader import VideoError, warn_once
from tests.video.striped_video import (
    decode_linearly,
    make_striped_video,
    read_number,
    striped_frame,
)

B_FRAMES = {"bf": "3", "g": "20"}
UNEVEN_PTS = np.cumsum(np.random.default_rng(0).integers(10, 90, 60)).tolist()

# name -> (file name, arguments of make_striped_video, backends that serve it themselves)
ALL = ("pyav", "decord", "torchcodec")
FILES: dict[str, tuple[str, dict, tuple[str, ...]]] = {
    "b_frames": ("b.mp4", {"options": B_FRAMES}, ALL),
    "no_b_frames": ("p.mp4", {"options": {"bf": "0", "g": "12"}}, ALL),
    "one_key_frame": ("k.mp4", {"options": {"bf": "2", "g": "250"}}, ALL),
    "open_gop": (
        "o.mp4",
        {"options": {"x264-params": "open-gop=1:keyint=15:bframes=3:scenecut=0"}},
        ("pyav", "torchcodec"),
    ),
    "pyramid_vfr": ("v.mp4", {"pts": UNEVEN_PTS, "options": {"bf": "5", "g": "24"}}, ALL),
    "intra_refresh": (
        "r.mp4",
        {"options": {"x264-params": "intra-refresh=1:keyint=10:bframes=2"}},
        ("pyav",),
    ),
    "no_count_mkv": ("n.mkv", {"options": B_FRAMES}, ALL),
    "vp9": ("v.webm", {"codec": "libvpx-vp9", "options": {"g": "20", "speed": "8"}}, ALL),
    "hevc": (
        "h.mp4",
        {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=15:open-gop=1"}},
        ("pyav", "torchcodec"),
    ),
    "ten_bit": ("t.mp4", {"pix_fmt": "yuv420p10le", "options": B_FRAMES}, ("pyav",)),
    "odd_size": ("odd.mp4", {"codec": "mpeg4", "size": (63, 97)}, ("pyav",)),
    "transport_stream": ("x.ts", {"options": B_FRAMES}, ("pyav",)),
    "avi_b_frames": ("b.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}, ("pyav",)),
    "avi_h264": ("h.avi", {"options": B_FRAMES}, ("pyav",)),
    "raw_h264": ("raw.h264", {"options": B_FRAMES}, ("pyav",)),
    "mpeg2": ("m.mpg", {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}}, ("pyav",)),
    "two_streams": ("two.mp4", {"streams": (0, 300)}, ("pyav", "torchcodec")),
    "cover_art": ("cover.mp4", {"cover_art": True}, ALL),
    "single_frame": ("one.mp4", {"num_frames": 1}, ALL),
    "rotated_90": ("r90.mp4", {"rotation": 90, "options": B_FRAMES}, ALL),
    "rotated_180": ("r180.mp4", {"rotation": 180}, ALL),
    "rotated_270": ("r270.mp4", {"rotation": 270}, ALL),
    "non_ascii_name": ("Übung läuft 走る.mp4", {}, ALL),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos with spaces")


@pytest.fixture(params=FILES)
def video(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, dict, tuple[str, ...]]:
    name, arguments, backends = FILES[request.param]
    if not (folder / name).exists():
        make_striped_video(folder / name, **arguments)
    return folder / name, arguments, backends


def test_frames_equal_a_linear_decode(video, backend, caplog):
    path, arguments, served_by = video
    warn_once.cache_clear()
    expected = decode_linearly(path)
    num_frames = arguments.get("num_frames", 60)
    assert len(expected) == num_frames
    rng = np.random.default_rng(1)
    with caplog.at_level(logging.WARNING), open_video(path, backend) as reader:
        assert len(reader) == num_frames
        assert (reader.height, reader.width) == expected[0].shape[:2]
        if "size" not in arguments:
            assert (reader.height, reader.width) == (64, 96)
        for count in (1, 2, 5, 16, 100):
            indices = rng.integers(0, num_frames, count)
            clip = reader.frames(indices)
            assert clip.dtype == np.uint8
            assert clip.flags.c_contiguous
            assert clip.shape == (count, *expected[0].shape)
            for frame, index in zip(clip, indices, strict=True):
                assert read_number(frame) == index
                assert np.array_equal(frame, expected[index])
        every_third = list(reader.stream(range(0, num_frames, 3)))
        assert [index for index, _ in every_third] == list(range(0, num_frames, 3))
        assert all(np.array_equal(frame, expected[index]) for index, frame in every_third)
        really = reader.backend
    assert really == (backend if backend in served_by else "pyav")
    handed_over = [r.getMessage() for r in caplog.records if "cannot serve" in r.getMessage()]
    assert len(handed_over) == (really != backend)
    assert all(str(path) in message for message in handed_over)


def test_times_are_those_of_the_file(video, backend):
    path, arguments, _ = video
    with open_video(path, backend) as reader:
        times = reader.frame_times_sec
        assert times.dtype == np.float64
        expected = np.arange(len(reader)) / 25
        if "pts" in arguments:
            expected = np.array(arguments["pts"]) / 1000
        assert np.allclose(times - times[0], expected - expected[0], atol=1.1e-3)
        assert times[-1] < reader.end_sec < times[-1] + 0.1
        assert reader.fps == pytest.approx(len(reader) / (reader.end_sec - times[0]))


def test_a_palette_that_the_first_packet_brings(tmp_path, backend):
    """It is not repeated after a seek, where frames would be black."""
    path = make_striped_video(tmp_path / "a.mov", 30, codec="qtrle", pix_fmt="gray")
    expected = decode_linearly(path)
    with open_video(path, backend) as reader:
        for position in (29, 3, 17, 3):
            assert np.array_equal(reader[position], expected[position])
            assert expected[position].any()


def test_default_stream_is_chosen(tmp_path, backend):
    path = make_striped_video(tmp_path / "d.mkv", 12, streams=(0, 300), default_stream=1)
    with open_video(path, backend) as reader:
        assert [read_number(frame) for frame in reader.frames([0, 11])] == [300, 311]


def test_decord_reads_whatever_arrays_another_library_asks_it_for(tmp_path):
    decord = pytest.importorskip("decord")
    path = make_striped_video(tmp_path / "a.mp4", 12)
    with decord.bridge.use_torch(), open_video(path, "decord") as reader:
        clip = reader.frames([3, 9])
        assert reader.backend == "decord"
    assert isinstance(clip, np.ndarray)
    assert [read_number(frame) for frame in clip] == [3, 9]


class _Faulty(CheckedReader):
    """A library that gives the frame before some, which its time stamps do not show."""

    backend = "faulty"
    errors = (RuntimeError,)
    wrong: frozenset[int]

    def _import_decoder(self):
        return None

    def _open(self, decoder, exact):
        return decode_linearly(Path(exact.path))

    def _decode(self, positions):
        return np.stack([self._video[n - (n in self.wrong)] for n in positions])


@pytest.mark.parametrize("wrong", [1, 7, 19, 33, 59])
def test_a_backend_that_is_wrong_within_a_group_of_pictures_is_caught(
    folder, monkeypatch, caplog, wrong
):
    """Right at the key frames 0, 20 and 40, and wrong at one other position, or at the end."""
    path = make_striped_video(folder / "faulty.mp4", options=B_FRAMES)
    expected = decode_linearly(path)
    monkeypatch.setattr(_Faulty, "wrong", frozenset([wrong]), raising=False)
    others = [n for n in range(60) if n != wrong]

    def opened():
        warn_once.cache_clear()
        return _Faulty(PyavReader(str(path), DEFAULTS))

    with opened() as reader:
        assert np.array_equal(reader.frames(others), [expected[n] for n in others])
        assert reader.backend == "faulty"
    for read in ([wrong], [wrong, 20, 0], range(60)):  # alone, among key frames, among all
        with caplog.at_level(logging.WARNING), opened() as reader:
            assert np.array_equal(reader.frames(read), [expected[n] for n in read])
            assert reader.backend == "pyav"
            assert f"frame {wrong} is decoded differently" in caplog.text
        caplog.clear()
    with opened() as reader:
        assert all(np.array_equal(frame, expected[n]) for n, frame in enumerate(reader))
        assert reader.backend == "pyav"


def test_wrong_indices_are_refused(folder, backend):
    path = make_striped_video(folder / "indices.mp4", 10)
    with open_video(path, backend) as reader:
        assert reader.frames([]).shape == (0, 64, 96, 3)
        for wrong in ([10], [-1], [0.5], [[1]]):
            with pytest.raises(ValueError, match=r"allowed are 0 to 9|list of integers"):
                reader.frames(wrong)
        with pytest.raises(ValueError, match="ascending"):
            reader.stream([3, 3])
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.frames([1])


def test_reads_of_one_reader_may_not_interleave(folder):
    path = make_striped_video(folder / "b2.mp4", options=B_FRAMES)
    with open_video(path) as reader:
        first = reader.stream(range(60))
        assert [read_number(next(first)[1]) for _ in range(10)] == list(range(10))
        assert read_number(reader.frames([50])[0]) == 50
        with pytest.raises(ValueError, match="open the file twice"):
            list(first)
        second = reader.stream(range(60))
        next(second)
    with pytest.raises(ValueError, match="was closed"):
        list(second)


def test_unwanted_frames_are_not_decoded_or_kept(folder, monkeypatch):
    """Few packets are fed for a clip in the last GOP, and a stream holds a handful of frames."""
    path = make_striped_video(folder / "gops.mp4", 200, options={"bf": "3", "g": "20"})
    with open_video(path) as reader:
        fed = []
        packets = reader._packets

        def counted(*arguments):
            for number, packet in packets(*arguments):
                fed.append(number)
                yield number, packet

        monkeypatch.setattr(reader, "_packets", counted)
        assert [read_number(frame) for frame in reader.frames([190, 5])] == [190, 5]
        assert len(fed) < 40
        fed.clear()
        stream = reader.stream(range(0, 200))
        for index, frame in stream:
            assert read_number(frame) == index
            assert len(fed) - index < 12  # the decoder is never far ahead of what was taken


def test_the_index_of_a_film_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    scans = []
    real_scan = index.scan
    monkeypatch.setattr(
        index, "scan", lambda path, *rest: scans.append(path) or real_scan(path, *rest)
    )
    monkeypatch.setattr(index, "MIN_CACHED_FRAMES", 20)
    monkeypatch.setattr(index, "MAX_CACHED_FRAMES", 50)
    monkeypatch.setattr(index, "_cache", {})

    def read(name, num_frames):
        with open_video(tmp_path / name) as video:
            assert len(video) == num_frames
            assert read_number(video.frames([num_frames - 1])[0]) == num_frames - 1

    make_striped_video(tmp_path / "a.mp4", num_frames=20)
    make_striped_video(tmp_path / "b.mp4", num_frames=30)
    make_striped_video(tmp_path / "short.mp4", num_frames=19)
    for name, num_frames in (("a.mp4", 20), ("b.mp4", 30), ("a.mp4", 20), ("short.mp4", 19)) * 2:
        read(name, num_frames)
    assert [Path(path).name for path in scans] == ["a.mp4", "b.mp4", "short.mp4", "short.mp4"]
    make_striped_video(tmp_path / "c.mp4", num_frames=40)
    read("c.mp4", 40)  # for which both others go
    read("b.mp4", 30)
    assert [Path(path).name for path in scans[4:]] == ["c.mp4", "b.mp4"]
    make_striped_video(tmp_path / "b.mp4", num_frames=25)
    read("b.mp4", 25)


def test_frames_are_indexed_as_a_list(tmp_path):
    path = make_striped_video(tmp_path / "a.mp4", num_frames=9)
    with open_video(path) as video:
        everything = video.frames(range(9))
        np.testing.assert_array_equal(video[4], everything[4])
        np.testing.assert_array_equal(video[-1], everything[8])
        np.testing.assert_array_equal(video[0:8:3], everything[[0, 3, 6]])
        np.testing.assert_array_equal(video[::-4], everything[[8, 4, 0]])
        np.testing.assert_array_equal(np.stack(list(video)), everything)
        assert video[9:].shape == (0, *everything.shape[1:])
        with pytest.raises(TypeError, match="a list as index: expected a whole number or a slice"):
            video[[0, 1]]
        with pytest.raises(IndexError, match=r"frame \d+ of a video of \d+ frames"):
            video[9]


def test_content_is_read_as_the_file(tmp_path, backend):
    path = make_striped_video(tmp_path / "a.mp4", num_frames=9)
    expected = open_video(path).frames([0, 5, 8])
    with open(path, "rb") as file:
        for source in (file, io.BytesIO(path.read_bytes()), path.read_bytes()):
            reader = open_video(source, backend)
            copy = Path(reader.path)
            assert copy.parent == temporary_folder()
            np.testing.assert_array_equal(reader.frames([0, 5, 8]), expected)
            del reader
            gc.collect()
            assert not copy.exists()
    with pytest.raises(VideoError):
        open_video(b"not a video")


def test_sources_that_are_no_file(tmp_path, monkeypatch):
    make_striped_video(tmp_path / "a.mp4", num_frames=2)
    monkeypatch.chdir(tmp_path)
    for source in (None, ["a.mp4"], 3, np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(TypeError, match=r"source is a .*: expected one path, the content"):
            open_video(source)
    with pytest.raises(TypeError, match=r"opened as text: open it by open\(path, 'rb'\)"):
        open_video(io.StringIO("text"))
    with pytest.raises(TypeError, match=r"path b'a.mp4' as bytes: give os\.fsdecode"):
        open_video(b"a.mp4")
    for path, hint in (
        ("", "its path is empty"),
        ("https://a.org/b.mp4", "download it, and name the file"),
    ):
        with pytest.raises(VideoError, match=f"no such file; .*{hint}"):
            open_video(path)
    for limit in ({"deadline_sec": 0}, {"backend": "opencv"}, {"frames_fps": "fast"}):
        (name,) = limit
        with pytest.raises(ConfigError, match=f"{name} is .*; it must be"):
            open_video("a.mp4", **limit)


def test_pixels_that_are_not_square_are_returned_as_stored(tmp_path, backend):
    path = tmp_path / "narrow.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for number in range(5):
            picture = av.VideoFrame.from_ndarray(striped_frame(number, 64, 96), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with open_video(path, backend) as reader:
        assert reader.pixel_aspect == Fraction(4, 3)
        assert np.array_equal(reader.frames(range(5)), decode_linearly(path))
        assert (reader.height, reader.width) == (64, 96)
    with open_part(open_video, str(path), Part(0, 0.1)) as part:
        assert part.pixel_aspect == Fraction(4, 3)
    with open_video(make_striped_video(tmp_path / "square.mp4", 2), backend) as reader:
        assert reader.pixel_aspect == 1
