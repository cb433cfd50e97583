"""Frames written are frames read."""

from fractions import Fraction

import numpy as np
import pytest

from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video
from tests.video.striped_video import read_number, striped_frame


@pytest.mark.parametrize("fps", [30, 29.97, Fraction(24000, 1001), 12.5])
def test_round_trip(tmp_path, fps):
    path = tmp_path / "out.mp4"
    written = write_video(path, (striped_frame(k, 48, 80) for k in range(25)), fps)
    assert written == 25
    with open_video(path) as reader:
        assert reader.fps == pytest.approx(float(fps), rel=1e-4)
        assert [read_number(frame) for frame in reader.frames(range(25))] == list(range(25))
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_options_reach_the_encoder(tmp_path):
    frames = [striped_frame(k, 48, 80) for k in range(20)]
    write_video(tmp_path / "out.mp4", frames, 30, options={"g": "5", "bf": "0"})
    with open_video(tmp_path / "out.mp4") as reader:
        assert reader.index.key_positions == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "no frames"),
        ([(48, 81, 3)], "must be even"),
        ([(48, 80)], r"allowed is uint8 \[H, W, 3\]"),
        ([(48, 80, 3), (48, 64, 3)], r"frame 1 is \[48, 64, 3\], the first is \[48, 80, 3\]"),
    ],
)
def test_wrong_frames_leave_no_file(tmp_path, shapes, message):
    (tmp_path / "out.mp4").write_text("older")
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "out.mp4", [np.zeros(shape, np.uint8) for shape in shapes], 30)
    assert (tmp_path / "out.mp4").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_name_like_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("clip:1 50%.mp4", [striped_frame(7, 48, 80)], 30)
    with open_video("clip:1 50%.mp4") as reader:
        assert reader.path == "clip:1 50%.mp4"
        assert read_number(reader.frames([0])[0]) == 7


def test_wrong_rate(tmp_path):
    with pytest.raises(ValueError, match="fps=0"):
        write_video(tmp_path / "out.mp4", [np.zeros((4, 4, 3), np.uint8)], 0)
