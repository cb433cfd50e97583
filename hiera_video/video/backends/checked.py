"""What decord and torchcodec share: each serves a file only where it gives the frames of PyAV."""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from hiera_video.video.backends.pyav import PyavReader
from hiera_video.video.reader import Deadline, VideoError, VideoReader, warn_once

FRAMES_PER_BATCH = 32  # bounds the memory of a stream


class BackendRefusal(Exception):
    """A backend cannot serve this file exactly. `str()` is the reason."""


def warn_handed_over(path: str, backend: str, reason: BackendRefusal) -> None:
    warn_once(f"{path}: {backend} cannot serve this file ({reason}); PyAV reads it instead")


class CheckedReader(VideoReader):
    """A backend that serves a file only where, and as long as, it agrees with PyAV.

    Frame times, stream and rotation are PyAV's. Some frames are compared when it opens; the first
    failure to read others hands the file over to PyAV for good, with a warning.

    Args:
        exact: PyAV's reader of the file.
        compared: ascending positions of the frames that must be equal to PyAV's.
    """

    def __init__(self, exact: PyavReader, compared: list[int]) -> None:
        self._exact = exact
        self.path = exact.path
        self.deadline_sec = exact.deadline_sec
        self.frame_times_sec = exact.frame_times_sec
        self.end_sec = exact.end_sec
        self.damage = exact.damage
        try:
            expected = exact.frames(compared)
        except VideoError as error:  # it may still hold others that decode
            raise BackendRefusal(error.sentence) from error
        for own, true, position in zip(self._batch(compared), expected, compared, strict=True):
            if not np.array_equal(own, true):
                raise BackendRefusal(f"frame {position} comes out differently")

    @abstractmethod
    def _batch(self, positions: list[int]) -> np.ndarray:
        """uint8 [len(positions), H, W, 3] of ascending positions, or BackendRefusal."""

    @property
    def height(self) -> int:
        return self._exact.height

    @property
    def width(self) -> int:
        return self._exact.width

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(positions), FRAMES_PER_BATCH):
            deadline.check()
            batch = positions[first : first + FRAMES_PER_BATCH]
            frames = None
            if self.backend != self._exact.backend:
                try:
                    frames = self._batch(batch)
                except BackendRefusal as refusal:
                    warn_handed_over(self.path, self.backend, refusal)
                    self.backend = self._exact.backend
            if frames is None:
                yield from self._exact._read(positions[first:], deadline)
                return
            yield from zip(batch, frames, strict=True)

    def close(self) -> None:
        self._exact.close()
