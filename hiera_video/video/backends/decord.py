"""Reading with decord, or its forks decord2 and eva-decord, which are imported as `decord` too.

Decord relies on time stamps and headers, and may wait forever for a frame that a header announces.
Therefore its frame count and frame times are compared with the index before any frame is read.
"""

from typing import Any

import numpy as np

from hiera_video.errors import MissingLibrary
from hiera_video.video.backends.checked import BackendRefusal, CheckedReader
from hiera_video.video.backends.pyav import PyavReader

EXACT_CONTAINERS = {"mp4", "matroska"}  # libavformat's names of the formats that it seeks exactly
TIME_TOLERANCE_SEC = 1e-3  # decord stores times as float32


class DecordReader(CheckedReader):
    """See `VideoReader`; built on an open PyAV reader."""

    backend = "decord"
    errors = (Exception,)  # DECORDError, which each fork defines in another module

    def _import_decoder(self) -> Any:
        try:
            import decord
        except ImportError as error:
            raise MissingLibrary(
                "the decord backend needs decord: pip install decord (on x86-64), or decord2 or "
                'eva-decord elsewhere; backend="pyav" needs nothing more'
            ) from error
        decord.logging.set_level(decord.logging.QUIET)
        return decord.VideoReader

    def _open(self, decoder: Any, exact: PyavReader) -> Any:
        if exact.index.num_streams > 1:
            raise BackendRefusal("it has several video streams, between which decord cannot choose")
        if not EXACT_CONTAINERS & set(exact.index.container.split(",")):
            raise BackendRefusal(f"decord does not seek exactly in {exact.index.container}")
        if exact.index.has_leading_frames:
            raise BackendRefusal("decord loses frames in open GOPs")
        video = decoder(exact.path, num_threads=1)
        if len(video) != len(exact):
            raise BackendRefusal(f"decord counts {len(video)} frames, not {len(exact)}")
        times = video.get_frame_timestamp(np.arange(len(video)))[:, 0]
        offsets = (times - times[0]) - (exact.frame_times_sec - exact.frame_times_sec[0])
        if np.abs(offsets).max() > TIME_TOLERANCE_SEC:
            raise BackendRefusal("decord finds other frame times")
        return video

    def _decode(self, positions: list[int]) -> np.ndarray:
        frames = self._video.get_batch(positions)
        # Tensors, if another library (pytorchvideo) has set decord's bridge to torch.
        return frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)
