"""A part of a video as a video of its own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hiera_video.errors import counted
from hiera_video.video.reader import Deadline, VideoError, VideoReader
from hiera_video.video.sampling import FRAME_TIME_TOLERANCE_SEC

if TYPE_CHECKING:
    from hiera_video.video.open import OpenVideo

MAX_ROUNDING_SEC = 0.5  # annotated ends are often rounded to whole seconds


@dataclass(frozen=True, slots=True)
class Part:
    """The frames from `start` to before `end`: counted, or by when they appear.

    `str()` is the fragment that names the part behind the name of a file: `#t=2,4.5` as in W3C's
    Media Fragments URI 1.0, whose intervals are half open too, and `#frame=50,112`.
    """

    start: float  # seconds after the first frame; or, with `in_frames`, the frame, from 0
    end: float | None  # in the same unit. None: the end of the video
    in_frames: bool = False

    def __str__(self) -> str:
        limits = [self.start] if self.end is None else [self.start, self.end]
        numbers = ",".join(repr(float(limit)).removesuffix(".0") for limit in limits)
        return f"#{'frame' if self.in_frames else 't'}={numbers}"

    @classmethod
    def at_end(cls, name: str) -> "Part | None":
        """The part whose fragment a name ends with; None if there is none."""
        match = re.search(r"#(t|frame)=([\d.e+-]+)(?:,([\d.e+-]+))?$", name)
        if match is None:
            return None
        unit, start, end = match.groups()
        return cls(float(start), None if end is None else float(end), unit == "frame")

    def positions(self, video: VideoReader) -> tuple[int, int]:
        """Positions of the first frame of the part and of the first one after it.

        A part in seconds may end half a second after the video.

        Raises:
            VideoError: the part lies outside of the video, or no frame appears in it.
        """
        count = len(video)
        begin = float(video.frame_times_sec[0])
        duration = video.end_sec - begin
        if self.in_frames:
            first, stop = int(self.start), count if self.end is None else int(self.end)
            is_outside = first >= count or stop > count
        else:
            appear = video.frame_times_sec - begin + FRAME_TIME_TOLERANCE_SEC
            first = int(np.searchsorted(appear, self.start))
            stop = count if self.end is None else int(np.searchsorted(appear, self.end))
            is_outside = self.start >= duration or (
                self.end is not None and self.end > duration + MAX_ROUNDING_SEC
            )
        unit = "frame" if self.in_frames else "second"
        end = "the end" if self.end is None else f"{unit} {self.end:g}"
        part = f"the part from {unit} {self.start:g} to {end}"
        if is_outside:
            size = f"{counted(count, 'frame')} and lasts {duration:.3f} s"
            sentence = f"{part} lies outside of the video, which has {size}; correct the list"
        elif first >= stop:
            sentence = f"no frame appears in {part}; make the part longer"
        else:
            return first, stop
        raise VideoError(video.path, "timestamps", sentence)


class PartReader(VideoReader):
    """See `VideoReader`; frames are counted from the first of the part, times are the video's.

    The part ends when its last frame disappears.

    Args:
        video: the reader of the whole video, which this one closes.

    Raises:
        VideoError: see `Part.positions`.
    """

    def __init__(self, video: VideoReader, part: Part) -> None:
        first, stop = part.positions(video)
        self.path, self.limits, self.damage = video.path, video.limits, video.damage
        self.note, self.pixel_aspect = video.note, video.pixel_aspect
        self.frame_times_sec = video.frame_times_sec[first:stop]
        is_last = stop == len(video)
        self.end_sec = video.end_sec if is_last else float(video.frame_times_sec[stop])
        self._video, self._first = video, first

    @property
    def backend(self) -> str:  # type: ignore[override]
        """The library that decodes, which may change while frames are read."""
        return self._video.backend

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        first = self._first
        for position, frame in self._video._read([first + p for p in positions], deadline):
            yield position - first, frame

    def check_unchanged(self) -> None:
        self._video.check_unchanged()

    def close(self) -> None:
        self._video.close()


def open_part(open_video: "OpenVideo", path: str, part: Part | None) -> VideoReader:
    """Opens a video, or a part of it.

    Raises:
        VideoError: the file cannot be read, or the part lies outside of it.
    """
    video = open_video(path)
    if part is None:
        return video
    try:
        return PartReader(video, part)
    except BaseException:
        video.close()
        raise
