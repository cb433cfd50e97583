"""Reading with torchcodec, whose exact mode addresses frames by its own scan of the file.

Its frame count, and the time of each frame that it returns, are compared with the index.
"""

from typing import Any

import numpy as np

from hiera_video.errors import MissingLibrary
from hiera_video.video.backends.checked import BackendRefusal, CheckedReader
from hiera_video.video.backends.pyav import PyavReader

TIME_TOLERANCE_SEC = 1e-4


class TorchcodecReader(CheckedReader):
    """See `VideoReader`; built on an open PyAV reader."""

    backend = "torchcodec"
    device = "cpu"
    errors = (RuntimeError, ValueError, IndexError)

    def _import_decoder(self) -> Any:
        try:
            import torchcodec
            from torchcodec.decoders import VideoDecoder

            if torchcodec.ffmpeg_major_version is None:  # it still reads images
                raise ImportError("torchcodec finds no FFmpeg")
        except (ImportError, RuntimeError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "torchcodec":
                sentence = f"the {self.backend} backend needs torchcodec: pip install torchcodec"
            else:
                sentence = (
                    "torchcodec does not load: it needs FFmpeg's shared libraries and a release "
                    "made for this torch (pip install --upgrade torchcodec)"
                )
            raise MissingLibrary(f'{sentence}; backend="pyav" needs nothing more') from error
        return VideoDecoder

    def _open(self, decoder: Any, exact: PyavReader) -> Any:
        video = decoder(
            exact.path,
            stream_index=exact.index.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
            device=self.device,
        )
        if len(video) != len(exact):
            raise BackendRefusal(f"torchcodec counts {len(video)} frames, not {len(exact)}")
        return video

    def _decode(self, positions: list[int]) -> np.ndarray:
        batch = self._video.get_frames_at(positions)
        offsets = batch.pts_seconds.numpy() - self.frame_times_sec[positions]
        if np.abs(offsets).max() > TIME_TOLERANCE_SEC:
            raise BackendRefusal("torchcodec returns frames of other times")
        return batch.data.cpu().numpy()
