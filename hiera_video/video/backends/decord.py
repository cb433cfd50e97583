"""Reading with decord, or its forks decord2 and eva-decord, which are imported as `decord` too.

Decord relies on time stamps and headers, and may wait forever for a frame that a header announces.
Therefore its frame count and frame times are compared with the index before any frame is read.
"""

from typing import Any

import numpy as np

from hiera_video.errors import MissingLibrary
from hiera_video.video.backends.checked import BackendRefusal, CheckedReader, first_line
from hiera_video.video.backends.pyav import PyavReader

EXACT_CONTAINERS = {"mp4", "matroska"}  # libavformat's names of the formats that it seeks exactly
TIME_TOLERANCE_SEC = 1e-3  # decord stores times as float32


class DecordReader(CheckedReader):
    """See `VideoReader`; built on an open PyAV reader."""

    backend = "decord"

    @staticmethod
    def _import_library() -> Any:
        try:
            import decord
        except ImportError as error:
            raise MissingLibrary(
                "the decord backend needs decord: pip install decord (on x86-64), or decord2 or "
                'eva-decord elsewhere; backend="pyav" needs nothing more'
            ) from error
        decord.logging.set_level(decord.logging.QUIET)
        return decord

    @staticmethod
    def _open(library: Any, exact: PyavReader) -> Any:
        if exact.index.num_streams > 1:
            raise BackendRefusal("it has several video streams, between which decord cannot choose")
        if not EXACT_CONTAINERS & set(exact.index.container.split(",")):
            raise BackendRefusal(f"decord does not seek exactly in {exact.index.container}")
        if exact.index.has_leading_frames:
            raise BackendRefusal("decord loses frames in open GOPs")
        try:
            video = library.VideoReader(exact.path, num_threads=1)
            num_frames = len(video)
            if num_frames != len(exact):
                raise BackendRefusal(f"decord counts {num_frames} frames, not {len(exact)}")
            times = video.get_frame_timestamp(np.arange(num_frames))[:, 0]
        except BackendRefusal:
            raise
        except Exception as error:  # DECORDError, which each fork defines in another module
            raise BackendRefusal(f"decord cannot open it: {first_line(error)}") from error
        offsets = (times - times[0]) - (exact.frame_times_sec - exact.frame_times_sec[0])
        if np.abs(offsets).max() > TIME_TOLERANCE_SEC:
            raise BackendRefusal("decord finds other frame times")
        return video

    def _decode(self, positions: list[int]) -> np.ndarray:
        try:
            frames = self._video.get_batch(positions)
            # Tensors, if another library (pytorchvideo) has set decord's bridge to torch.
            return frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)
        except Exception as error:  # DECORDError, as above
            raise BackendRefusal(f"decord fails to decode it: {first_line(error)}") from error
