"""What the folder of a run or of an evaluation holds, read without a model.

A folder may be half-written: what is missing or damaged is described in `problems`, and what is
there is shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from hiera_video.errors import UserError, counted, listing
from hiera_video.files import load_json, parse_json, read_bytes, read_text
from hiera_video.settings.base import Settings
from hiera_video.settings.load import read_yaml

Kind = Literal["classification", "pretraining", "detection", "instances", "extraction"]
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Evaluation:
    """Results of one of the `evaluate` commands."""

    folder: Path
    report: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the command; {} in results of versions before 0.2.0."""
        return self.report.get("settings", {})

    def data(self, kind: type[S]) -> S:
        """The settings `data` of the command, as far as `kind` has them.

        Raises:
            UserError: they are missing or not valid, because another version wrote them.
        """
        refusal = UserError(f"{self.folder / 'report.json'}: of another version: evaluate again")
        if "data" not in self.settings:
            raise refusal
        stated = self.settings["data"]
        try:
            return kind.model_validate({k: v for k, v in stated.items() if k in kind.model_fields})
        except ValueError:
            raise refusal from None


@dataclass(frozen=True)
class Run:
    """The folder of a training run, of an evaluation or of an extraction."""

    folder: Path
    kind: Kind
    config: dict[str, Any] = field(default_factory=dict)  # {}: there is none
    record: dict[str, Any] = field(default_factory=dict)  # run.json
    metrics: list[dict[str, Any]] = field(default_factory=list)  # lines of metrics.jsonl
    failures: list[dict[str, Any]] = field(default_factory=list)  # lines of failures.jsonl
    evaluations: list[Evaluation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name or str(self.folder)

    def series(self, kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a figure of metrics.jsonl, float64 [N] each; NaN is not in it."""
        pairs = [
            (line["step"], line[key])
            for line in self.metrics
            if line.get("kind") == kind and isinstance(line.get(key), int | float)
        ]
        steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
        return steps, values


def read_run(folder: Path) -> Run:
    """Reads the folder of a run, of an evaluation or of an extraction.

    Raises:
        UserError: it is none of these.
    """
    problems: list[str] = []

    def attempt(read: Callable[[], Any], missing: Any) -> Any:
        try:
            return read()
        except (UserError, OSError) as error:
            problems.append(str(error))
            return missing

    if (folder / "index.jsonl").is_file():
        failures = read_lines(folder / "failures.jsonl", problems)
        return Run(folder, "extraction", failures=failures, problems=problems)
    found = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
    evaluations = []
    for path in found:
        if (path / "report.json").is_file():
            report = attempt(partial(json_file, path / "report.json"), None)
            if report is not None:
                evaluations.append(Evaluation(path, report))
    config = {}
    if (folder / "config.yaml").is_file():
        config = attempt(lambda: read_yaml(folder / "config.yaml"), {})
    elif (folder / "metrics.jsonl").is_file():
        problems.append(f"{folder / 'config.yaml'}: there is no such file")
    record = {}
    if (folder / "run.json").is_file():
        record = attempt(lambda: json_file(folder / "run.json"), {})
    metrics = read_lines(folder / "metrics.jsonl", problems, {"step": int, "kind": str})
    kind = kind_of(config, evaluations, metrics)
    if kind is None:
        inner = [str(path) for path in found[1:] if (path / "config.yaml").is_file()]
        raise UserError(
            f"{folder}: not the folder of a run, of an evaluation or of an extraction; expected "
            "config.yaml, report.json or index.jsonl in it"
            + (f"; it holds runs: {listing(inner)}" if inner else "")
        )
    if config and not metrics:
        problems.append(f"{folder / 'metrics.jsonl'}: no step was reported yet")
    failures = read_lines(folder / "failures.jsonl", problems)
    return Run(folder, kind, config, record, metrics, failures, evaluations, problems)


def json_file(path: Path) -> dict[str, Any]:
    content = load_json(read_text(path, UserError), str(path), UserError)
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: a {type(content).__name__} in place of a map")
    return content


def kind_of(
    config: dict[str, Any], evaluations: Sequence[Evaluation], metrics: Sequence[dict[str, Any]]
) -> Kind | None:
    """What a folder is about, by settings or results that only one command has."""
    reports = [evaluation.report for evaluation in evaluations]
    model = config.get("model") or {}
    if "masking" in config:
        return "pretraining"
    if "num_boxes" in model or any("kinds" in report for report in reports):
        return "instances"
    data = config.get("data") or {}
    if "label_map" in data or any("protocols" in report for report in reports):
        return "detection"
    return "classification" if config or reports or metrics else None


def read_lines(
    path: Path, problems: list[str], types: Mapping[str, type] | None = None
) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; [] if there is none.

    The last line may be incomplete, because the file is being written or its writer was killed.

    Args:
        problems: gets a sentence if the file, or some of its lines, cannot be used.
        types: of entries that each record must have.
    """
    if not path.is_file():
        return []
    try:
        lines = read_bytes(path, UserError).split(b"\n")
    except UserError as error:
        problems.append(str(error))
        return []
    records, damaged = [], 0
    for line in filter(None, lines):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(
            isinstance(record.get(key), kind) for key, kind in (types or {}).items()
        ):
            records.append(record)
        else:
            damaged += 1
    if damaged:
        problems.append(f"{path}: {counted(damaged, 'line')} cannot be read")
    return records


def evaluation_command(run: Run, command: str, *settings: str) -> str:
    """What to type to evaluate the weights of a run, or its last checkpoint, into its folder.

    Args:
        command: such as "detect evaluate".
    """
    weights = [f"checkpoint={run.folder}"]
    saved = sorted(run.folder.glob("checkpoints/step_*/weights/config.json"))
    if saved and not (run.folder / "weights").is_dir():
        # By default, results lie in the checkpoint, which is removed after later ones.
        weights = [f"checkpoint={saved[-1].parents[1]}", f"output_dir={run.folder / 'eval'}"]
    return shlex.join(["hiera-video", *command.split(), *weights, *settings])


def unique_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: of its folder, and as many parent folders as make it unique."""
    parts = [run.folder.absolute().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys with dots, and values as YAML on one line."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value_text(config)


def value_text(value: Any) -> str:
    """A value of `read_yaml`, whose scalars are text, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return "null" if value is None else str(value)
