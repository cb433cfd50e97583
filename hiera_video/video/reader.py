"""The interface of all readers of videos, and their errors."""

import logging
import math
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Literal

import numpy as np

from hiera_video.errors import UserError
from hiera_video.files import similar_path
from hiera_video.settings.video import Decoding

Cause = Literal[
    "missing",  # no such file
    "not_a_file",  # a folder, a pipe, a device
    "empty",  # zero bytes
    "not_a_video",  # no decoder recognises the bytes
    "no_video_stream",  # audio only, or only cover art
    "truncated",  # cut off or damaged: a requested frame does not decode
    "too_large",  # more pixels in a frame, or bytes in a read, than allowed
    "changed",  # written to while it was read
    "timestamps",  # times from which no clip can be sampled
    "too_short",  # fewer frames than a clip needs, with end_policy "error"
    "no_frames",  # a video stream without a single frame
    "timeout",  # the deadline passed
    "backend",  # the installed libraries cannot read it
]

# Files in folders are found by the suffixes of their names, in lower case.
# fmt: off
VIDEO_SUFFIXES = frozenset([
    ".3gp", ".apng", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
])
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])
# fmt: on

logger = logging.getLogger(__name__)


class VideoError(UserError):
    """A file cannot be read as requested. `str()` is one line: path, problem, what to do."""

    def __init__(self, path: str, cause: Cause, sentence: str) -> None:
        super().__init__(path, cause, sentence)  # all arguments, so that the error can be pickled
        self.path = path
        self.cause = cause
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}"


def check_file(path: str) -> None:
    """Raises a VideoError unless the path is that of a regular file, not empty, that can be read.

    Opening anything else may wait forever: a pipe waits for somebody who writes into it.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        hint = similar_path(path) or "; check its path"
        raise VideoError(path, "missing", f"no such file{hint}") from None
    except OSError as error:
        raise VideoError(path, "missing", f"cannot be reached ({error.strerror})") from None
    except ValueError as error:
        sentence = f"no file can have this name ({error}); correct the list"
        raise VideoError(path, "missing", sentence) from None
    if not stat.S_ISREG(status.st_mode):
        sentence = "is a folder, a pipe or a device; name a video file"
        if stat.S_ISDIR(status.st_mode):
            sentence += (
                ", or set frames_fps (data.frames_fps in commands) to the rate of a folder of "
                "numbered frames"
            )
        raise VideoError(path, "not_a_file", sentence)
    if status.st_size == 0:
        raise VideoError(path, "empty", "is empty (0 bytes); fetch it again")
    if not os.access(path, os.R_OK):
        raise VideoError(path, "missing", "cannot be read (permission denied)")


class Deadline:
    """A wall-clock limit that every loop over packets or frames checks."""

    def __init__(self, path: str, limit_sec: float) -> None:
        self.path = path
        self.limit_sec = limit_sec
        self.restart()

    def restart(self) -> None:
        self._end = time.monotonic() + self.limit_sec

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise VideoError(
                self.path,
                "timeout",
                f"reading did not end within deadline_sec={self.limit_sec:g}; leave the file out, "
                "or give it more time",
            )


class VideoReader(ABC):
    """Random access to the frames of one video, by position in presentation order.

    Attributes:
        path: the file.
        backend: the library that decodes, which may differ from the requested one.
        frame_times_sec: float64 [F], ascending presentation times as the file states them, without
            falls of its clock, and without what `max_gap_sec` cuts from gaps.
        end_sec: presentation time at which the last frame ends.
        damage: description of what is damaged, missing or joined in a file whose other frames can
            be read. None if no damage is known before frames are decoded.
        note: description of long gaps between frames, or None.
        pixel_aspect: width over height of a pixel, before rotation, as the file states it. Frames
            have the stored pixels, which are not scaled by it. 1 if it is not stated.
    """

    backend: str
    frame_times_sec: np.ndarray
    end_sec: float
    damage: str | None = None
    note: str | None = None
    pixel_aspect: Fraction = Fraction(1)
    _shape: tuple[int, ...] | None = None  # (height, width), once a frame has been decoded

    def __init__(self, path: str, limits: Decoding) -> None:
        self.path, self.limits = path, limits
        self._status = self._stat()

    @abstractmethod
    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (position, uint8 [H, W, 3]) for each of the ascending unique positions.

        Raises VideoError if one of the frames does not decode.
        """

    def _stat(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raises VideoError if the file was written to since it was opened.

        Reading ends with this check, because frames would be those of both files.
        """
        try:
            is_same = self._stat() == self._status
        except OSError:
            is_same = False
        if not is_same:
            raise VideoError(
                self.path, "changed", "was changed or removed while it was read; read it again"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raises VideoError if frames are larger than `max_frame_pixels` allows."""
        allowed = self.limits.max_frame_pixels
        side = 2 * math.isqrt(allowed)
        if height * width > allowed or max(height, width) > side:
            raise VideoError(
                self.path,
                "too_large",
                f"has frames of {width} x {height} pixels; max_frame_pixels={allowed} allows as "
                f"many pixels and sides of {side}; raise it (data.max_frame_pixels in commands), "
                "or leave the file out",
            )

    def close(self) -> None:  # noqa: B027 - readers of pictures hold nothing open
        """Closes the file and frees the decoder. Closing twice has no effect."""

    def __len__(self) -> int:
        return len(self.frame_times_sec)

    @property
    def height(self) -> int:
        """Rows of a frame in pixels, after rotation."""
        return (self._shape or self[0].shape)[0]

    @property
    def width(self) -> int:
        """Columns of a frame in pixels, after rotation."""
        return (self._shape or self[0].shape)[1]

    @property
    def fps(self) -> float:
        """Average frame rate, for reports only; frames are addressed by position or time."""
        return len(self) / (self.end_sec - float(self.frame_times_sec[0]))

    def __getitem__(self, index: int | slice) -> np.ndarray:
        """Frame `index` as uint8 [H, W, 3], or the frames of a slice as uint8 [T, H, W, 3].

        Negative indices count from the end, as in a list.

        Raises:
            IndexError: there is no such frame.
            TypeError: the index is neither a whole number nor a slice.
            VideoError: see `frames`.
        """
        try:
            positions = range(len(self))[index]
        except IndexError:
            raise IndexError(f"frame {index} of a video of {len(self)} frames") from None
        except TypeError:
            kind = type(index).__name__
            raise TypeError(
                f"a {kind} as index: expected a whole number or a slice; `frames` takes lists"
            ) from None
        if isinstance(positions, int):
            return self.frames([positions])[0]
        return self.frames(positions)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields all frames, uint8 [H, W, 3], in bounded memory."""
        return (frame for _, frame in self.stream(range(len(self))))

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the frames at `indices`, uint8 [T, H, W, 3] RGB with T = len(indices).

        Indices may be in any order and may repeat; each frame is decoded once. The reader's
        deadline applies to the whole call.

        Raises:
            ValueError: an index is negative or not below the number of frames.
            VideoError: a frame does not decode, the deadline passed, the frames are larger than
                allowed, or the file was changed meanwhile. What follows damage in decoding order
                does not decode either, up to the next key frame.
        """
        positions, slots = np.unique(self._checked(indices), return_inverse=True)
        if positions.size == 0:
            return np.empty((0, self.height, self.width, 3), np.uint8)
        clip = np.empty(0, np.uint8)
        for rank, (_, frame) in enumerate(self._decoded(positions)):
            if rank == 0:
                self._check_bytes(len(slots) * frame.nbytes)
                clip = np.empty((len(slots), *frame.shape), np.uint8)
            clip[slots == rank] = frame
        return clip

    def stream(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (index, uint8 [H, W, 3] RGB) for ascending unique indices, in bounded memory.

        The reader's deadline applies to each frame, without the time that the caller spends
        between frames.

        Raises:
            ValueError: indices are out of range, not ascending, or repeated.
            VideoError: see `frames`.
        """
        positions = self._checked(indices)
        if np.any(np.diff(positions) <= 0):
            raise ValueError(
                "stream: indices must be ascending and unique; frames() takes any order"
            )
        return self._decoded(positions, limit_each=True)

    def _decoded(
        self, positions: np.ndarray, *, limit_each: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        deadline = Deadline(self.path, self.limits.deadline_sec)
        for position, frame in self._read(positions.tolist(), deadline):
            self._shape = frame.shape[:2]
            yield position, frame
            if limit_each:
                deadline.restart()
        self.check_unchanged()

    def _check_bytes(self, num_bytes: int) -> None:
        allowed = self.limits.max_read_gib
        if num_bytes > allowed * 2**30:
            raise VideoError(
                self.path,
                "too_large",
                f"a read takes {num_bytes / 2**30:.1f} GiB of frames; max_read_gib={allowed:g} is "
                "allowed; raise it (data.max_read_gib in commands), take fewer clips, or leave the "
                "file out",
            )

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        positions = np.asarray(indices)
        if positions.size == 0:
            return np.empty(0, np.int64)
        if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
            raise ValueError(f"indices must be a list of integers, not {indices!r}")
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= len(self):
            raise ValueError(
                f"frame {low if low < 0 else high} of {self.path} does not exist; "
                f"allowed are 0 to {len(self) - 1}"
            )
        return positions.astype(np.int64)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            self.check_unchanged()


@cache
def warn_once(sentence: str) -> None:
    """Logs a warning once per process, because files are opened again in every epoch."""
    logger.warning(sentence)
