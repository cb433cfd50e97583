"""A folder of numbered pictures reads like the video that it was made from."""

import os

import cv2
import numpy as np
import pytest

from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError


def picture(number):
    return np.full((8, 12, 3), (number, 2 * number, 250 - number), np.uint8)  # RGB


@pytest.fixture
def folder(tmp_path):
    for number in range(1, 13):  # 9 before 10, though not as text
        cv2.imwrite(str(tmp_path / f"film_{number}.png"), picture(number)[..., ::-1])
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_frames_in_the_order_of_their_numbers(folder):
    with open_video(folder, frames_fps=25) as video:
        assert (len(video), video.height, video.width, video.fps) == (12, 8, 12, 25)
        assert video.backend == "frames"
        np.testing.assert_array_equal(video.frame_times_sec, np.arange(12) / 25)
        expected = np.stack([picture(n) for n in (10, 1, 10)])
        np.testing.assert_array_equal(video.frames([9, 0, 9]), expected)


def test_bad_folders(folder, tmp_path_factory):
    with pytest.raises(VideoError, match="is a folder"):
        open_video(folder)
    with pytest.raises(ValueError, match="frames_fps is 0"):
        open_video(folder, frames_fps=0)
    (folder / "film_7.png").unlink()
    with pytest.raises(VideoError, match="has frames 1 to 12, but not 7") as caught:
        open_video(folder, frames_fps=25)
    assert caught.value.cause == "truncated"
    cv2.imwrite(str(folder / "film_7.png"), picture(7))
    cv2.imwrite(str(folder / "flow_x_08.jpg"), picture(8))
    with pytest.raises(VideoError, match=r"both film_8\.png and flow_x_08\.jpg have the number 8"):
        open_video(folder, frames_fps=25)
    (folder / "flow_x_08.jpg").rename(folder / "._film_8.jpg")  # hidden, as macOS leaves them
    with open_video(folder, frames_fps=25) as video:
        assert len(video) == 12
    with pytest.raises(VideoError, match="without numbered pictures"):
        open_video(tmp_path_factory.mktemp("empty"), frames_fps=25)


def test_a_pipe_among_the_pictures_is_an_error_at_once(folder):
    (folder / "film_3.png").unlink()
    os.mkfifo(folder / "film_3.png")
    with (
        open_video(folder, frames_fps=25) as video,
        pytest.raises(VideoError, match=r"film_3\.png: is a folder, a pipe or a device"),
    ):
        video.frames(range(len(video)))


def test_names_that_are_not_utf8(folder):
    with open_video(folder, frames_fps=25) as video:
        expected = video.frames(range(len(video)))
    other = folder.rename(os.fsdecode(os.fsencode(folder.parent) + b"/\xff"))
    with open_video(other, frames_fps=25) as video:
        assert np.array_equal(video.frames(range(len(video))), expected)


def test_bad_pictures(folder):
    (folder / "film_3.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "film_4.png"), np.zeros((8, 8, 3), np.uint8))
    with open_video(folder, frames_fps=25) as video:
        video.frames([0, 1])
        for index, message in ((2, r"film_3\.png: does not decode"), (3, r"film_4\.png: is 8 x 8")):
            with pytest.raises(VideoError, match=message):
                video.frames([index])
