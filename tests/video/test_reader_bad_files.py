"""Every bad file ends in one error that names its path and cause, or is read as far as it goes."""

import logging
import os
import pickle
import struct
import sys

import av
import numpy as np
import pytest
from PIL import Image

from hiera_video.errors import MissingLibrary
from hiera_video.settings.video import Decoding
from hiera_video.video import container, reader
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError, warn_once
from tests.video.striped_video import make_audio, make_striped_video, read_number

FASTSTART = {"movflags": "+faststart"}


@pytest.fixture(autouse=True)
def fresh_warnings():
    warn_once.cache_clear()


def cause_of(path, backend="pyav", **arguments) -> str:
    with pytest.raises(VideoError) as caught:
        open_video(path, backend, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert caught.value.path == str(path)
    return caught.value.cause


def test_files_that_are_no_videos(tmp_path, backend):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    assert cause_of(tmp_path / "nowhere.mp4", backend) == "missing"
    assert cause_of(tmp_path, backend) == "not_a_file"
    assert cause_of(tmp_path / "pipe.mp4", backend) == "not_a_file"
    assert cause_of(tmp_path / "empty.mp4", backend) == "empty"
    assert cause_of(tmp_path / "a\0b.mp4", backend) == "missing"
    assert cause_of(tmp_path / "\ud800.mp4", backend) == "missing"
    assert cause_of(tmp_path / f"{'x' * 300}.mp4", backend) == "missing"
    assert cause_of(tmp_path / "text.mp4", backend) == "not_a_video"
    assert cause_of(make_audio(tmp_path / "audio.mp4"), backend) == "no_video_stream"
    only_art = make_striped_video(tmp_path / "art.mp4", 0, streams=(), cover_art=True)
    assert cause_of(only_art, backend) == "no_video_stream"


def test_names_that_are_not_utf8(tmp_path, backend, monkeypatch):
    monkeypatch.setattr(reader.logger, "disabled", True)  # xdist cannot send a log of such names
    path = make_striped_video(tmp_path / "a.mp4", 5)
    path = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m.mp4"))
    with open_video(path, backend) as video:
        assert [read_number(frame) for frame in video] == list(range(5))


def test_video_without_frames(tmp_path, backend):
    path = make_striped_video(tmp_path / "f.mp4", 5, container_options=FASTSTART)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    assert cause_of(path, backend) == "no_frames"


def test_cut_off_before_the_index(tmp_path, backend):
    path = make_striped_video(tmp_path / "cut.mp4", 30)
    path.write_bytes(path.read_bytes()[:-1500])
    assert cause_of(path, backend) == "truncated"


def test_cut_off_file_is_read_as_far_as_it_goes(tmp_path, backend, caplog):
    path = make_striped_video(
        tmp_path / "over.mp4", 60, options={"bf": "0"}, container_options=FASTSTART
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with caplog.at_level(logging.WARNING), open_video(path, backend) as reader:
        assert 10 < len(reader) < 59
        assert reader.backend == "pyav"
        numbers = [read_number(frame) for frame in reader.frames(range(len(reader)))]
        assert "60" in reader.damage or "not whole" in reader.damage
    assert numbers == list(range(len(reader)))
    assert any("60" in r.getMessage() or "not whole" in r.getMessage() for r in caplog.records)


def with_latin_metadata(path):
    """A video whose title is not UTF-8."""
    make_striped_video(path, 5, title="Fr\u00e4ulein")
    data = path.read_bytes()
    assert "Fr\u00e4ulein".encode() in data
    path.write_bytes(data.replace("Fr\u00e4ulein".encode(), "Fr\u00e4ulein ".encode("latin-1")))
    return path


def test_metadata_that_is_not_utf8(tmp_path, backend):
    with open_video(with_latin_metadata(tmp_path / "a.mkv"), backend) as reader:
        assert read_number(reader[4]) == 4


def test_a_library_without_the_argument_for_such_metadata(tmp_path, monkeypatch):
    """PyAV 19 reads all metadata, and refuses the argument that older versions need."""
    path = make_striped_video(tmp_path / "a.mkv", 5)
    real_open = container.av.open

    def open_as_in_19(file, *, format, timeout, options):
        return real_open(file, format=format, timeout=timeout, options=options)

    monkeypatch.setattr(container.av, "open", open_as_in_19)
    monkeypatch.setattr(container, "InputContainer", object)
    with open_video(path) as reader:
        assert read_number(reader[4]) == 4


def test_over_reported_frame_count(tmp_path, backend, caplog):
    """An AVI header announces three times the frames that are there."""
    path = make_striped_video(tmp_path / "over.avi", 20, codec="mpeg4")
    data = bytearray(path.read_bytes())
    header = data.index(b"strh") + 8
    data[header + 32 : header + 36] = struct.pack("<I", 60)
    total = data.index(b"avih") + 8
    data[total + 16 : total + 20] = struct.pack("<I", 60)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), open_video(path, backend) as reader:
        assert len(reader) == 20
        assert [read_number(frame) for frame in reader.frames([19, 0])] == [19, 0]
    assert any("announces 60 frames and holds 20" in r.getMessage() for r in caplog.records)


def test_frame_that_does_not_decode_is_named(tmp_path, backend):
    path = make_striped_video(tmp_path / "hole.mkv", 40, codec="libx264", options={"g": "10"})
    with open_video(path) as reader:
        reader.index.packet_of[20] = 10**6  # a frame that no packet holds
        with pytest.raises(VideoError, match=r"frame 20 of 40 \(at 0.800 s\)") as caught:
            reader.frames([3, 20])
        assert caught.value.cause == "truncated"
        assert read_number(reader.frames([21])[0]) == 21  # the reader lives on


def test_damaged_packets_are_an_error_not_another_frame(tmp_path, backend):
    path = make_striped_video(tmp_path / "damaged.mp4", 40, options={"bf": "0", "g": "10"})
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat"), data.index(b"moov")
    middle, length = (begin + end) // 2, (end - begin) // 4
    data[middle : middle + length] = b"\xff" * length
    path.write_bytes(data)
    with open_video(path, backend) as reader:
        with pytest.raises(VideoError, match="does not decode") as caught:
            reader.frames(range(len(reader)))
        assert [read_number(frame) for frame in reader.frames([5, 1])] == [5, 1]
        assert caught.value.cause == "truncated"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_predicted_from_a_lost_one_do_not_count(tmp_path, backend, b_frames):
    options = {"bf": str(b_frames), "g": "10", "sc_threshold": "0", "b-pyramid": "none"}
    path = make_striped_video(tmp_path / "lost.mp4", 40, options=options)
    data = bytearray(path.read_bytes())
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    lost = packets[13]
    data[lost.pos : lost.pos + lost.size] = b"\xff" * lost.size
    path.write_bytes(data)
    good, named = [], []
    with open_video(path, backend) as reader:
        for position in range(len(reader)):
            try:
                assert read_number(reader.frames([position])[0]) == position
            except VideoError as error:
                named.append(error.sentence.startswith(f"frame {position} of 40"))
            else:
                good.append(position)
    spoiled = set(range(40)) - set(good)
    assert all(named)
    assert 13 in spoiled
    assert 19 in spoiled
    assert spoiled <= set(range(11, 20))


@pytest.mark.parametrize("what", ["open", "frames", "stream"])
def test_deadline(tmp_path, monkeypatch, what):
    path = make_striped_video(tmp_path / "slow.mp4", 30)
    if what == "open":
        assert cause_of(path, deadline_sec=1e-9) == "timeout"
        return
    with open_video(path) as reader:
        reader.limits = Decoding(deadline_sec=1e-9)
        with pytest.raises(VideoError, match="deadline_sec=1e-09") as caught:
            reader.frames([0, 9]) if what == "frames" else list(reader.stream([0, 9]))
        assert caught.value.cause == "timeout"


def test_errors_survive_pickling():
    error = VideoError("a.mp4", "empty", "is empty")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.cause) == ("a.mp4: is empty", "a.mp4", "empty")


def test_containers_are_closed_after_errors(tmp_path, monkeypatch):
    opened = []
    real_open = container.av.open

    def recording_open(*args, **kwargs):
        opened.append(real_open(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(container.av, "open", recording_open)
    assert cause_of(make_audio(tmp_path / "audio.mp4")) == "no_video_stream"
    assert not opened[0].streams  # PyAV empties it when a container is closed


@pytest.mark.parametrize(
    ("backend", "library"), [("decord", "decord"), ("torchcodec", "torchcodec")]
)
def test_missing_library_is_one_sentence(tmp_path, monkeypatch, backend, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(MissingLibrary, match=f"pip install .*{library}"):
        open_video(make_striped_video(tmp_path / "v.mp4", 3), backend)


def test_torchcodec_without_ffmpeg_is_one_sentence(tmp_path, monkeypatch):
    torchcodec = pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError, OSError))
    monkeypatch.setattr(torchcodec, "ffmpeg_major_version", None)
    with pytest.raises(MissingLibrary, match="needs FFmpeg's shared libraries"):
        open_video(make_striped_video(tmp_path / "v.mp4", 3), "torchcodec")


def test_unknown_arguments(tmp_path):
    with pytest.raises(ValueError, match="pyav, decord, torchcodec or torchcodec-cuda"):
        open_video(tmp_path / "v.mp4", "opencv")
    with pytest.raises(ValueError, match="deadline_sec is 0"):
        open_video(tmp_path / "v.mp4", deadline_sec=0)


def test_image_is_a_video_of_one_frame(tmp_path, backend):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :10] = (255, 0, 0)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.png", exif=exif)
    picture.convert("L").save(tmp_path / "c.jpg")
    with open_video(tmp_path / "a.png", backend) as reader:
        assert (len(reader), reader.height, reader.width) == (1, 20, 30)
        assert reader.frame_times_sec.tolist() == [0.0]
        assert np.array_equal(reader.frames([0, 0]), [pixels, pixels])
    with open_video(tmp_path / "b.png", backend) as reader:
        assert np.array_equal(reader.frames([0])[0], np.rot90(pixels, -1))
    assert open_video(tmp_path / "c.jpg").frames([0]).shape == (1, 20, 30, 3)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    assert cause_of(tmp_path / "bad.jpg", backend) == "not_a_video"
