"""Loaders: seeded and resumable order for training, exact sharding for evaluation.

The order of training is a pure function of (seed, epoch), whatever the number of processes: step k
of an epoch takes the k-th `global_batch_size` videos of that epoch's permutation, whoever
reads them.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from hiera_video.data.batches import (
    Failure,
    Sample,
    collate_boxed_clips,
    collate_clips,
    only_sample,
)
from hiera_video.data.datasets import (
    EvaluationViews,
    KeyframeClips,
    TrainingClips,
    TrainingKeyframes,
)
from hiera_video.errors import ConfigError
from hiera_video.settings.video import Decoding


class TrainingOrder(Sampler[list[tuple[int, int, int]]]):
    """Yields, for one process, the keys of each micro-batch from `start_step` on.

    A key is (epoch, index of the video, which draw of it in the epoch, from 0).

    Each step gives `accumulation_steps` micro-batches, of equal size but in the last, partial step
    of an epoch, where some may be empty; every process yields equally many.

    Args:
        num_videos: length of the data set.
        global_batch_size: videos in a step, over all processes.
        accumulation_steps: micro-batches of a step for each process.
        start_step, end_step: steps to yield.
        seed: decides, with the epoch, the order.
        rank, world_size: of this process.
        weights: relative probability of each video; with it, an epoch draws with replacement.

    Raises:
        ConfigError: the batch does not divide into equal parts.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        global_batch_size: int,
        accumulation_steps: int,
        start_step: int,
        end_step: int,
        seed: int,
        rank: int,
        world_size: int,
        weights: np.ndarray | None = None,
    ) -> None:
        parts = world_size * accumulation_steps
        if global_batch_size % parts:
            raise ConfigError(
                f"train.global_batch_size={global_batch_size} does not divide by {world_size} "
                f"processes x train.accumulation_steps={accumulation_steps}; the nearest that does "
                f"is {max(1, round(global_batch_size / parts)) * parts}"
            )
        self.num_videos, self.global_batch_size = num_videos, global_batch_size
        self.accumulation_steps, self.parts = accumulation_steps, parts
        self.start_step, self.end_step = start_step, end_step
        self.seed, self.rank = seed, rank
        self.weights = None if weights is None else weights / weights.sum()

    def __len__(self) -> int:
        return (self.end_step - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        steps = steps_per_epoch(self.num_videos, self.global_batch_size)
        order_of, order = -1, np.empty((0, 2), dtype=np.int64)
        for step in range(self.start_step, self.end_step):
            epoch, k = divmod(step, steps)
            if epoch != order_of:
                order_of, order = epoch, self._order(epoch)
            group = order[k * self.global_batch_size : (k + 1) * self.global_batch_size]
            parts = np.array_split(group, self.parts)
            first = self.rank * self.accumulation_steps
            for part in parts[first : first + self.accumulation_steps]:
                yield [(epoch, int(index), int(draw)) for index, draw in part]

    def _order(self, epoch: int) -> np.ndarray:
        """Int64 [num_videos, 2]: index, and which draw of that index."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            order = rng.permutation(self.num_videos)
            return np.stack([order, np.zeros_like(order)], axis=1)
        order = rng.choice(self.num_videos, size=self.num_videos, p=self.weights)
        drawn: Counter[int] = Counter()
        draws = np.empty_like(order)
        for place, index in enumerate(order.tolist()):
            draws[place] = drawn[index]
            drawn[index] += 1
        return np.stack([order, draws], axis=1)


class EvaluationOrder(Sampler[int]):
    """Every `world_size`-th record for this process: disjoint, complete, nothing padded in."""

    def __init__(self, num_videos: int, *, rank: int, world_size: int) -> None:
        self.indices = range(rank, num_videos, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def steps_per_epoch(num_videos: int, global_batch_size: int) -> int:
    """Steps of a pass over the videos; a partial last batch is a step too."""
    return -(-num_videos // global_batch_size)


def balanced_weights(labels: Sequence[tuple[int, ...]], num_classes: int) -> np.ndarray:
    """Float64 [num_videos]: probability weights that make every class equally likely.

    A video of several classes weighs as its rarest one.
    """
    counts = np.bincount([c for video in labels for c in video], minlength=num_classes)
    return np.array([max((1 / counts[c] for c in video), default=0.0) for video in labels])


def training_loader(
    dataset: TrainingClips | TrainingKeyframes,
    order: TrainingOrder,
    *,
    clip_shape: tuple[int, int, int, int],
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    """Batches of `order`: `ClipBatch` or `DetectionBatch`; `clip_shape` is [T, H, W, C]."""
    collate: Any = collate_clips if isinstance(dataset, TrainingClips) else collate_boxed_clips
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=partial(collate, clip_shape=clip_shape),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        prefetch_factor=2 if num_workers else None,
    )


def evaluation_loader(
    dataset: EvaluationViews | KeyframeClips,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int,
) -> DataLoader[Any]:
    """One sample or `Failure` a video or key frame, in the order of `EvaluationOrder`."""
    return DataLoader(
        dataset,
        sampler=EvaluationOrder(len(dataset), rank=rank, world_size=world_size),
        batch_size=1,
        collate_fn=only_sample,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        prefetch_factor=2 if num_workers else None,
    )


def readable(samples: Iterable[Sample | Failure], failures: list[Failure]) -> Iterator[Sample]:
    """The samples that could be read; the others are appended to `failures`."""
    for sample in samples:
        if isinstance(sample, Failure):
            failures.append(sample)
        else:
            yield sample


def num_workers(decoding: Decoding, processes: int) -> int:
    """Decoding processes of each of `processes` processes on this machine, as configured."""
    if decoding.num_workers is not None:
        return decoding.num_workers
    return default_num_workers(processes)


def default_num_workers(processes: int) -> int:
    """CPU cores that this machine grants, shared by `processes` processes."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (granted or 1) // processes)


def _start_worker(_: int) -> None:
    # One process decodes with one thread: more would only compete for the cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C and SIGTERM reach the whole group of processes (SIGTERM under torchrun and Slurm), but
    # are the main process's to handle: it still needs this one until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
