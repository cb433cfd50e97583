"""A folder of numbered pictures as a video of constant frame rate."""

import os
import re
from collections.abc import Iterator

import cv2
import numpy as np

from hiera_video.video.reader import IMAGE_SUFFIXES, Deadline, VideoError, VideoReader


class FrameFolderReader(VideoReader):
    """See `VideoReader`. The numbers that end the names give the order, and may have no gap."""

    backend = "frames"

    def __init__(self, path: str, deadline_sec: float, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"frames_fps={fps} must be positive")
        self.path = path
        self.deadline_sec = deadline_sec
        numbered = {}
        for entry in os.scandir(path):
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in IMAGE_SUFFIXES and (number := re.search(r"\d+$", stem)):
                numbered[int(number[0])] = entry.path
        if not numbered:
            raise VideoError(path, "no_frames", "a folder without numbered pictures; check it")
        first, last = min(numbered), max(numbered)
        if len(numbered) != last - first + 1:
            gap = next(n for n in range(first, last) if n not in numbered)
            raise VideoError(
                path,
                "truncated",
                f"has frames {first} to {last}, but not {gap}: what follows would be at the wrong "
                "time; extract them again",
            )
        self._files = [numbered[n] for n in sorted(numbered)]
        self.frame_times_sec = np.arange(len(numbered)) / fps
        self.end_sec = len(numbered) / fps
        self._shape: tuple[int, int] | None = None

    @property
    def height(self) -> int:
        return self._known_shape()[0]

    @property
    def width(self) -> int:
        return self._known_shape()[1]

    def close(self) -> None:
        pass

    def _known_shape(self) -> tuple[int, int]:
        if self._shape is None:
            self.frames([0])
        assert self._shape is not None
        return self._shape

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            deadline.check()
            file = self._files[position]
            picture = cv2.imread(file, cv2.IMREAD_COLOR)
            if picture is None:
                raise VideoError(file, "truncated", "does not decode as a picture; replace it")
            if self._shape is None:
                self._shape = picture.shape[:2]
            if picture.shape[:2] != self._shape:
                sizes = " x ".join(map(str, picture.shape[:2]))
                raise VideoError(file, "truncated", f"is {sizes}, others differ; replace it")
            yield position, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
