"""Pictures and clips of videos, checked by decoding them."""

from __future__ import annotations

from functools import partial

import av
import cv2
import numpy as np
import pytest

from hiera_video.report.media import FPS, LONGEST_SEC, SIDE_PX, MediaFolder
from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video
from tests.report.synthetic import frames_of, write_clip


def decoded(path):
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


def test_a_clip_is_the_seconds_around_the_centre(tmp_path):
    # Level 4 t at t / 5 seconds: of 12 seconds those from 4 to 8 are frames 20 to 39.
    frames = (np.full((24, 32, 3), 4 * t, np.uint8) for t in range(60))
    write_video(tmp_path / "long.mp4", frames, 5)
    media = MediaFolder(tmp_path).of(partial(open_video, tmp_path / "long.mp4"))
    shown, rate = decoded(tmp_path / media.video)
    assert rate == pytest.approx(5)
    levels = [frame.mean() for frame in shown]
    np.testing.assert_allclose(levels, 4 * np.arange(20, 40), atol=6)  # it is compressed
    picture = cv2.imread(str(tmp_path / media.picture))
    assert picture.mean() == pytest.approx(80, abs=3)


def test_a_clip_of_many_frames_is_thinned(tmp_path):
    write_clip(tmp_path / "fast.mp4", num_frames=25, fps=50)
    media = MediaFolder(tmp_path).of(partial(open_video, tmp_path / "fast.mp4"))
    shown, rate = decoded(tmp_path / media.video)
    assert len(shown) == FPS // 2  # of half a second
    assert rate == pytest.approx(FPS)
    assert len(shown) / rate <= LONGEST_SEC


@pytest.mark.parametrize("size", [(1, 1), (25, 31), (400, 302), (3, 900)])
def test_sides_are_even_and_not_longer_than_needed(tmp_path, size):
    media = MediaFolder(tmp_path).of_frames(frames_of(3, size), 5)
    shown, _ = decoded(tmp_path / media.video)
    height, width = shown[0].shape[:2]
    assert not height % 2
    assert not width % 2
    assert min(height, width) <= SIDE_PX
    assert abs(width / height / (size[1] / size[0]) - 1) < 0.51


def test_a_single_frame_is_a_picture_only(tmp_path):
    media = MediaFolder(tmp_path).of_frames(frames_of(1), 5)
    assert media.video is None
    assert (tmp_path / media.picture).is_file()


@pytest.mark.parametrize("content", [None, b"", b"no video\n" * 50])
def test_a_file_that_cannot_be_read_says_why(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    media = MediaFolder(tmp_path).of(partial(open_video, path))
    assert media.picture is None
    assert media.note.startswith(str(path))


def test_names_of_files_are_numbers_whatever_the_videos_are_called(tmp_path):
    folder = MediaFolder(tmp_path)
    made = [folder.of_frames(frames_of(2), 5) for _ in range(2)]
    assert [item.video for item in made] == ["media/0000.mp4", "media/0001.mp4"]
