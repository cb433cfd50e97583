"""The common part of the decord and torchcodec readers: the comparison with PyAV.

Other libraries conceal damage, and may count the frames of a damaged file differently. Therefore
PyAV decodes each frame, too, and these readers take the time of both.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hiera_video.video.backends.pyav import PyavReader
from hiera_video.video.reader import Deadline, VideoReader, warn_once

FRAMES_PER_BATCH = 32  # bounds the memory of a stream


class BackendRefusal(Exception):
    """A backend cannot read this file exactly. `str()` is the reason."""


def warn_about_refusal(path: str, backend: str, reason: BackendRefusal) -> None:
    """Logs once that PyAV reads a file in place of the requested backend."""
    warn_once(f"{path}: {backend} cannot serve this file ({reason}); PyAV reads it instead")


class CheckedReader(VideoReader):
    """A backend that reads a file only as long as its frames equal those of PyAV.

    Frame times, stream and orientation are PyAV's. All frames are compared; at the first difference
    or error of the library, PyAV reads the rest of the file, with a warning.

    Args:
        exact: PyAV's reader of the file.

    Attributes:
        errors: what the library raises for a file that it cannot read.

    Raises:
        BackendRefusal: the backend cannot open the file, or counts its frames differently.
        MissingLibrary: the library is not installed.
    """

    errors: tuple[type[Exception], ...]

    def __init__(self, exact: PyavReader) -> None:
        super().__init__(exact.path, exact.limits)
        decoder = self._import_decoder()
        if exact.damage is not None:
            raise BackendRefusal(exact.damage)
        if exact.index.stamp_name != "pts":
            raise BackendRefusal("its timestamps do not determine the order of its frames")
        with self._refusing("open"):
            self._video: Any = self._open(decoder, exact)
        self._exact = exact
        self.frame_times_sec = exact.frame_times_sec
        self.end_sec = exact.end_sec
        self.note = exact.note
        self.pixel_aspect = exact.pixel_aspect

    @abstractmethod
    def _import_decoder(self) -> Any:
        """The library's class of decoders."""

    @abstractmethod
    def _open(self, decoder: Any, exact: PyavReader) -> Any:
        """A decoder of the file."""

    @abstractmethod
    def _decode(self, positions: list[int]) -> np.ndarray:
        """Decodes the frames at ascending positions: uint8 [len(positions), H, W, 3]."""

    def _batch(self, positions: list[int]) -> np.ndarray:
        if self._video is None:
            raise ValueError(f"the reader of {self.path} is closed")
        with self._refusing("decode"):
            return self._decode(positions)

    @contextmanager
    def _refusing(self, action: str) -> Iterator[None]:
        """Raises the errors of the library as refusals."""
        try:
            yield
        except BackendRefusal:
            raise
        except self.errors as error:
            line = (str(error).strip().splitlines() or [repr(error)])[0][:160]
            raise BackendRefusal(f"{self.backend} cannot {action} it: {line}") from error

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        expected = self._exact._read(positions, deadline)
        while self.backend != self._exact.backend:
            batch = list(itertools.islice(expected, FRAMES_PER_BATCH))
            if not batch:
                return
            try:
                own = self._batch([position for position, _ in batch])
                for (position, true), frame in zip(batch, own, strict=True):
                    if not np.array_equal(frame, true):
                        raise BackendRefusal(f"frame {position} is decoded differently")
            except BackendRefusal as refusal:
                warn_about_refusal(self.path, self.backend, refusal)
                self.backend = self._exact.backend
            yield from batch
        yield from expected

    def close(self) -> None:
        self._video = None
        self._exact.close()
