"""Small pictures and videos of what a report lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from hiera_video.data.transforms import shrink_to
from hiera_video.files import replacing
from hiera_video.report.blocks import Media
from hiera_video.video.reader import VideoError, VideoReader
from hiera_video.video.writer import write_video

SIDE_PX = 160  # short side
LONGEST_SEC = 4.0  # of a video, from its centre
FPS = 12
JPEG_QUALITY = 80
X264 = {"crf": "30", "preset": "veryfast"}


class MediaFolder:
    """Writes pictures and videos to `media/` in the folder of a report.

    Those of an earlier report are removed; other files that may be there are not.

    Args:
        folder: of the report.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._number = folder / "media", 0
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if re.fullmatch(r"\d{4,}\.(jpg|mp4)", path.name):
                path.unlink()

    def of(self, opened: Callable[[], VideoReader]) -> Media:
        """A picture of the middle of a video, and a video of the seconds around it.

        A video that cannot be read has the reason in place of its picture.
        """
        try:
            with opened() as video:
                indices, fps = excerpt(video)
                return self.of_frames((frame for _, frame in video.stream(indices)), fps)
        except VideoError as error:
            return Media(note=str(error))

    def of_frames(self, frames: Iterable[np.ndarray], fps: float, side_px: int = SIDE_PX) -> Media:
        """The first frame, and if there are several, a video of all, in bounded memory.

        Args:
            frames: uint8 [H, W, 3], one or more.
            side_px: of frames that are larger, the short side is shrunk to it.
        """
        name = f"{self._number:04d}"
        self._number += 1
        small = (even(shrink_to(frame[None], side_px))[0] for frame in frames)
        first, second = next(small), next(small, None)
        if second is None:
            return Media(self._picture(f"{name}.jpg", first))
        shown = chain([first, second], small)
        write_video(self.folder / f"{name}.mp4", shown, fps, options=X264)
        return Media(self._picture(f"{name}.jpg", first), f"media/{name}.mp4")

    def _picture(self, name: str, frame: np.ndarray) -> str:
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        with replacing(self.folder / name) as part:
            part.write_bytes(cv2.imencode(".jpg", frame[..., ::-1], quality)[1].tobytes())
        return f"media/{name}"


def excerpt(video: VideoReader) -> tuple[np.ndarray, float]:
    """The frames of the seconds around the centre of a video, ascending indices, and their rate.

    They are those shown at the ticks of `FPS`, or all of a video that has fewer.
    """
    first, end = float(video.frame_times_sec[0]), video.end_sec
    length = min(end - first, LONGEST_SEC)
    start = (first + end - length) / 2
    ticks = start + np.arange(max(1, round(length * FPS))) / FPS
    indices = np.searchsorted(video.frame_times_sec, ticks + 1e-6, side="right") - 1
    indices = np.unique(indices.clip(0))
    return indices, min(FPS, len(indices) / length)


def even(frames: np.ndarray) -> np.ndarray:
    """Frames [T, H, W, 3] without an odd last row and column, which video cannot have."""
    rows, columns = (max(2, size // 2 * 2) for size in frames.shape[1:3])
    frames = frames[:, :rows, :columns]
    missing = [(0, 0), (0, rows - frames.shape[1]), (0, columns - frames.shape[2]), (0, 0)]
    return np.pad(frames, missing, mode="edge")
