"""What a dry run says of a run: its memory, its length, and the time of a few steps."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import torch

from hiera_video.errors import counted
from hiera_video.models.loading import Model
from hiera_video.runtime.distributed import Process, any_process, from_main, gather_on_main
from hiera_video.runtime.memory import GIB
from hiera_video.runtime.results import print_json, print_lines
from hiera_video.training.loop import Batch, StepReport
from hiera_video.training.memory import StepMemory, step_memory, warning
from hiera_video.training.task import Task

logger = logging.getLogger(__name__)

WARM_UP = 2  # steps that are not measured
MIN_STEPS, MIN_SEC = 5, 20.0  # that are measured; fewer where the run has fewer
WAITING = 0.1  # share of the time that is spent waiting for data; above, data are the limit


@dataclass(frozen=True)
class Plan:
    """A run that could be started."""

    task: Task
    process: Process
    num_steps: int
    num_parameters: int
    memory: StepMemory

    @classmethod
    def of(cls, task: Task, model: Model, process: Process, num_steps: int) -> Self:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return cls(task, process, num_steps, num_parameters, step_memory(task, model, process))

    def rehearse(
        self,
        batches: Iterator[Batch],
        steps: Iterator[StepReport] | None,
        unreadable: Counter[str],
        as_json: bool,
    ) -> int:
        """Reads the first batch, or takes the first steps, and prints what is known of the run.

        Args:
            batches: of the run.
            steps: which take the batches; None: no step is taken.
            unreadable: records of the lists, by cause; those of the batches are added.

        Returns:
            The exit code: 3 if a record cannot be read.
        """
        shown = self.process.is_main and not as_json
        if shown:
            size = f"{self.num_parameters / 1e6:.2f} M parameters"
            print_lines([f"{size}, {counted(self.num_steps, 'step')}", self.memory.describe()])
        if text := warning(self.memory, self.task, self.process):
            logger.warning(text)
        result: dict[str, Any] = {
            "records": self.task.num_records,
            "unreadable": unreadable,
            "parameters": self.num_parameters,
            "steps": self.num_steps,
            "memory": self.memory.to_json(),
        }
        if steps is None:
            failures = [failure for batch in islice(batches, 1) for failure in batch.failures]
        else:
            taken, seconds = timed(steps)
            failures = [failure for done in taken for failure in done.failures]
            result["measured"] = self.figures(taken, seconds)
            if shown:
                print_lines([in_words(result["measured"])])
        own = {failure.name: failure for failure in failures}  # each once, in several passes
        for failure in own.values():
            logger.warning("cannot be read: %s", failure.message)
        found = {
            name: failure for part in gather_on_main(own) or [] for name, failure in part.items()
        }
        unreadable.update(failure.cause for failure in found.values())
        if as_json and self.process.is_main:
            print_json(result)
        return 3 if any_process(bool(unreadable)) else 0

    def figures(self, taken: list[StepReport], seconds: float) -> dict[str, Any] | None:
        """Of the steps behind those that warm up; None if there are none.

        Args:
            seconds: that passed in these steps.
        """
        measured = taken[WARM_UP:]
        if not measured:
            return None
        left = self.num_steps - taken[0].step + 1
        device = self.process.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return {
            "steps": len(measured),
            "sec_per_step": seconds / len(measured),
            "clips_per_sec": sum(done.num_clips for done in measured) / seconds,
            "steps_left": left,
            "hours": left * seconds / len(measured) / 3600,
            "data_share": min(1.0, sum(done.data_sec for done in measured) / seconds),
            "peak_memory": peak,
        }


def timed(steps: Iterable[StepReport]) -> tuple[list[StepReport], float]:
    """The first steps, and the seconds between the last that warms up and the last.

    All processes take as many.
    """
    taken: list[StepReport] = []
    started = ended = time.perf_counter()
    for done in steps:
        taken.append(done)
        ended = time.perf_counter()
        if len(taken) <= WARM_UP:
            started = ended
        elif from_main(len(taken) >= WARM_UP + MIN_STEPS and ended - started >= MIN_SEC):
            break
    return taken, ended - started


def in_words(figures: dict[str, Any] | None) -> str:
    """The measurement in a sentence."""
    if figures is None:
        return f"nothing was measured: fewer than {WARM_UP + 1} steps are left"
    share = figures["data_share"]
    limit = "the device is the limit"
    if share > WAITING:
        limit = "data are the limit: more data.num_workers or cores, or smaller videos, help"
    peak, hours = figures["peak_memory"], figures["hours"]
    duration = f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
    return (
        f"{counted(figures['steps'], 'step')} measured: {figures['sec_per_step']:.3g} s/step, "
        f"{figures['clips_per_sec']:.1f} clips/s, {duration} for "
        f"{counted(figures['steps_left'], 'step')} without validation and checkpoints"
        + ("" if peak is None else f", peak memory {peak / GIB:.2f} GiB")
        + f"; {share:.0%} of the time is waiting for data: {limit}"
    )
