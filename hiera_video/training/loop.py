"""The one training step that pretraining, fine-tuning and detection share.

Everything random in a step is seeded by (seed, step, rank): a resumed run is the same to the bit.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from hiera_video.data.batches import ClipBatch, DetectionBatch, Failure, InstanceBatch
from hiera_video.runtime.distributed import Process, sum_over_processes
from hiera_video.runtime.precision import autocast
from hiera_video.settings.training import Loop
from hiera_video.training.optim import set_learning_rate

LossFunction = Callable[[nn.Module, Any, np.random.Generator], Tensor]
"""(model, batch, random numbers) -> the sum of the losses of the batch's targets, float32."""
Batch = ClipBatch | DetectionBatch | InstanceBatch


@dataclass(frozen=True)
class StepReport:
    """The result of one step: counts and the loss of all processes, names and failures of this."""

    step: int  # steps done, this one included
    loss: float  # mean over the targets of the step (clips, boxes), NaN without any
    lr: float
    grad_norm: float  # before clipping
    num_clips: int
    num_targets: int  # clips, in detection boxes
    num_failed: int  # videos or key frames
    num_dropped: int  # targets that a crop left nothing of
    skipped: bool  # the gradient was not finite, or there was no target
    names: list[str]  # of the videos of this process
    failures: list[Failure]  # of this process
    stop: bool  # a process was asked to stop
    data_sec: float  # of step_sec, waiting for data
    step_sec: float

    @property
    def not_finite(self) -> bool:
        """Whether the step was skipped for its loss or gradient."""
        return self.skipped and self.num_targets > 0


def train_steps(
    model: nn.Module,
    loss_function: LossFunction,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    *,
    start_step: int,
    end_step: int,
    loop: Loop,
    lr_at: Callable[[int], float],
    clip_grad: float | None,
    process: Process,
    average: AveragedModel | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport]:
    """Trains from `start_step` to `end_step`, reporting each step after it was taken.

    A step takes `loop.accumulation_steps` batches. The loss is the mean over the targets (clips, in
    detection boxes) that could be read, over all processes, however unevenly they are spread. A
    step whose gradient is not finite leaves weights and optimizer untouched.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = process.device
    for step in range(start_step, end_step):
        started = time.perf_counter()
        group = list(islice(batches, loop.accumulation_steps))
        waited = time.perf_counter() - started
        seeds = np.random.SeedSequence([loop.seed, step, process.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        rng = np.random.default_rng(seeds)
        counts = torch.tensor(
            [
                sum(len(batch) for batch in group),
                sum(batch.num_targets for batch in group),
                sum(batch.num_dropped for batch in group),
                sum(len(batch.failures) for batch in group),
                stop_requested(),
            ],
            dtype=torch.float64,
        )
        if process.watch is not None:
            process.watch.step = step + 1
        counts = sum_over_processes(counts)  # on the host: what follows needs no device for it
        num_clips, num_targets, num_dropped, num_failed, num_stops = map(int, counts.tolist())

        lr = lr_at(step)
        set_learning_rate(optimizer, lr)
        # DDP averages over processes; the loss is a mean over targets.
        scale = process.world_size / max(num_targets, 1)
        loss_sum = torch.zeros((), device=device)
        for i, batch in enumerate(group):
            is_last = i == len(group) - 1
            is_ddp = isinstance(model, DistributedDataParallel)
            with model.no_sync() if is_ddp and not is_last else nullcontext():  # type: ignore[operator]
                with autocast(device, process.precision):
                    loss = loss_function(model, batch, rng)
                if not len(batch):
                    loss = loss * 0.0
                (loss * scale).backward()
            loss_sum += loss.detach()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
        loss_sum = sum_over_processes(loss_sum)
        # The step's only wait for the device: whether to step depends on the norm.
        loss_value, grad_norm = torch.stack([loss_sum, norm.to(loss_sum)]).tolist()
        skipped = num_targets == 0 or not (math.isfinite(loss_value) and math.isfinite(grad_norm))
        if not skipped:
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
        optimizer.zero_grad(set_to_none=True)
        yield StepReport(
            step=step + 1,
            loss=loss_value / num_targets if num_targets else math.nan,
            lr=lr,
            grad_norm=grad_norm,
            num_clips=num_clips,
            num_targets=num_targets,
            num_failed=num_failed,
            num_dropped=num_dropped,
            skipped=skipped,
            names=[name for batch in group for name in batch.names],
            failures=[failure for batch in group for failure in batch.failures],
            stop=num_stops > 0,
            data_sec=waited,
            step_sec=time.perf_counter() - started,
        )
