"""Reading with torchcodec on a GPU, by NVDEC, whose colours differ from PyAV's within a bound.

A comparison of all frames with PyAV would take the time that a GPU saves. PyAV therefore decodes
one key frame wherever decoding begins, which shows wrong colours, sizes and orientations, and key
frames at which decoding cannot begin. What it does not show is damage between key frames, which
NVDEC conceals.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hiera_video.errors import ConfigError, MissingLibrary
from hiera_video.video.backends.checked import (
    FRAMES_PER_BATCH,
    BackendRefusal,
    warn_about_refusal,
)
from hiera_video.video.backends.pyav import PyavReader
from hiera_video.video.backends.torchcodec import TorchcodecReader
from hiera_video.video.reader import Deadline, VideoError

# Mean absolute difference of a frame, of 255. NVDEC's arithmetic is that of the standard, and what
# differs is the conversion to RGB: torchcodec's kernel rounds down, swscale uses tables.
TOLERANCE = 2.0


def current_gpu() -> str:
    """The GPU on which this process, and decoding processes that it starts, decode.

    Raises:
        ConfigError: there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "backend is 'torchcodec-cuda': torch finds no CUDA device; take pyav, the default "
            "(data.backend=pyav in commands)"
        )
    return f"cuda:{torch.cuda.current_device()}"


class TorchcodecCudaReader(TorchcodecReader):
    """See `VideoReader`; built on an open PyAV reader. Frames are returned on the host.

    Args:
        device: of torch, on which torchcodec decodes.

    Raises:
        VideoError: NVDEC does not decode the codec, its pixel format or size.
        MissingLibrary: torchcodec was built without CUDA, or the driver has no NVDEC.
    """

    backend = "torchcodec-cuda"

    def __init__(self, exact: PyavReader, device: str) -> None:
        self.device = device
        self._compared: set[int] = set()  # positions of key frames
        super().__init__(exact)

    def _open(self, decoder: Any, exact: PyavReader) -> Any:
        from torchcodec.decoders import set_cuda_backend

        try:
            # What all releases call the interface that knows at once whether NVDEC decodes.
            with set_cuda_backend("beta"):
                video = super()._open(decoder, exact)
        except RuntimeError as error:
            if "Unsupported device" in str(error) or "No device interface" in str(error):
                raise MissingLibrary(
                    "torchcodec was built without CUDA: install a release that was built for the "
                    "CUDA of this torch (pip install --upgrade torchcodec), or take backend=pyav "
                    "(data.backend=pyav in commands)"
                ) from error
            raise
        status = video.cpu_fallback
        if "unavailable" in str(status):
            raise MissingLibrary(
                "the driver has no NVDEC (libnvcuvid): in a container, "
                "NVIDIA_DRIVER_CAPABILITIES must contain video; or take backend=pyav "
                "(data.backend=pyav in commands)"
            )
        if status:
            context = exact._stream.codec_context
            raise VideoError(
                exact.path,
                "backend",
                f"this GPU does not decode it ({context.name}, {context.pix_fmt}, {context.width} "
                f"x {context.height}); convert it to H.264, or take backend=pyav "
                "(data.backend=pyav in commands)",
            )
        return video

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        done = 0
        try:
            while done < len(positions) and self.backend != self._exact.backend:
                deadline.check()
                batch = positions[done : done + FRAMES_PER_BATCH]
                for key in self._keys(batch):
                    self._compare(key, deadline)
                frames = self._batch(batch)
                yield from zip(batch, frames, strict=True)
                done += len(batch)
        except BackendRefusal as refusal:
            warn_about_refusal(self.path, self.backend, refusal)
            self.backend = self._exact.backend
        if done < len(positions):
            yield from self._exact._read(positions[done:], deadline)

    def _keys(self, positions: list[int]) -> list[int]:
        """Positions of key frames at which decoding begins, those that were not compared yet."""
        starts = [start for start, _ in self._exact._runs(positions)]
        keys = set(self._exact.index.position_of[starts].tolist())
        return sorted(key for key in keys - self._compared if key >= 0)  # -1: it is not shown

    def _compare(self, key: int, deadline: Deadline) -> None:
        """Raises BackendRefusal if a key frame is not that of PyAV within the tolerance."""
        (own,) = self._batch([key])
        try:
            ((_, true),) = self._exact._read([key], deadline)
        except VideoError as error:
            if error.cause != "truncated":
                raise
            raise BackendRefusal(f"key frame {key} is damaged") from error
        if own.shape != true.shape:
            raise BackendRefusal(f"frame {key} has another size or orientation")
        difference = float(np.abs(own.astype(np.int16) - true).mean())
        if difference > TOLERANCE:
            raise BackendRefusal(f"key frame {key} differs by {difference:.1f} of 255 on average")
        self._compared.add(key)
