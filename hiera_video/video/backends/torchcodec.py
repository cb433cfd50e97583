"""Reading through torchcodec, whose exact mode addresses frames by a scan of its own.

Its frame count, and the time of each frame that it returns, are compared with the index.
"""

from typing import Any

import numpy as np

from hiera_video.video.backends.checked import BackendRefusal, CheckedReader
from hiera_video.video.backends.pyav import PyavReader

TIME_TOLERANCE_SEC = 1e-4


class TorchcodecReader(CheckedReader):
    """See `VideoReader`. Built on an open PyAV reader, which knows times, stream and rotation."""

    backend = "torchcodec"

    def __init__(self, exact: PyavReader) -> None:
        decoder_class = _import_decoder()
        if exact.index.order_from != "timestamps":
            raise BackendRefusal("its timestamps do not tell the order of its frames")
        try:
            self._video: Any = decoder_class(
                exact.path,
                stream_index=exact.index.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError) as error:
            raise BackendRefusal(f"torchcodec cannot open it: {_first_line(error)}") from error
        if len(self._video) != len(exact):
            raise BackendRefusal(f"torchcodec counts {len(self._video)} frames, not {len(exact)}")
        # the first frame, and one that is reached by a seek
        super().__init__(exact, sorted({0, *exact.index.key_positions[-1:]}))

    def _batch(self, positions: list[int]) -> np.ndarray:
        if self._video is None:
            raise ValueError(f"the reader of {self.path} is closed")
        try:
            batch = self._video.get_frames_at(positions)
        except (RuntimeError, ValueError, IndexError) as error:
            raise BackendRefusal(f"torchcodec fails to decode it: {_first_line(error)}") from error
        offsets = batch.pts_seconds.numpy() - self.frame_times_sec[positions]
        if np.abs(offsets).max() > TIME_TOLERANCE_SEC:
            raise BackendRefusal("torchcodec returns frames of other times")
        return batch.data.numpy()

    def close(self) -> None:
        self._video = None
        super().close()


def _import_decoder() -> Any:
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder

        if torchcodec.ffmpeg_major_version is None:  # it still reads images
            raise ImportError("torchcodec finds no FFmpeg")
    except (ImportError, RuntimeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchcodec":
            sentence = "the torchcodec backend needs torchcodec: pip install torchcodec"
        else:
            sentence = (
                "torchcodec does not load: it needs FFmpeg's shared libraries and a release made "
                "for this torch (pip install --upgrade torchcodec)"
            )
        raise ImportError(f'{sentence}; backend="pyav" needs nothing more') from error
    return VideoDecoder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:160]
