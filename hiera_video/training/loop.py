"""The one training step that pretraining, fine-tuning and detection share.

Everything random in a step is seeded by (seed, step, rank): a resumed run is the same to the bit.

On a GPU the host never waits inside a step. Whether weights change is decided on the device, and
what a step gave is read when the next one has been launched.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hiera_video.data.batches import ClipBatch, DetectionBatch, Failure, InstanceBatch
from hiera_video.runtime.compiler import uncompiled
from hiera_video.runtime.distributed import Process, sum_over_processes
from hiera_video.runtime.precision import autocast
from hiera_video.settings.training import Loop
from hiera_video.training.optim import (
    MovingAverage,
    set_learning_rate,
    start_momentum,
    step_if_finite,
)

MAX_GRAPHS = 4  # that are compiled for sizes of batches, each in a minute or two

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
    step_sec: float  # since the caller asked for this step
    loss_scale: float | None = None  # of the step, in float16

    @property
    def not_finite(self) -> bool:
        """Whether the step was skipped for its loss or gradient."""
        return self.skipped and self.num_targets > 0

    @property
    def overflow(self) -> bool:
        """Whether the gradient was too large for float16 at a scale that can still be lowered."""
        can_be_lowered = self.loss_scale is not None and self.loss_scale > 1
        return self.not_finite and can_be_lowered and math.isfinite(self.loss)


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
    average: MovingAverage | None = None,
    scaler: torch.amp.GradScaler | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    is_due: Callable[[int], bool] = lambda step: False,
) -> Iterator[StepReport]:
    """Trains from `start_step` to `end_step`, reporting each step after it was taken.

    A step takes `loop.accumulation_steps` batches. The loss is the mean over the targets (clips, in
    detection boxes) that could be read, over all processes, however unevenly they are spread. A
    step whose gradient is not finite leaves weights and optimizer untouched.

    On a GPU the report of a step may come when the next one has been launched already.

    Args:
        optimizer: fused.
        scaler: of the loss, for float16; its scale falls with each gradient that is not finite.
        is_due: whether the caller needs the state after so many steps. Like the last step, and one
            at which a process was asked to stop, it is reported before another is launched.
    """
    start_momentum(optimizer)
    step_of = _Steps(model, loss_function, optimizer, loop, clip_grad, process, average, scaler)
    launched: _Launched | None = None
    asked = time.perf_counter()
    waited = 0.0

    def report(of: _Launched) -> StepReport:
        values = of.values()
        return replace(of.report, **values, data_sec=waited, step_sec=time.perf_counter() - asked)

    for step in range(start_step, end_step):
        began = time.perf_counter()
        group = list(islice(batches, loop.accumulation_steps))
        waited += time.perf_counter() - began
        earlier, launched = launched, step_of(step, group, lr_at(step), stop_requested())
        at_once = not _runs_ahead(process.device) or launched.report.stop
        at_once = at_once or step + 1 == end_step or is_due(step + 1)
        for ready in (earlier, launched if at_once else None):
            if ready is not None:
                yield report(ready)
                asked, waited = time.perf_counter(), 0.0
        if at_once:
            launched = None


def _runs_ahead(device: torch.device) -> bool:
    """Whether the host goes on while the device computes."""
    return device.type == "cuda"


class _Launched:
    """A step that was launched.

    Args:
        report: what the host knows of it.
        results: [3 or 4], on the device: sum of losses, norm, whether it is skipped, loss scale.
    """

    def __init__(self, report: StepReport, results: Tensor) -> None:
        self.report = report
        self._results = results.to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.Event() if results.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def values(self) -> dict[str, Any]:
        """The fields of the report that the device knows; waits for it."""
        if self._copied is not None:
            self._copied.synchronize()
        loss_sum, grad_norm, skipped, *scale = self._results.tolist()
        num_targets = self.report.num_targets
        return {
            "loss": loss_sum / num_targets if num_targets else math.nan,
            "grad_norm": grad_norm,
            "skipped": num_targets == 0 or bool(skipped),
            "loss_scale": scale[0] if scale else None,
        }


class _CopyStream:
    """Copies the clips of batches to a GPU beside its other work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            clips = batch.clips.to(self.device, non_blocking=True)
        work = torch.cuda.current_stream(self.device)
        work.wait_stream(self._stream)
        clips.record_stream(work)  # its memory is used again after the work on it
        return replace(batch, clips=clips)


@dataclass
class _Steps:
    """Launches steps; the fields are arguments of `train_steps`."""

    model: nn.Module
    loss_function: LossFunction
    optimizer: torch.optim.Optimizer
    loop: Loop
    clip_grad: float | None
    process: Process
    average: MovingAverage | None
    scaler: torch.amp.GradScaler | None

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.to_device = _CopyStream(self.process.device)
        self.compiled_sizes = set[int]()

    def __call__(self, step: int, group: list[Batch], lr: float, stop: bool) -> _Launched:
        process, device = self.process, self.process.device
        seeds = np.random.SeedSequence([self.loop.seed, step, process.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        rng = np.random.default_rng(seeds)
        counts = torch.tensor(
            [
                sum(len(batch) for batch in group),
                sum(batch.num_targets for batch in group),
                sum(batch.num_dropped for batch in group),
                sum(len(batch.failures) for batch in group),
                stop,
            ],
            dtype=torch.float64,
        )
        if process.watch is not None:
            process.watch.step = step + 1
        counts = sum_over_processes(counts)  # on the host: what follows needs no device for it
        num_clips, num_targets, num_dropped, num_failed, num_stops = map(int, counts.tolist())

        set_learning_rate(self.optimizer, lr)
        # DDP averages over processes; the loss is a mean over targets.
        factor = process.world_size / max(num_targets, 1)
        loss_sum = torch.zeros((), device=device)
        for i, batch in enumerate(group):
            loss_sum += self._backward(batch, rng, factor, is_last=i == len(group) - 1)
        results = self._update(sum_over_processes(loss_sum), is_empty=num_targets == 0)
        report = StepReport(
            step=step + 1,
            loss=math.nan,
            lr=lr,
            grad_norm=math.nan,
            num_clips=num_clips,
            num_targets=num_targets,
            num_failed=num_failed,
            num_dropped=num_dropped,
            skipped=False,
            names=[name for batch in group for name in batch.names],
            failures=[failure for batch in group for failure in batch.failures],
            stop=num_stops > 0,
            data_sec=0.0,
            step_sec=0.0,
        )
        return _Launched(report, results)

    def _backward(
        self, batch: Batch, rng: np.random.Generator, factor: float, *, is_last: bool
    ) -> Tensor:
        """Adds to the gradients; returns the sum of the losses of the batch."""
        model = self.model
        is_ddp = isinstance(model, DistributedDataParallel)
        with model.no_sync() if is_ddp and not is_last else nullcontext():  # type: ignore[operator]
            with autocast(self.process.device, self.process.precision), self._graphs_for(batch):
                loss = self.loss_function(model, self.to_device(batch), rng)
            if not len(batch):
                loss = loss * 0.0
            scaled = loss * factor
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        return loss.detach()

    def _graphs_for(self, batch: Batch) -> AbstractContextManager[None]:
        """Lets a compiled model compile a graph for the size of the batch, or runs it as it is.

        Batches in which videos could not be read have many sizes.
        """
        if not self.loop.compile:
            return nullcontext()
        if len(self.compiled_sizes) < MAX_GRAPHS:
            self.compiled_sizes.add(len(batch.clips))
        is_compiled = len(batch.clips) in self.compiled_sizes
        return uncompiled(not is_compiled)

    def _update(self, loss_sum: Tensor, *, is_empty: bool) -> Tensor:
        """Takes the step, unless it is empty or not finite; returns the results of `_Launched`."""
        optimizer, scaler = self.optimizer, self.scaler
        scale = [] if scaler is None else [scaler.scale(torch.ones_like(loss_sum))]
        if scaler is not None and not is_empty:
            scaler.unscale_(optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients).to(loss_sum)
        skipped = 1 - (loss_sum.isfinite() & norm.isfinite()).to(loss_sum)
        if not is_empty:
            if self.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
            step_if_finite(optimizer, skipped)
            if self.average is not None:
                self.average.update(self.model, skipped)
            if scaler is not None:
                scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss_sum, norm, skipped, *scale])
