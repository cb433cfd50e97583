"""The run folder, whose files docs/README.md lists, and the messages of training."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from hiera_video.data.batches import Failure
from hiera_video.errors import ConfigError, UserError, listing
from hiera_video.files import (
    append_jsonl,
    finite_or_none,
    json_text,
    parse_json,
    remove_unfinished,
    replacing,
    write_json,
    write_text,
)
from hiera_video.runtime.distributed import Process, barrier, from_main, union_over_processes
from hiera_video.runtime.environment import environment
from hiera_video.runtime.logging import setup_logging
from hiera_video.settings.load import differences, load_settings, to_yaml
from hiera_video.settings.training import Arithmetic, RunSettings, TrainingData
from hiera_video.training.events import EventFile
from hiera_video.training.loop import StepReport
from hiera_video.training.times import Lap

logger = logging.getLogger("hiera_video")

DIVERGED = (  # what to do
    "lower optim.lr or train with train.precision=fp32, and start again in another run_dir"
)
MIN_FAILED = 5  # so many records may fail in any list
MIN_TRIED = 100  # of a longer list, before their share says something
# Settings that do not change results: a run may be resumed with other values.
FREE_TO_CHANGE = {
    "run_dir",
    "device",
    "overwrite_config",
    "model.grad_checkpointing",
    "model.grad_checkpointing_stages",
    "data.num_workers",
    "data.check",
    "data.stills",
    "data.deadline_sec",
    "data.max_frame_pixels",
    "data.max_read_gib",
    "views.batch_size",
    "batch_size",
    "train.log_every",
    "train.keep_checkpoints",
}
# Settings on which the tensors of a checkpoint depend: no run continues with other values. And
# whether another run may start from its weights all the same.
FIXED = {
    "model.name": False,
    "model.overrides": False,
    "model.decoder_dim": False,
    "model.decoder_depth": False,
    "model.target": False,
    "model.num_frames": True,
    "model.image_size": True,
    "optim.optimizer": True,
}


class RunReport:
    """Writes metrics of a run; on all but the main process it does nothing.

    Args:
        folder: the run folder.
        start_step: the step that the run resumes from: what was reported beyond it, by a run that
            was killed after its last checkpoint, is dropped.
        failed: names of the training records that could not be read until then.

    Attributes:
        failed: the same until now, over all processes.
    """

    def __init__(
        self, folder: Path, process: Process, start_step: int = 0, failed: Iterable[str] = ()
    ) -> None:
        self.folder, self.process, self.failed = folder, process, set(failed)
        self._named: set[str] = set(failed)  # in a warning, those of validation too
        self._events: EventFile | None = None
        self._num_steps = self._num_skipped = self._num_taken = 0  # on the main process
        if not process.is_main:
            return
        self._metrics_path = folder / "metrics.jsonl"
        self._earlier = _drop_beyond(self._metrics_path, start_step)
        failures = _drop_beyond(folder / "failures.jsonl", start_step)
        self._named |= {str(line.get("name")) for line in failures}
        for line in self._earlier:
            if line.get("kind") == "train":
                self._num_steps += 1
                self._num_skipped += "not_finite" in line
                self._num_taken += "not_finite" not in line and line.get("loss") is not None
        if importlib.util.find_spec("tensorboard"):
            self._events = EventFile(folder / "tb", start_step + 1)
        else:
            logger.info("no TensorBoard (pip install tensorboard): metrics go to metrics.jsonl")

    def metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and the points of TensorBoard, after `step` steps."""
        if not self.process.is_main:
            return
        finite = {name: finite_or_none(value) for name, value in values.items()}
        append_jsonl(self._metrics_path, {"step": step, "kind": kind, **finite})
        if self._events is not None:
            self._events.add(step, {f"{kind}/{name}": value for name, value in values.items()})

    def step(self, done: StepReport, lap: Lap) -> None:
        """The metrics of a step, the videos that could not be read, those of a skipped step."""
        values = {name: getattr(done, name) for name in ("loss", "lr", "grad_norm", "num_clips")}
        if done.num_dropped:
            values["num_dropped"] = done.num_dropped
        if done.not_finite:
            values["not_finite"] = 1
        if done.loss_scale is not None:
            values["loss_scale"] = done.loss_scale
        values |= {"step_sec": done.step_sec, "data_sec": done.data_sec}
        since = {"checkpoint_sec": lap.checkpoint_sec, "val_sec": lap.val_sec}
        values |= {name: seconds for name, seconds in since.items() if seconds}
        self._num_steps += 1
        self._num_skipped += done.not_finite
        self._num_taken += not done.skipped
        self.metrics(done.step, "train", values)
        self.failures(done.failures, done.step)
        if done.num_failed:  # of all processes
            self.failed |= union_over_processes({failure.name for failure in done.failures})
        if done.overflow:
            logger.info(
                "step %d skipped: its gradient is too large for float16 with the loss times %g; "
                "the factor is lowered",
                done.step,
                done.loss_scale,
            )
        elif done.skipped:
            reason = f"loss {done.loss:g}, gradient norm {done.grad_norm:g}; its videos"
            if done.names and not done.num_targets:
                reason = "no box in any of its clips"
            names = ", ".join(dict.fromkeys(done.names)) or "none could be read"
            logger.warning("step %d skipped: %s: %s", done.step, reason, names)

    def failures(self, failures: list[Failure], step: int) -> None:
        """Appends to failures.jsonl; every process writes its own."""
        for failure in failures:
            if failure.name not in self._named:
                logger.warning("skipped %s", failure.message)
            self._named.add(failure.name)
            append_jsonl(self.folder / "failures.jsonl", {"step": step, **asdict(failure)})

    def num_failed(self) -> int:
        """Records, of training and of validation, that could not be used; every process calls it.

        Each counts once in the run, however often it was tried.
        """
        return len(union_over_processes(self._named))

    def has(self, step: int, kind: str) -> bool:
        """Whether an earlier start reported such metrics; asked on the main process."""
        return any((r["step"], r.get("kind")) == (step, kind) for r in self._earlier)

    def check_steps(self) -> None:
        """Raises a UserError if no step of the run was taken, or no more than were not finite.

        Every process calls it.
        """
        counts = self._num_steps, self._num_skipped, self._num_taken
        num_steps, num_skipped, num_taken = from_main(counts)
        if num_steps and not num_skipped + num_taken:
            raise UserError(
                "no step was taken, because nothing of the training list could be read: see "
                f"{self.folder / 'failures.jsonl'}"
            )
        if num_skipped and num_skipped >= num_taken:
            raise UserError(
                f"{num_skipped} of {num_skipped + num_taken} steps were skipped, because their "
                f"loss or gradient was not finite: no weights are written; {DIVERGED}"
            )


def console_line(
    steps: Sequence[tuple[StepReport, Lap]],
    end_step: int,
    device: torch.device,
    sec_per_step: float | None,
) -> str:
    """Loss, rate and gradient of the last of `steps`; their speed, and what took the time.

    Args:
        steps: with the laps that end with them.
        sec_per_step: of the whole run, for what is left: few lines see a checkpoint or validation.
            None: not known yet.
    """
    last, seconds = steps[-1][0], sum(lap.total_sec for _, lap in steps)
    clips = sum(done.num_clips for done, _ in steps)
    spent = {
        "data": sum(done.data_sec for done, _ in steps),
        "checkpoint": sum(lap.checkpoint_sec for _, lap in steps),
        "val": sum(lap.val_sec for _, lap in steps),
    }
    spent = {"step": seconds - sum(spent.values()), **spent}
    shares = {name: f"{part / seconds:.0%}" for name, part in spent.items()}
    shown = ", ".join(f"{name} {share}" for name, share in shares.items() if share != "0%")
    line = (
        f"step {last.step}/{end_step}  loss {last.loss:.4f}  lr {last.lr:.2e}  "
        f"grad {last.grad_norm:.2f}  {seconds / len(steps):.2f} s/step ({shown})  "
        f"{clips / seconds:.1f} clips/s"
    )
    if sec_per_step is not None:
        line += f"  eta {timedelta(seconds=round((end_step - last.step) * sec_per_step))}"
    if device.type == "cuda":
        line += f"  mem {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    return line


def check_failures(failed: int, read: int, records: int, settings: TrainingData) -> None:
    """Raises a UserError if too many of the records cannot be read.

    Args:
        failed: records that could not be read, over all processes and starts of the run.
        read: records that were tried.
        records: records of the training list.
    """
    tried = min(read, records)
    is_many = failed > allowed_failures(tried, settings)
    if failed == records or (is_many and tried >= min(MIN_TRIED, records)):
        raise UserError(
            f"{failed} of the first {tried} records of {records} cannot be read, more than "
            f"data.max_failed_frac={settings.max_failed_frac:g} allows: drop those that "
            "failures.jsonl lists from the training list, or raise data.max_failed_frac"
        )


def allowed_failures(tried: int, settings: TrainingData) -> float:
    """How many of so many records may be unreadable."""
    return max(MIN_FAILED, settings.max_failed_frac * tried)


def facts_of(settings: RunSettings, data: dict[str, Any], precision: Arithmetic) -> dict[str, Any]:
    """What a checkpoint says about its run: only the same run may resume from it.

    Args:
        data: what the run trains on, with a `fingerprint`.
        precision: what train.precision is on the device.
    """
    return {"config": settings.model_dump(mode="json"), "data": data, "precision": precision}


def check_same_run(
    latest: Path,
    earlier: dict[str, Any],
    settings: RunSettings,
    data: dict[str, Any],
    precision: Arithmetic,
) -> None:
    """Compares settings and data with those of the run that is about to be resumed.

    Keys that do not change results may differ; with `overwrite_config`, all with which it can
    continue. Where "auto" is another precision on this device, a warning says so.

    Args:
        latest: the checkpoint from which it would resume.
        earlier: the facts of that checkpoint.
        precision: what train.precision is on the device.

    Raises:
        ConfigError: names the keys that differ.
        UserError: other data.
    """
    folder, changed = latest.parents[1], dict[str, tuple[Any, Any]]()
    try:
        changed = differences(load_settings(type(settings), [earlier["config"]]), settings)
    except ConfigError as error:
        if not settings.overwrite_config:
            raise ConfigError(
                f"{folder} holds a run that this command does not resume ({error}): choose another "
                "run_dir"
            ) from None
    before = earlier.get("precision") or earlier["config"]["train"]["precision"]
    if before == precision:
        changed.pop("train.precision", None)
    has_average = changed.get("train.ema_decay", (0, 0))[0] is not None
    fixed = FIXED if has_average else FIXED | {"train.ema_decay": True}
    weights = folder if (folder / "weights").is_dir() else latest
    other = f"choose another run_dir, where model.init={weights} starts from its weights"
    if keys := [key for key in changed if key in fixed]:
        raise ConfigError(
            f"{folder} holds a run that cannot continue with another model or optimizer "
            f"({_changes(changed, keys)}): "
            + (other if all(fixed[key] for key in keys) else "choose another run_dir")
        )
    if earlier["data"]["fingerprint"] != data["fingerprint"]:
        was, now = _described(earlier["data"]), _described(data)
        raise UserError(
            f"{folder} was trained on other data: "
            + (f"{was}, now {now}" if was != now else f"{now} has changed since then")
            + f"; restore the list, or {other}"
        )
    keys = [key for key in changed if key not in FREE_TO_CHANGE]
    if keys and not settings.overwrite_config:
        raise ConfigError(
            f"{folder} holds a run with another configuration ({_changes(changed, keys)}): choose "
            "another run_dir, or set overwrite_config=true to resume it with the new one"
        )
    if before != precision:
        logger.warning(
            "%s was trained in %s so far, and continues in %s: train.precision=%s keeps "
            "it, on a device that has it",
            folder,
            before,
            precision,
            before,
        )


def _changes(changed: dict[str, tuple[Any, Any]], keys: Iterable[str]) -> str:
    """`key: old -> new` of these keys, with values as one writes them."""
    return "; ".join(f"{key}: {' -> '.join(map(json_text, changed[key]))}" for key in keys)


def _described(data: dict[str, Any]) -> str:
    """The list of a run and how much it has, such as `train.csv (8 videos, 2 classes)`."""
    counts = (f"{data[key]} {key}" for key in data if key not in ("train", "fingerprint"))
    return f"{data['train']} ({', '.join(counts)})"


def start_run(
    folder: Path, process: Process, settings: RunSettings, data: dict[str, Any], *, resumes: bool
) -> None:
    """Writes config.yaml and run.json, and sends messages to train.log too.

    These files are records for people: what a run is resumed from is in its checkpoints alone.

    Args:
        resumes: whether the folder holds a run to resume, whose earlier starts stay in run.json.
    """
    setup_logging(folder / "train.log")
    if process.is_main:
        remove_unfinished(folder, deep=False)  # evaluations write into folders below
        path = folder / "run.json"
        started = {**environment(), "processes": process.world_size, "device": str(process.device)}
        if path.exists() and not resumes:
            logger.info("%s has no checkpoint yet: the run begins again", folder)
        earlier = _starts(path) if resumes and path.exists() else []
        write_text(folder / "config.yaml", to_yaml(settings))
        write_json(path, {"data": data, "starts": [*earlier, started]})
    barrier()


def _starts(path: Path) -> list[Any]:
    """The starts that run.json lists."""
    try:
        return [*parse_json(path.read_bytes())["starts"]]
    except (ValueError, LookupError, TypeError):
        logger.warning("%s is damaged: it is written again, without the earlier starts", path)
        return []


def _drop_beyond(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines after `step`, and damaged ones; returns the records that stay.

    The last line is damaged where a run was killed, and any line may be after a loss of power.
    """
    if not path.exists():
        return []
    records, kept, damaged = [], list[bytes](), list[int]()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            record = parse_json(line)
            is_kept = record["step"] <= step
        except (ValueError, LookupError, TypeError):
            damaged.append(number)
            continue
        if is_kept:
            records.append(record)
            kept.append(line + b"\n")
    if damaged:
        logger.warning("%s: dropped the damaged lines %s", path, listing(damaged))
    with replacing(path) as part:
        part.write_bytes(b"".join(kept))
    return records
