"""Reading through decord, or its forks decord2 and eva-decord, which import under the same name.

Decord trusts timestamps and headers, and may wait forever for a frame that a header promised: its
frame count and frame times are compared with the index before it is asked for any frame.
"""

from typing import Any

import numpy as np

from hiera_video.video.backends.checked import BackendRefusal, CheckedReader
from hiera_video.video.backends.pyav import PyavReader

EXACT_CONTAINERS = {"mp4", "matroska"}  # by libavformat's names
TIME_TOLERANCE_SEC = 1e-3  # decord keeps times as float32


class DecordReader(CheckedReader):
    """See `VideoReader`. Built on an open PyAV reader, which knows times, stream and rotation."""

    backend = "decord"

    def __init__(self, exact: PyavReader) -> None:
        decord = _import_decord()
        if exact.index.order_from != "timestamps":
            raise BackendRefusal("its timestamps do not tell the order of its frames")
        if exact.index.num_streams > 1:
            raise BackendRefusal("it has several video streams, and decord cannot be told which")
        if not EXACT_CONTAINERS & set(exact.index.container.split(",")):
            raise BackendRefusal(f"decord does not seek exactly in {exact.index.container}")
        if exact.index.has_leading_frames:
            raise BackendRefusal("decord loses frames where a GOP is open")
        try:
            self._video: Any = decord.VideoReader(exact.path, num_threads=1)
            num_frames = len(self._video)
            if num_frames != len(exact):
                raise BackendRefusal(f"decord counts {num_frames} frames, not {len(exact)}")
            times = self._video.get_frame_timestamp(np.arange(num_frames))[:, 0]
        except BackendRefusal:
            raise
        except Exception as error:  # DECORDError, whose place differs between the forks
            raise BackendRefusal(f"decord cannot open it: {_first_line(error)}") from error
        offsets = (times - times[0]) - (exact.frame_times_sec - exact.frame_times_sec[0])
        if np.abs(offsets).max() > TIME_TOLERANCE_SEC:
            raise BackendRefusal("decord finds other frame times")
        # the first frame, and one that is reached by a seek
        super().__init__(exact, sorted({0, *exact.index.key_positions[-1:]}))

    def _batch(self, positions: list[int]) -> np.ndarray:
        if self._video is None:
            raise ValueError(f"the reader of {self.path} is closed")
        try:
            frames = self._video.get_batch(positions)
            # Of torch, if another library of this process (pytorchvideo) has told decord so.
            return frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)
        except Exception as error:  # DECORDError, whose place differs between the forks
            raise BackendRefusal(f"decord fails to decode it: {_first_line(error)}") from error

    def close(self) -> None:
        self._video = None
        super().close()


def _import_decord() -> Any:
    try:
        import decord
    except ImportError as error:
        raise ImportError(
            "the decord backend needs decord: pip install decord (on x86-64), or decord2 or "
            'eva-decord elsewhere; backend="pyav" needs nothing more'
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:160]
