"""The pipeline: decoding processes -> batches of many videos -> model -> store.

One thread fills the next batches while the model works on one, and another fetches and stores the
features of batches that have been launched.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from hiera_video.data.batches import Failure
from hiera_video.data.videos.records import VideoRecord
from hiera_video.errors import counted
from hiera_video.extraction.features import FeatureExtractor
from hiera_video.extraction.reading import End, Failed, Read, ReadWindows, Window
from hiera_video.extraction.store import FeatureStore, Rows
from hiera_video.runtime.prefetch import prefetch
from hiera_video.runtime.progress import Progress
from hiera_video.runtime.transfer import Fetch, Transfer, transfer_for
from hiera_video.runtime.workers import Workers
from hiera_video.settings.training import Arithmetic

NUM_BATCHES_AHEAD = 2  # that are filled
NUM_LAUNCHED = 2  # while one more is stored
BUSY = 0.75  # of the time: what is busy for as long is called the limit

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did, and where its time went."""

    num_workers: int
    done: int = 0
    failed: int = 0
    clips: int = 0  # views that went through the model
    wall_sec: float = 0.0
    start_sec: float = 0.0  # of it, until the first batch went to the model; 0 with Ray
    decode_sec: float = 0.0  # of all decoding processes together, as the next
    transform_sec: float = 0.0
    model_sec: float = 0.0
    store_sec: float = 0.0

    def __str__(self) -> str:
        if not self.clips:
            return f"no clips in {self.wall_sec:.1f} s"
        wall = max(self.wall_sec, 1e-9)
        decode, transform = (
            t / (wall * self.num_workers) for t in (self.decode_sec, self.transform_sec)
        )
        model = self.model_sec / wall
        shares = {"the model": model, "reading": decode + transform}
        start = ""
        if self.start_sec:
            shares["starting"] = self.start_sec / wall
            start = f", of which {self.start_sec:.1f} s were starting"
        most = max(shares, key=lambda name: shares[name])
        limit = most if shares[most] >= BUSY else "neither: starting, or too few cores for both"
        return (
            f"{counted(self.clips, 'clip')} in {wall:.1f} s{start}: {self.clips / wall:.2f} "
            f"clips/s, the model alone {self.clips / max(self.model_sec, 1e-9):.2f} (utilisation "
            f"{model:.2f})\n"
            f"busy: {counted(self.num_workers, 'decoding process')} {decode:.0%} with decoding and "
            f"{transform:.0%} with transforms, the model {model:.0%}, writing "
            f"{self.store_sec / wall:.0%}; the limit is {limit}"
        )


class Assembly:
    """Puts features and ends of videos together, in whatever order they come, and stores them.

    `close` ends it, and the time of the summary.

    Args:
        videos: by the index of their jobs.
        num_workers: decoding processes.
        precision: the arithmetic of the model, for messages.
        progress: show how far it has come.
    """

    def __init__(
        self,
        videos: Sequence[VideoRecord],
        store: FeatureStore,
        num_workers: int,
        *,
        precision: Arithmetic,
        progress: bool,
    ) -> None:
        self.precision: Arithmetic = precision
        self.videos, self.store, self.summary = videos, store, Summary(num_workers)
        self._bar = Progress(total=len(videos), unit="video", enabled=progress)
        self._rows: dict[int, Rows] = {}
        self._read: dict[int, Read] = {}  # that wait for features
        self._failed: set[int] = set()
        self._start = time.perf_counter()

    def add(self, keys: Sequence[tuple[int, int]], features: Shaped[Tensor, "B ..."]) -> None:
        """Takes the features of window n of video i, for keys (i, n); on the host."""
        finite = features.isfinite().reshape(len(keys), -1).all(dim=1).tolist()
        for (index, n), row, is_finite in zip(keys, features, finite, strict=True):
            if index in self._failed:
                continue
            if not is_finite:
                failure = Failure.not_finite(
                    self.videos[index], f"feature {n} is", self.precision, features.dtype
                )
                self.end(index, Failed(failure, 0.0))
                continue
            if index not in self._rows:
                self._rows[index] = Rows(self.store.folder)
            self._rows[index].put(n, row)
            self._finish(index)

    def end(self, index: int, end: End) -> None:
        """Takes the end of a video."""
        if index in self._failed:
            return
        if isinstance(end, Read):
            self.summary.decode_sec += end.decode_sec
            self.summary.transform_sec += end.transform_sec
            self._read[index] = end
            self._finish(index)
            return
        self._failed.add(index)
        self._drop(index)
        self.store.fail(end.failure, end.seconds)
        with Progress.external_write_mode():
            logger.warning("failed: %s", end.failure.message)
        self.summary.failed += 1
        self._show_progress()

    def close(self) -> None:
        for rows in self._rows.values():
            rows.close()
        self._bar.close()
        self.summary.wall_sec = time.perf_counter() - self._start

    def _finish(self, index: int) -> None:
        """Stores a video once all of it is there."""
        read, rows = self._read.get(index), self._rows.get(index)
        if read is None or rows is None or len(rows) < len(read.start_sec):
            return
        start = time.perf_counter()
        self.store.write(self.videos[index], rows, read)
        self.summary.store_sec += time.perf_counter() - start
        self._drop(index)
        self.summary.done += 1
        self._show_progress()

    def _drop(self, index: int) -> None:
        self._read.pop(index, None)
        if index in self._rows:
            self._rows.pop(index).close()

    def _show_progress(self) -> None:
        speed = self.summary.clips / max(time.perf_counter() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"{speed:.1f} clips/s, {self.summary.failed} failed", refresh=False
        )
        self._bar.update()


@dataclass
class _Batch:
    """Windows for one forward pass, and the videos that ended meanwhile."""

    keys: list[tuple[int, int]] = field(default_factory=list)  # (video, window)
    views: UInt8[Tensor, "N S T H W C"] | None = None
    ends: list[tuple[int, End]] = field(default_factory=list)  # (video, its end)


def extract(assembly: Assembly, work: ReadWindows, extractor: FeatureExtractor) -> None:
    """Stores the features of the videos of an assembly, or why there are none.

    Decoding begins while the model is put on its device and compiled.

    Raises:
        OutputError: the output cannot be written.
    """
    if not assembly.videos:
        return
    summary, begin = assembly.summary, time.perf_counter()
    num_windows = extractor.batch_size // work.crops.num_crops
    transfer = transfer_for(extractor.device)
    launched: deque[Future[None]] = deque()

    def finish(batch: _Batch, fetch: Fetch | None) -> None:
        if fetch is not None:
            features, seconds = fetch()
            summary.model_sec += seconds
            assembly.add(batch.keys, features)
        for index, end in batch.ends:
            assembly.end(index, end)

    made = _batches(work, assembly.videos, summary.num_workers, num_windows, transfer)
    with (
        contextlib.closing(prefetch(made, NUM_BATCHES_AHEAD)) as batches,
        ThreadPoolExecutor(1) as finishing,
    ):
        extractor.warm_up()
        for batch in batches:
            fetch = None
            if batch.views is not None:
                if not summary.clips:
                    summary.start_sec = time.perf_counter() - begin
                fetch = transfer.launch(partial(extract_windows, extractor), batch.views)
                batch.views = None  # its memory is for later batches
                summary.clips += len(batch.keys) * work.crops.num_crops
            launched.append(finishing.submit(finish, batch, fetch))
            while len(launched) > NUM_LAUNCHED:
                launched.popleft().result()
        while launched:
            launched.popleft().result()


def extract_windows(
    extractor: FeatureExtractor, views: UInt8[Tensor, "N S T H W C"]
) -> Shaped[Tensor, "N ..."]:
    """Features of windows; those of several crops keep an axis for them, after N."""
    count, crops = views.shape[:2]
    features = extractor(views.flatten(0, 1))
    return features if crops == 1 else features.unflatten(0, (count, crops))


def _batches(
    work: ReadWindows,
    videos: Sequence[VideoRecord],
    num_workers: int,
    num_windows: int,
    transfer: Transfer,
) -> Generator[_Batch | None, None, None]:
    """Batches of `num_windows` windows, but the last; None now and then, when there is nothing."""
    batch = _Batch()
    jobs = ([video] for video in videos)
    number = max(1, min(num_workers, len(videos)))
    with Workers(work, number, limit_sec=work.deadline_sec) as workers:
        for result in workers.results(jobs):
            if result is None:
                yield None
                continue
            index, value = result
            if isinstance(value, Window):
                if batch.views is None:
                    batch.views = transfer.host_batch((num_windows, *value.views.shape))
                batch.views[len(batch.keys)] = torch.from_numpy(value.views)
                batch.keys.append((index, value.n))
                if len(batch.keys) == num_windows:
                    yield batch
                    batch = _Batch()
            else:
                batch.ends.append((index, value))
                if len(batch.ends) >= num_windows:  # they need not wait for the model
                    yield _Batch(ends=batch.ends)
                    batch.ends = []
    if batch.views is not None:
        batch.views = batch.views[: len(batch.keys)]
    yield batch
