"""Where the results of a command go, and its exit code."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hiera_video.errors import UserError, printable
from hiera_video.files import json_text, utf8_text
from hiera_video.runtime.dry_run import in_the_way
from hiera_video.settings.evaluation import (
    AttentionSettings,
    DetectEvaluateSettings,
    DetectPredictSettings,
    EvaluateSettings,
    InstancesEvaluateSettings,
    InstancesPredictSettings,
    VisualizeSettings,
)
from hiera_video.settings.tools import BenchmarkSettings

Writing = (
    EvaluateSettings
    | DetectEvaluateSettings
    | DetectPredictSettings
    | InstancesEvaluateSettings
    | InstancesPredictSettings
    | VisualizeSettings
    | AttentionSettings
    | BenchmarkSettings
)


def refuse_existing(config: Writing, paths: Iterable[Path]) -> None:
    """Raises UserError if results would be replaced that must not be."""
    existing = [str(path) for path in paths if path.exists()]
    with in_the_way(config, "output_dir"):
        if existing and not config.overwrite:
            raise UserError(
                f"{', '.join(existing)} would be replaced: choose another output_dir, or set "
                "overwrite=true"
            )


def evaluation_folder(
    config: EvaluateSettings | DetectEvaluateSettings | InstancesEvaluateSettings,
    results: Iterable[str],
) -> Path:
    """`output_dir`, else eval/ beside the weights of a run, for files of these names."""
    path = Path(config.checkpoint)
    beside = path.parent if path.name == "weights" else path
    folder = Path(config.output_dir or beside / "eval")
    refuse_existing(config, (folder / name for name in results))
    return folder


def output_files(
    config: VisualizeSettings
    | AttentionSettings
    | DetectPredictSettings
    | InstancesPredictSettings,
    inputs: Iterable[str],
    ends: Mapping[str, str],
) -> list[dict[str, Path]]:
    """The files that each input gets: by kind, STEM_END in `output_dir`.

    Equal stems are numbered, whatever their case.

    Args:
        inputs: files.
        ends: of the names, by kind.
    """
    outputs: list[dict[str, Path]] = []
    taken: set[str] = set()
    for path in inputs:
        stem, number = utf8_text(Path(path).stem), 1
        while (name := stem if number == 1 else f"{stem}_{number}").casefold() in taken:
            number += 1
        taken.add(name.casefold())
        outputs.append({k: Path(config.output_dir, f"{name}_{end}") for k, end in ends.items()})
    refuse_existing(config, (p for files in outputs for p in files.values()))
    return outputs


def print_result(record: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Prints one result, as a line of JSON for machines or as lines for a person."""
    if as_json:
        print_json(record)
    else:
        print_lines(lines)


def print_planned(outputs: Iterable[Any], *, as_json: bool) -> None:
    """Prints what a command would read or write, in a dry run: a line for each, or a JSON list."""
    names = list(map(str, outputs))
    print_json(names) if as_json else print_lines(names)


def print_json(content: Any, *, indent: int | None = None) -> None:
    """Prints JSON at once, into a pipe too; in ASCII, which every terminal and encoding takes."""
    print(json_text(content, indent=indent, ensure_ascii=True), flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines at once, into a pipe too; whatever names they hold, each stays one line."""
    print("\n".join(map(printable, lines)), flush=True)


def exit_code(*, done: int, failed: int) -> int:
    """0 if all inputs were done, 3 if some failed, 1 if nothing was done."""
    if not done:
        return 1
    return 3 if failed else 0
