"""Windows of a video, read in a decoding process."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from hiera_video.data.batches import Failure
from hiera_video.data.transforms import Crops
from hiera_video.data.videos.records import VideoRecord
from hiera_video.extraction.identity import content_hash, file_state
from hiera_video.extraction.windows import WindowSampler, stream_windows
from hiera_video.runtime.workers import Death, Report
from hiera_video.video.open import OpenVideo
from hiera_video.video.reader import VideoError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """Window `n` of a video."""

    n: int
    views: UInt8[np.ndarray, "S T H W C"]


@dataclass(frozen=True)
class Read:
    """The end of a video whose windows have all been sent."""

    start_sec: Float[np.ndarray, " N"]
    end_sec: Float[np.ndarray, " N"]
    facts: dict[str, Any]  # about the video, as JSON can hold them
    decode_sec: float
    transform_sec: float


@dataclass(frozen=True)
class Failed:
    """The end of a video that could not be read, maybe after some windows."""

    failure: Failure
    seconds: float  # until it failed


End = Read | Failed


@dataclass(frozen=True)
class ReadWindows:
    """Sends the windows of a video, and returns how it ended: the work of a decoding process."""

    windows: WindowSampler
    crops: Crops
    open_video: OpenVideo
    deadline_sec: float

    def __call__(
        self, items: Sequence[VideoRecord], deaths: Mapping[int, Death], report: Report
    ) -> End:
        (video,) = items
        if deaths:
            return Failed(Failure.of_death(video, deaths[0]), deaths[0].seconds)
        begin = time.monotonic()
        try:
            return self._read(video, report)
        except VideoError as error:
            cause, message = str(error.cause), str(error)
        except (ImportError, ConnectionError):  # not the video's fault
            raise
        except Exception as error:  # whatever a file provokes costs that file alone
            logger.exception("%s: reading failed", video.path)
            cause = "error"
            message = f"{video.path}: reading failed with {type(error).__name__}: {error}"
        failure = Failure(video.name, video.path, cause, message)
        return Failed(failure, time.monotonic() - begin)

    def _read(self, video: VideoRecord, report: Report) -> Read:
        transform_sec = sent_sec = 0.0
        begin = time.perf_counter()
        with video.open(self.open_video) as reader:
            windows = self.windows(reader)
            unique = np.unique(windows.indices)

            def frames() -> Iterator[tuple[int, np.ndarray]]:
                nonlocal transform_sec
                for index, frame in reader.stream(unique):
                    report.working(0)
                    start = time.perf_counter()
                    crops = self.crops(frame[None])
                    transform_sec += time.perf_counter() - start
                    yield index, crops

            report.working(0)
            for n, window in enumerate(stream_windows(frames(), windows.indices)):
                start = time.perf_counter()
                report.value(Window(n, np.concatenate(window, axis=1)))
                sent_sec += time.perf_counter() - start
            seconds = time.perf_counter() - begin - sent_sec
            facts = {
                **file_state(video.path),
                "sha256": content_hash(video.path, lambda: report.working(0)),
                "num_windows": len(windows.indices),
                "is_short": windows.is_short,
                "damage": reader.damage,
                "note": reader.note,
                "video_frames": len(reader),
                "duration_sec": reader.end_sec - float(reader.frame_times_sec[0]),
                "fps": reader.fps,
                "height": reader.height,
                "width": reader.width,
                "pixel_aspect": float(reader.pixel_aspect),
                "backend": reader.backend,
                "seconds": round(seconds, 3),
            }
            if video.frames_fps is not None:  # the list states it, and not the settings
                facts["frames_fps"] = video.frames_fps
            reader.check_unchanged()
        return Read(
            windows.start_sec, windows.end_sec, facts, seconds - transform_sec, transform_sec
        )
