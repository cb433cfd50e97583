"""Where the results of a command go, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hiera_video.errors import UserError


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raises UserError if results would be replaced that must not be."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{', '.join(existing)} would be replaced: choose another output_dir, or set "
            "overwrite=true"
        )


def evaluation_folder(output_dir: str | None, checkpoint: str) -> Path:
    """`output_dir`, else eval/ beside the weights of a run."""
    if output_dir is not None:
        return Path(output_dir)
    path = Path(checkpoint)
    return (path.parent if path.name == "weights" else path) / "eval"


def numbered_stems(paths: Iterable[str]) -> list[str]:
    """The name of each file without its suffix; equal names are numbered, whatever their case."""
    stems: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem, number = Path(path).stem, 1
        while (name := stem if number == 1 else f"{stem}_{number}").casefold() in taken:
            number += 1
        taken.add(name.casefold())
        stems.append(name)
    return stems


def print_result(record: Any, text: str, *, as_json: bool) -> None:
    """Prints one result, as a line of JSON for machines or as text, at once, into a pipe too."""
    print(json.dumps(record, ensure_ascii=False) if as_json else text, flush=True)


def exit_code(*, done: int, failed: int) -> int:
    """0 if all inputs were done, 3 if some failed, 1 if nothing was done."""
    if not done:
        return 1
    return 3 if failed else 0
