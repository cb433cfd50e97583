"""The order of training samples: seeded and resumable.

It is a pure function of (seed, epoch), whatever the number of processes: step k of an epoch takes
the k-th `global_batch_size` videos of that epoch's permutation, whoever reads them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from hiera_video.errors import ConfigError, counted
from hiera_video.runtime.distributed import ALONE, Process


@dataclass
class TrainingOrder:
    """Yields, for one process, the keys of each micro-batch from `start_step` on.

    A key is (epoch, index of the video, which draw of it in the epoch, from 0).

    Each step gives `accumulation_steps` micro-batches, of equal size but in the last, partial step
    of an epoch, where some may be empty; every process yields equally many.

    Args:
        num_videos: length of the data set.
        global_batch_size: videos in a step, over all processes.
        accumulation_steps: micro-batches of a step for each process.
        start_step: first step to yield.
        end_step: the step behind the last.
        seed: decides, with the epoch, the order.
        process: this process, whose share of each step is yielded.
        weights: relative probability of each video; with it, an epoch draws with replacement.

    Raises:
        ConfigError: the batch does not divide into equal parts.
    """

    num_videos: int
    _: KW_ONLY
    global_batch_size: int
    accumulation_steps: int
    start_step: int
    end_step: int
    seed: int
    process: Process = ALONE
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        size, processes = self.global_batch_size, self.process.world_size
        parts = processes * self.accumulation_steps
        if size % parts:
            raise ConfigError(
                f"global_batch_size={size} does not divide by {counted(processes, 'process')} x "
                f"accumulation_steps={self.accumulation_steps}; the nearest that does is "
                f"{max(1, round(size / parts)) * parts} (train.global_batch_size and "
                "train.accumulation_steps in commands)"
            )

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
            parts = np.array_split(group, self.process.world_size * self.accumulation_steps)
            first = self.process.rank * self.accumulation_steps
            for part in parts[first : first + self.accumulation_steps]:
                yield [(epoch, int(index), int(draw)) for index, draw in part]

    def _order(self, epoch: int) -> np.ndarray:
        """Int64 [num_videos, 2]: index, and which draw of that index."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            order = rng.permutation(self.num_videos)
            return np.stack([order, np.zeros_like(order)], axis=1)
        probabilities = self.weights / self.weights.sum()
        order = rng.choice(self.num_videos, size=self.num_videos, p=probabilities)
        drawn: Counter[int] = Counter()
        draws = np.empty_like(order)
        for place, index in enumerate(order.tolist()):
            draws[place] = drawn[index]
            drawn[index] += 1
        return np.stack([order, draws], axis=1)


def steps_per_epoch(num_videos: int, global_batch_size: int) -> int:
    """Steps of a pass over the videos; a partial last batch is a step too."""
    return -(-num_videos // global_batch_size)


def balanced_weights(labels: Sequence[tuple[int, ...]], num_classes: int) -> np.ndarray:
    """Float64 [num_videos]: probability weights that make every class equally likely.

    A video of several classes weighs as its rarest one.
    """
    counts = np.bincount([c for video in labels for c in video], minlength=num_classes)
    return np.array([max((1 / counts[c] for c in video), default=0.0) for video in labels])
