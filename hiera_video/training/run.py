"""A training run from its folder to its weights: what all training commands share."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hiera_video.data.checks import check_videos, warn_of_still_model
from hiera_video.data.loader import start_decoding, training_loader
from hiera_video.data.order import TrainingOrder
from hiera_video.data.videos.records import VideoList
from hiera_video.errors import ConfigError, UserError, WeightsError, configured, counted
from hiera_video.files import locked
from hiera_video.models.card import ModelCard
from hiera_video.models.checkpoint import check_weights_folder, not_finite, shorten
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.saving import save_model
from hiera_video.models.segmenter import InstanceSegmenter
from hiera_video.runtime.compiler import cache_folder, uncompiled
from hiera_video.runtime.distributed import (
    Process,
    any_process,
    barrier,
    first_process_first,
    from_main,
    on_main,
    process_group,
)
from hiera_video.runtime.dry_run import in_the_way
from hiera_video.runtime.memory import batches_that_fit
from hiera_video.runtime.results import exit_code, print_json, print_lines
from hiera_video.runtime.signals import STOPPED, noting_stops
from hiera_video.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_facts,
)
from hiera_video.training.loop import Batch, LossFunction, StepReport, train_steps
from hiera_video.training.memory import steps_that_fit
from hiera_video.training.optim import MovingAverage, build_optimizer
from hiera_video.training.plan import Plan
from hiera_video.training.run_folder import (
    DIVERGED,
    RunReport,
    allowed_failures,
    check_failures,
    check_same_run,
    console_line,
    facts_of,
    start_run,
)
from hiera_video.training.schedule import Schedule
from hiera_video.training.task import Task, TaskSettings
from hiera_video.training.times import Lap, Times
from hiera_video.training.writer import CheckpointWriter

logger = logging.getLogger(__name__)


def train(
    make_task: Callable[[Any], Task],
    settings: TaskSettings,
    *,
    dry_run: bool,
    as_json: bool,
    measured: bool = False,
) -> int:
    """Trains to the end, or until stopped, and writes weights; returns the exit code.

    A run that is found in the folder is resumed. With `dry_run` everything is done up to the first
    batch, and nothing is written.

    Args:
        make_task: from the settings to the task, whose lists it reads.
        measured: whether a dry run takes a few steps, to say how long the run will take.

    Raises:
        ConfigError: settings that do not fit the model, the data or the saved run.
        UserError: the folder holds a run that cannot be resumed.
    """
    with ExitStack() as stack:
        process = stack.enter_context(
            process_group(
                settings.device, settings.train.precision, settings.train.compile, "train."
            )
        )
        start_decoding(settings.data)
        stops = stack.enter_context(noting_stops())
        task = make_task(settings)
        folder = Path(settings.run_dir)
        if not dry_run:
            on_main(lambda: stack.enter_context(locked(folder, "run_dir")))
        schedule = Schedule(task.num_records, settings.train, settings.optim)
        latest = None
        with in_the_way(settings, "run_dir"):
            latest = find_run(folder, task, schedule, process)
        with configured(), torch.device("meta"):
            size = encoder_of(task.create(None)).input_size  # checks the settings
        unreadable = check_lists(task, size[0])
        if not dry_run:
            start_run(folder, process, settings, task.data, resumes=latest is not None)

        model = build_model(task, process, latest)
        stack.enter_context(steps_that_fit(task, model, process))
        optimizer = build_optimizer(model, settings.optim)
        average = None
        if task.ema_decay is not None:
            average = MovingAverage(model, task.ema_decay)
        unit = task.unit.removesuffix("s")
        for line in (*task.describe(model), schedule.describe(process, unit)):
            print_lines([line]) if dry_run and not as_json else logger.info(line)
        schedule.check_batch(unit)

        start_step, facts = 0, dict[str, Any]()
        if latest:
            start_step, facts = load_checkpoint(latest, model, optimizer, average)
        scaler = None
        if process.precision == "fp16":
            scaler = torch.amp.GradScaler(process.device.type)
            if "scaler" in facts:
                scaler.load_state_dict(facts["scaler"])
        facts = {"failed": facts.get("failed", [])}
        facts |= facts_of(settings, task.data, process.precision)
        order = TrainingOrder(
            task.num_records,
            global_batch_size=settings.train.global_batch_size,
            accumulation_steps=settings.train.accumulation_steps,
            start_step=start_step,
            end_step=schedule.end_step,
            seed=settings.train.seed,
            process=process,
            weights=task.record_weights,
        )
        loader = training_loader(
            task.dataset(model),
            order,
            clip_shape=(*encoder_of(model).input_size, 3),
            decoding=settings.data,
        )
        batches = stack.enter_context(closing(iter(loader)))
        card, writer = task.card(model), None
        if process.is_main:
            parts = (model, optimizer, average, card, settings.train.keep_checkpoints)
            writer = CheckpointWriter(folder / "checkpoints", *parts)
            stack.enter_context(closing(writer))
        run = Run(task, process, schedule, model, optimizer, average, scaler, writer, card, facts)
        loss = task.loss(model, process.device)
        if dry_run:
            plan = Plan.of(task, model, process, schedule.end_step)  # before it is compiled
            steps = run.steps(batches, loss, start_step, stops) if measured else None
            return plan.rehearse(batches, steps, unreadable, as_json)
        if latest:
            logger.info("resumed from %s", latest)
        report = RunReport(folder, process, start_step, facts["failed"])
        if not run.take_steps(batches, loss, report, start_step, stops):
            return STOPPED
        return run.finish(report, start_step, as_json)


def find_run(folder: Path, task: Task, schedule: Schedule, process: Process) -> Path | None:
    """The checkpoint to resume from, if the folder holds a run; errors as of `train`."""
    settings = task.settings
    latest = on_main(lambda: latest_checkpoint(folder / "checkpoints"))
    if latest:
        step, facts = read_facts(latest)
        is_same_data = facts["data"]["fingerprint"] == task.data["fingerprint"]
        if step > schedule.end_step and is_same_data:  # before overwrite_config is advised
            raise ConfigError(
                f"train.epochs is {settings.train.epochs:g}, which are "
                f"{counted(schedule.end_step, 'step')} of {settings.train.global_batch_size} "
                f"{task.unit}, and {folder} has taken {step}: raise train.epochs, or choose "
                "another run_dir"
            )
        check_same_run(latest, facts, settings, task.data, process.precision)
    elif (folder / "weights").exists():  # a start that failed leaves neither
        raise UserError(
            f"{folder} holds a finished run without checkpoints: choose another run_dir"
        )
    return latest


def check_lists(task: Task, num_frames: int) -> Counter[str]:
    """The numbers of unreadable records by cause, see `check_videos`, which the main process calls.

    Raises:
        UserError: more of the training list than a run allows.
    """
    data = task.settings.data
    lists = {"data.train": task.train.records}
    if task.val is not None:
        lists["data.val"] = task.val.records
    found = Counter[str]()
    for key, records in lists.items():
        source = getattr(data, key.removeprefix("data."))
        causes = on_main(partial(check_videos, key, source, records, data, num_frames))
        if key == "data.train" and causes.total() > allowed_failures(len(records), data):
            raise UserError(
                f"{key}: {causes.total()} of {len(records)} records cannot be read, more than "
                f"data.max_failed_frac={data.max_failed_frac:g} allows: correct the list or "
                "data.root, or raise data.max_failed_frac"
            )
        found += causes
    if isinstance(task.train, VideoList):
        warn_of_still_model(task.settings.model.name, num_frames, task.train.records)
    return found


def build_model(task: Task, process: Process, latest: Path | None) -> Model:
    """The model with the weights it starts from, on the device.

    A checkpoint to resume from replaces `model.init`, which may have been deleted since the run
    began.
    """
    torch.manual_seed(task.settings.train.seed)
    source = latest or task.settings.model.init
    with first_process_first(process):
        model = task.create(source).to(process.device)
    with configured():
        task.prepare(model, source)
        config = task.settings.model
        model.set_grad_checkpointing(config.grad_checkpointing, config.grad_checkpointing_stages)
    return model


@dataclass(frozen=True)
class Run:
    """A run that is about to take steps."""

    task: Task
    process: Process
    schedule: Schedule
    model: Model
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    scaler: torch.amp.GradScaler | None  # of the loss, in float16
    writer: CheckpointWriter | None  # of the main process
    card: ModelCard  # of the weights that are written
    facts: dict[str, Any]  # what checkpoints keep beside the state

    @property
    def folder(self) -> Path:
        return Path(self.task.settings.run_dir)

    @property
    def trained(self) -> Model:
        """The model to evaluate and to save."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def steps(
        self, batches: Iterator[Batch], loss: LossFunction, start_step: int, stops: list[str]
    ) -> Iterator[StepReport]:
        """Takes each step from `start_step` on when its report is asked for, and writes nothing."""
        settings = self.task.settings
        if settings.train.compile:
            if self.process.is_main:
                text = "compiling the model in the first step; the next start finds it in %s"
                logger.info(text, cache_folder())
            self.model.compile(dynamic=False)
        wrapped: nn.Module = self.model
        if self.process.world_size > 1:
            wrapped = DistributedDataParallel(
                self.model, gradient_as_bucket_view=True, static_graph=self.is_static
            )
        return train_steps(
            wrapped,
            loss,
            self.optimizer,
            batches,
            start_step=start_step,
            end_step=self.schedule.end_step,
            loop=settings.train,
            lr_at=self.schedule.lr_at,
            clip_grad=settings.optim.clip_grad,
            process=self.process,
            average=self.average,
            scaler=self.scaler,
            stop_requested=lambda: bool(stops) or self.has_failed_to_save,
            is_due=lambda step: self.checkpoint_due(step) or self.evaluation_due(step),
        )

    def take_steps(
        self,
        batches: Iterator[Batch],
        loss: LossFunction,
        report: RunReport,
        start_step: int,
        stops: list[str],
    ) -> bool:
        """Trains from `start_step` on; False if it was stopped, after saving.

        Args:
            stops: names of the signals that have asked this process to stop.
        """
        end_step, loop = self.schedule.end_step, self.task.settings.train
        weights = self.folder / "weights"
        if self.process.is_main and weights.exists():
            if start_step < end_step:
                logger.info("the run resumes: %s, of a shorter run, is removed", weights)
                shutil.rmtree(weights)  # the checkpoint holds the same
            else:
                try:
                    check_weights_folder(weights)
                except WeightsError as error:
                    logger.warning("%s; the weights are written again", error)
                    shutil.rmtree(weights)
        recent: list[tuple[StepReport, Lap]] = []
        num_nonfinite, total_sec = 0, 0.0

        # A run that was killed between saving and evaluating evaluates now.
        is_missing = self.process.is_main and not report.has(start_step, "val")
        if start_step and self.evaluation_due(start_step) and any_process(is_missing):
            self.report_evaluation(report, start_step)
        times = Times()
        for done in self.steps(batches, loss, start_step, stops):
            step, is_last = done.step, done.step == end_step
            lap = times.lap()
            if step > start_step + 1:  # in the first, decoding starts and a model is compiled
                total_sec += lap.total_sec
            report.step(done, lap)
            recent.append((done, lap))
            self.facts["failed"] = sorted(report.failed)
            num_read = step * loop.global_batch_size
            check_failures(
                len(report.failed), num_read, self.task.num_records, self.task.settings.data
            )
            num_nonfinite = num_nonfinite + 1 if done.not_finite and not done.overflow else 0
            if num_nonfinite >= loop.max_nonfinite_steps:
                raise UserError(
                    f"{counted(num_nonfinite, 'step')} in a row had a non-finite gradient: lower "
                    "optim.lr, or train with train.precision=fp32"
                )
            if is_last or step % loop.log_every == 0 or step == start_step + 1:
                num_steps = step - start_step - 1
                sec_per_step = total_sec / num_steps if num_steps else None
                line = console_line(recent, end_step, self.process.device, sec_per_step)
                logger.info(line)
                recent.clear()
            if done.stop or self.checkpoint_due(step):
                with times.spent_on("checkpoint"):
                    self.save(step)
            if done.stop and not is_last:
                self.finish_saving()
                name = stops[0] if stops else "a signal to another process"
                logger.info("stopped by %s; saved step %d of %d", name, step, end_step)
                return False
            if self.evaluation_due(step):
                with times.spent_on("val"):
                    self.report_evaluation(report, step)
        self.finish_saving()
        report.check_steps()
        return True

    @property
    def is_static(self) -> bool:
        """Whether all steps compute the same graph, which DDP makes use of.

        Heads of instance segmentation are not used in a step without boxes for them.
        """
        loop = self.task.settings.train
        has_parts = loop.accumulation_steps > 1  # gradients of which are summed up first
        return not (has_parts or loop.compile or isinstance(self.model, InstanceSegmenter))

    @property
    def has_failed_to_save(self) -> bool:
        return self.writer is not None and self.writer.has_failed

    def checkpoint_due(self, step: int) -> bool:
        every = self.schedule.every(self.task.settings.train.checkpoint_every)
        return step % every == 0 or step == self.schedule.end_step

    def save(self, step: int) -> None:
        """Begins to write the checkpoint of a step, unless its weights are not finite.

        Raises:
            UserError: on all processes; an OutputError if the checkpoint before was not written.
        """
        for model in (self.model, self.trained):
            if bad := not_finite(dict(model.named_parameters())):
                raise UserError(
                    f"weights are not finite after step {step}: {shorten(bad, 1)}; {DIVERGED}"
                )

        def begin() -> None:
            assert self.writer is not None
            scaler = {"scaler": self.scaler.state_dict()} if self.scaler else {}
            self.writer.save(step, self.facts | scaler)

        on_main(begin)

    def finish_saving(self) -> None:
        """Waits until the last checkpoint is written; errors as of `save`."""

        def wait() -> None:
            assert self.writer is not None
            self.writer.wait()

        on_main(wait)

    def evaluation_due(self, step: int) -> bool:
        every = self.task.evaluate_every
        between = every is not None and step % self.schedule.every(every) == 0
        return self.task.val is not None and (between or step == self.schedule.end_step)

    def report_evaluation(self, report: RunReport, step: int) -> None:
        """Evaluates on all processes, without compiling anything; the main one reports."""
        task = self.task
        assert task.val is not None
        fits = batches_that_fit(task.settings, self.process.device)
        with fits, uncompiled(task.settings.train.compile):
            scored, failures = task.score(self.trained, self.process)
        self.model.train()
        self.trained.train()
        is_useless = not scored and any(failure.cause == "not_finite" for failure in failures)
        if from_main(is_useless):
            raise UserError(
                f"no scores of the validation {task.unit} are finite after step {step}; {DIVERGED}"
            )
        if self.process.is_main:
            figures = task.figures(scored)
            report.failures(failures, step)
            report.metrics(step, "val", {**figures, "decoded": len(scored)})
            text = "  ".join(f"{name} {100 * value:.2f}" for name, value in figures.items())
            decoded = f"{len(scored)} of {len(task.val.records)} {task.unit}"
            logger.info("step %d  val (%s)  %s  %s", step, task.val_note, text, decoded)
        barrier()  # who is ready must not wait in the next step, where waiting has a limit

    def finish(self, report: RunReport, start_step: int, as_json: bool) -> int:
        """Writes the weights; returns the exit code: 3 if a record could not be used.

        The weights are whole then, and yet others than those of all data, as a figure of
        `evaluate` is without some videos: the code says the same in all commands.

        Args:
            start_step: where this start of the run began.
        """
        num_failed = report.num_failed()
        if self.process.is_main:
            weights, steps = self.folder / "weights", self.schedule.end_step
            save_model(weights, self.trained, self.card)
            if start_step < steps:
                logger.info("trained %d steps; weights are in %s", steps, weights)
            else:
                logger.info(
                    "nothing was left to train: %s has taken all %d steps, its weights are in %s; "
                    "to train longer, raise train.epochs and set overwrite_config=true; to train "
                    "again, choose another run_dir",
                    self.folder,
                    steps,
                    weights,
                )
            lists = (self.task.train, self.task.val)
            num_records = sum(len(part.records) for part in lists if part is not None)
            if num_failed:
                logger.warning(
                    "%d of %d records could not be used, see %s: the exit code is 3",
                    num_failed,
                    num_records,
                    self.folder / "failures.jsonl",
                )
            if as_json:
                counts = {"read": num_records - num_failed, "failed": num_failed}
                print_json({"steps": steps, "weights": str(weights), **counts})
        return exit_code(done=1, failed=num_failed)
