"""A training run from its folder to its weights: what all training commands share."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from hiera_video.data.order import TrainingOrder, steps_per_epoch
from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.weights import save_weights
from hiera_video.runtime.distributed import Process, from_main, sum_over_processes
from hiera_video.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from hiera_video.training.loop import Batch, LossFunction, StopSignal, train_steps
from hiera_video.training.optim import build_optimizer, learning_rate, parameter_groups
from hiera_video.training.run_folder import ConsoleLine, FailureLimit, RunReport, start_run

logger = logging.getLogger(__name__)


class LoopSettings(Protocol):
    """How long and in which portions; `hiera_video.config.LoopConfig` says what each means."""

    @property
    def epochs(self) -> float: ...
    @property
    def warmup_epochs(self) -> float: ...
    @property
    def global_batch_size(self) -> int: ...
    @property
    def accumulation_steps(self) -> int: ...
    @property
    def num_repeats(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def compile(self) -> bool: ...
    @property
    def checkpoint_every(self) -> float: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def max_nonfinite_steps(self) -> int: ...


class OptimSettings(Protocol):
    """`hiera_video.config.OptimConfig` says what each means."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup_lr(self) -> float: ...
    @property
    def final_lr(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def layer_decay(self) -> float: ...
    @property
    def clip_grad(self) -> float | None: ...


Model = Hiera | MaskedAutoencoderHiera | ActionDetector


def open_run(
    folder: Path,
    process: Process,
    *,
    check_config: Callable[[Path], None],
    config_yaml: str,
    data: dict[str, Any],
    dry_run: bool,
) -> Path | None:
    """Makes or finds the run folder; returns the checkpoint to go on from, if there is one.

    Args:
        check_config: raises if the configuration saved at that path is not the present one.
        data: as for `start_run`.

    Raises:
        ValueError: the folder holds a run that cannot go on.
    """
    latest = from_main(latest_checkpoint(folder / "checkpoints"))
    has_weights = (folder / "weights").exists()
    if latest or has_weights:
        check_config(folder / "config.yaml")  # a failed start leaves no run
    if has_weights and not latest:
        raise ValueError(
            f"{folder} holds a finished run without checkpoints: choose another run_dir"
        )
    if not dry_run:
        start_run(folder, process, config_yaml, data, resumes=latest is not None)
    return latest


def optimizer_of(model: Model, optim: OptimSettings) -> torch.optim.Optimizer:
    """The optimizer over the parameters of a model that learn."""
    groups = parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        layer_ids=model.layer_ids(),
        no_weight_decay=model.no_weight_decay(),
    )
    return build_optimizer(optim.optimizer, groups, lr=optim.lr, betas=optim.betas)


@dataclass(frozen=True)
class Schedule:
    """How long a run is. Effective epochs count each clip of a video: an epoch of a run with R
    repeats is 1/R of a pass over the videos."""

    settings: LoopSettings
    num_videos: int
    pass_steps: int  # of a pass over the videos
    end_step: int
    lr_at: Callable[[int], float]

    @classmethod
    def plan(cls, num_videos: int, settings: LoopSettings, optim: OptimSettings) -> Schedule:
        pass_steps = steps_per_epoch(num_videos, settings.global_batch_size)
        end_step = math.ceil(settings.epochs / settings.num_repeats * pass_steps)
        lr_at = partial(
            learning_rate,
            total_steps=end_step,
            warmup_steps=round(settings.warmup_epochs / settings.num_repeats * pass_steps),
            peak=optim.lr,
            first=optim.warmup_lr,
            last=optim.final_lr,
        )
        return cls(settings, num_videos, pass_steps, end_step, lr_at)

    def every(self, passes: float) -> int:
        """Steps of so many passes over the videos, at least 1."""
        return max(1, round(passes * self.pass_steps))

    def order(self, process: Process, start_step: int = 0, weights: Any = None) -> TrainingOrder:
        """Which videos this process reads in each step from `start_step` on.

        Raises:
            ValueError: the batch does not divide into equal parts.
        """
        return TrainingOrder(
            self.num_videos,
            global_batch_size=self.settings.global_batch_size,
            accumulation_steps=self.settings.accumulation_steps,
            start_step=start_step,
            end_step=self.end_step,
            seed=self.settings.seed,
            rank=process.rank,
            world_size=process.world_size,
            weights=weights,
        )

    def describe(self, process: Process, optim: OptimSettings, unit: str = "videos") -> str:
        s = self.settings
        micro = s.global_batch_size // (process.world_size * s.accumulation_steps)
        return (
            f"{self.end_step} steps of {s.global_batch_size} {unit} x {s.num_repeats} clips = "
            f"{s.global_batch_size * s.num_repeats} clips: {process.world_size} processes x "
            f"{s.accumulation_steps} parts x {micro} {unit}; peak lr {optim.lr:g} "
            f"({optim.optimizer}, {s.precision}, {process.device})"
        )


def train_to_the_end(
    model: Model,
    loss: LossFunction,
    optimizer: torch.optim.Optimizer,
    batches_from: Callable[[int], Iterable[Batch]],
    *,
    folder: Path,
    latest: Path | None,
    process: Process,
    stop: StopSignal,
    schedule: Schedule,
    clip_grad: float | None,
    max_failed_frac: float,
    meta: Mapping[str, Any],
    average: AveragedModel | None = None,
    evaluate: Callable[[Model, RunReport, int], None] | None = None,
    evaluate_every: float | None = None,
    as_json: bool = False,
) -> int:
    """Trains from the checkpoint `latest`, or from step 0, and writes weights; the exit code.

    Args:
        batches_from: the batches of this process from a step on.
        meta: for the config.json of the weights, see `save_weights`.
        evaluate: called on all processes with the model to evaluate, after the last step and,
            where it is set, every `evaluate_every` passes; reports under the kind "val".
    """
    settings, end_step = schedule.settings, schedule.end_step
    start_step = load_checkpoint(latest, model, optimizer, average) if latest else 0
    if latest:
        logger.info("resumed from %s", latest)
    if process.is_main and start_step < end_step and (folder / "weights").exists():
        logger.info("the run goes on: %s, the end of a shorter one, goes", folder / "weights")
        shutil.rmtree(folder / "weights")  # `latest` holds the same
    if settings.compile:
        model.compile()
    wrapped = DistributedDataParallel(model) if process.world_size > 1 else model
    trained: Model = model if average is None else average.module  # type: ignore[assignment]

    checkpoints = folder / "checkpoints"
    checkpoint_steps = schedule.every(settings.checkpoint_every)
    evaluate_steps = schedule.every(evaluate_every) if evaluate_every else None
    console = ConsoleLine(end_step, process.device)
    limit = FailureLimit(max_failed_frac)
    nonfinite = 0

    def evaluation_due(step: int) -> bool:
        return step == end_step or bool(evaluate_steps and step % evaluate_steps == 0)

    with ExitStack() as stack:
        report = stack.enter_context(RunReport(folder, process, start_step))
        # A run that was killed between saving and evaluating makes up for it.
        if evaluate and start_step and evaluation_due(start_step):
            missing = torch.tensor(float(process.is_main and not report.has(start_step, "val")))
            if sum_over_processes(missing):
                evaluate(trained, report, start_step)
        for done in train_steps(
            wrapped,
            loss,
            optimizer,
            iter(batches_from(start_step)),
            start_step=start_step,
            end_step=end_step,
            accumulation_steps=settings.accumulation_steps,
            lr_at=schedule.lr_at,
            clip_grad=clip_grad,
            bf16=settings.precision == "bf16",
            seed=settings.seed,
            process=process,
            average=average,
            stop_requested=stop.requested,
        ):
            step, last = done.step, done.step == end_step
            report.step(done)
            console.add(done)
            limit.add(done, settings.num_repeats)
            nonfinite = nonfinite + 1 if done.skipped and done.num_targets else 0
            if nonfinite >= settings.max_nonfinite_steps:
                raise RuntimeError(
                    f"{nonfinite} steps in a row had a non-finite gradient: lower optim.lr, or "
                    "train with train.precision=fp32"
                )
            if last or step % settings.log_every == 0 or step == start_step + 1:
                logger.info(console.take(done))
            if last or done.stop or step % checkpoint_steps == 0:
                save_checkpoint(
                    checkpoints,
                    step,
                    model,
                    optimizer,
                    average,
                    write_weights=lambda path: save_weights(path, trained, meta=meta),
                )
                if process.is_main:
                    prune_checkpoints(checkpoints, settings.keep_checkpoints)
            if done.stop and not last:
                logger.info("stopped by SIGTERM; saved step %d of %d", step, end_step)
                return 143
            if evaluate and evaluation_due(step):
                evaluate(trained, report, step)

        if process.is_main:
            save_weights(folder / "weights", trained, meta=meta)
            logger.info("trained %d steps; weights are in %s", end_step, folder / "weights")
            if as_json:
                print(json.dumps({"steps": end_step, "weights": str(folder / "weights")}))
        # Together: torchrun ends all processes when one has left with another code than 0.
        failed = torch.tensor(float((folder / "failures.jsonl").exists()))
        return 3 if sum_over_processes(failed) else 0
