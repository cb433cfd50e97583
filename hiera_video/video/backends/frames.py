"""A folder of numbered pictures as a video of constant frame rate."""

import os
from collections.abc import Iterator

import numpy as np

from hiera_video.settings.video import Decoding
from hiera_video.video.backends.image import read_picture
from hiera_video.video.content import frame_number
from hiera_video.video.reader import Deadline, VideoError, VideoReader, check_file


class FrameFolderReader(VideoReader):
    """See `VideoReader`. Frames are ordered by the number at the end of the file name.

    Raises:
        VideoError: there are no numbered pictures, two have one number, or a number between the
            first and last is missing.
    """

    backend = "frames"

    def __init__(self, path: str, limits: Decoding, fps: float) -> None:
        super().__init__(path, limits)
        numbered: dict[int, str] = {}
        for entry in os.scandir(path):
            if (number := frame_number(entry.name)) is None:
                continue
            if other := numbered.get(number):
                pair = " and ".join(sorted((os.path.basename(other), entry.name)))
                sentence = f"both {pair} have the number {number}; keep one picture for each frame"
                raise VideoError(path, "timestamps", sentence)
            numbered[number] = entry.path
        if not numbered:
            raise VideoError(path, "no_frames", "a folder without numbered pictures; check it")
        first, last = min(numbered), max(numbered)
        if len(numbered) != last - first + 1:
            gap = next(n for n in range(first, last) if n not in numbered)
            raise VideoError(
                path,
                "truncated",
                f"has frames {first} to {last}, but not {gap}, so that later frames would have "
                "wrong times; extract them again",
            )
        self._files = [numbered[n] for n in sorted(numbered)]
        self.frame_times_sec = np.arange(len(numbered)) / fps
        self.end_sec = len(numbered) / fps

    def _stat(self) -> tuple[int, int]:
        return 0, 0  # each picture is read at once, and what else is in the folder does not matter

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            deadline.check()
            file = self._files[position]
            check_file(file)
            picture = read_picture(file, self.check_size)
            if self._shape is not None and picture.shape[:2] != self._shape:
                size, others = (f"{h} x {w}" for h, w in (picture.shape[:2], self._shape))
                raise VideoError(file, "truncated", f"is {size}, others are {others}; replace it")
            yield position, picture
