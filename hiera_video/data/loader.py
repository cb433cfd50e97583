"""Loaders: samples and batches, in order, read by supervised processes."""

import contextlib
import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from hiera_video.data.batches import Failure, Sample
from hiera_video.data.datasets import RecordDataset
from hiera_video.data.order import TrainingOrder
from hiera_video.runtime.distributed import ALONE, Process
from hiera_video.runtime.machine import usable_cores
from hiera_video.runtime.prefetch import prefetch
from hiera_video.runtime.workers import NUM_JOBS, Death, Report, Workers, start_fork_server
from hiera_video.settings.video import Decoding

# Each has a CUDA context, whose memory the model lacks, and a GPU has few NVDEC engines. With two
# processes, one crops frames while the other decodes.
NUM_ON_GPU = 2

Collate = Callable[[Sequence[Any]], Any]


@dataclass
class Loader:
    """Batches of a data set; each iteration starts at the first.

    A video whose decoder crashes or hangs is a `Failure` of its batch.

    Args:
        order: keys of the samples of each batch.
        collate: from the samples of a batch to the batch.
        decoding: how many processes decode, and how long opening or reading a video may take. With
            0, or for a single batch, this process decodes, and a crash ends it.
        process: this process; those of its machine share the cores.
        pin_memory: whether to pin the `clips` of each batch.
    """

    dataset: RecordDataset
    order: Sequence[Sequence[Any]] | TrainingOrder
    collate: Collate
    _: KW_ONLY
    decoding: Decoding
    process: Process = ALONE
    pin_memory: bool = False

    def __post_init__(self) -> None:
        wanted = num_workers(self.decoding, self.process.local_world_size)
        self.num_workers = min(wanted, len(self.order) - 1)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Generator[Any, None, None]:
        if self.num_workers < 1:
            for keys in self.order:
                yield self._finished(self.collate([self.dataset[key] for key in keys]))
            return
        with contextlib.closing(prefetch(self._read_ahead(), 1)) as batches:
            yield from batches

    def _read_ahead(self) -> Generator[Any, None, None]:
        """The batches in order; None now and then, when nothing has happened."""
        done: dict[int, Any] = {}
        first = 0  # the batch that is yielded next

        def jobs() -> Iterator[list[tuple[Any, Any]] | None]:
            for number, keys in enumerate(self.order):
                while number >= first + NUM_JOBS * self.num_workers:
                    yield None  # batches that wait for the first one take memory
                yield [(self.dataset.record(key), key) for key in keys]

        dataset = copy.copy(self.dataset)
        dataset.records = ()  # each job brings its own
        work = partial(_read_batch, dataset, self.collate)
        limit_sec = 2 * self.decoding.deadline_sec
        with Workers(work, self.num_workers, limit_sec=limit_sec) as workers:
            for result in workers.results(jobs()):
                if result is None:
                    yield None
                    continue
                number, batch = result
                done[number] = batch
                while first in done:
                    yield self._finished(done.pop(first))
                    first += 1

    def _finished(self, batch: Any) -> Any:
        if self.pin_memory:
            batch.clips = batch.clips.pin_memory()
        return batch


def _read_batch(
    dataset: RecordDataset,
    collate: Collate,
    items: Sequence[tuple[Any, Any]],
    deaths: Mapping[int, Death],
    report: Report,
) -> Any:
    """Reads the records of a batch in a decoding process."""
    samples = []
    for i, (record, key) in enumerate(items):
        report.working(i)
        death = deaths.get(i)
        samples.append(Failure.of_death(record, death) if death else dataset.read(record, key))
    report.working(len(items))
    return collate(samples)


def training_loader(
    dataset: RecordDataset,
    order: TrainingOrder,
    *,
    clip_shape: tuple[int, int, int, int],
    decoding: Decoding,
) -> Loader:
    """Batches of `order`, as the data set collates them; `clip_shape` is [T, H, W, C]."""
    return Loader(
        dataset,
        order,
        partial(dataset.collate, clip_shape=clip_shape),
        decoding=decoding,
        process=order.process,
        pin_memory=order.process.device.type == "cuda",
    )


def evaluation_loader(
    dataset: RecordDataset, decoding: Decoding, process: Process = ALONE
) -> Loader:
    """One sample or `Failure` for each record of a process: disjoint, complete, no padding."""
    order = [[index] for index in range(process.rank, len(dataset), process.world_size)]
    return Loader(dataset, order, itemgetter(0), decoding=decoding, process=process)


def start_decoding(decoding: Decoding) -> None:
    """Lets decoding processes import what they need, for seconds, while the caller does more."""
    if decoding.num_workers != 0:
        start_fork_server(__name__)  # which imports what extraction needs, too


def readable(samples: Iterable[Sample | Failure], failures: list[Failure]) -> Iterator[Sample]:
    """The samples that could be read; the others are appended to `failures`."""
    for sample in samples:
        if isinstance(sample, Failure):
            failures.append(sample)
        else:
            yield sample


def num_workers(decoding: Decoding, processes: int) -> int:
    """Decoding processes of each of `processes` processes on this machine.

    As configured, else the CPU cores that the machine grants, shared by the processes. On a GPU,
    of which each process has its own, `NUM_ON_GPU`.
    """
    if decoding.num_workers is not None:
        return decoding.num_workers
    if decoding.backend == "torchcodec-cuda":
        return NUM_ON_GPU
    return max(1, usable_cores() // processes)
