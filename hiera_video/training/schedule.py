"""The length of a run and its learning rates."""

import logging
import math
from functools import partial

from hiera_video.data.order import steps_per_epoch
from hiera_video.errors import counted
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import Loop, Optim
from hiera_video.training.optim import learning_rate

logger = logging.getLogger(__name__)


class Schedule:
    """The length of a run and its learning rates.

    Effective epochs count each clip of a video: an epoch of a run with R repeats is 1/R of a pass
    over the videos.
    """

    def __init__(self, num_videos: int, loop: Loop, optim: Optim) -> None:
        self.loop, self.optim, self.num_videos = loop, optim, num_videos
        self.pass_steps = steps_per_epoch(num_videos, loop.global_batch_size)
        self.end_step = math.ceil(loop.epochs / loop.num_repeats * self.pass_steps)
        self.lr_at = partial(
            learning_rate,
            total_steps=self.end_step,
            warmup_steps=round(loop.warmup_epochs / loop.num_repeats * self.pass_steps),
            peak=optim.lr,
            first=optim.warmup_lr,
            last=optim.final_lr,
            decay_at=optim.decay_at,
        )

    def every(self, passes: float) -> int:
        """Steps of so many passes over the videos, at least 1."""
        return max(1, round(passes * self.pass_steps))

    def describe(self, process: Process, unit: str) -> str:
        """What a step has.

        Args:
            unit: what a record is, in the singular.
        """
        loop, processes, parts = self.loop, process.world_size, self.loop.accumulation_steps
        size = min(loop.global_batch_size, self.num_videos)
        clips, last = counted(loop.num_repeats, "clip"), self.num_videos % size
        return (
            f"{counted(self.end_step, 'step')} of {counted(size, unit)} x {clips} = "
            f"{counted(size * loop.num_repeats, 'clip')}"
            + (f" (the last of each pass: {counted(last, unit)})" if last else "")
            + f": {counted(processes, 'process')} x {counted(parts, 'part')} x "
            f"{counted(-(-size // (processes * parts)), unit)}; peak lr {self.optim.lr:g} "
            f"({self.optim.optimizer}, {process.precision}, {process.device})"
        )

    def check_batch(self, unit: str) -> None:
        """Warns if no step has as many records as the learning rate is for."""
        size, present = self.loop.global_batch_size, self.num_videos
        if size > present:
            logger.warning(
                "train.global_batch_size=%d is larger than the training list of %s: each step has "
                "the whole list, and optim.lr=%g is for batches of %d; write "
                "train.global_batch_size=%d and optim.lr=%.1e, or choose both yourself",
                size,
                counted(present, unit),
                self.optim.lr,
                size,
                present,
                self.optim.lr * present / size,
            )
