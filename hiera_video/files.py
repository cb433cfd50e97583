"""Files: written whole or not at all, and those that come with the package.

`replacing` is the only place where a file or folder appears under its final name.
"""

import csv
import json
import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hiera_video.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write a file or a folder to, which becomes `path` when the block has ended.

    The new content is on the disk before it gets its name, and what stood there before is kept
    until then. If the block raises, what it wrote is removed. A killed process leaves a hidden
    `.NAME.PID.part` beside `path`, which `remove_unfinished` removes.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(part)  # of an earlier process with this number
    try:
        yield part
        for written in [part, *part.rglob("*")]:
            _flush(written)
        if path.is_dir():  # which os.replace does not replace
            old = part.with_suffix(".old")
            _remove(old)
            path.rename(old)
            part.rename(path)
            _remove(old)
        else:
            part.replace(path)
        _flush(path.parent)
    finally:
        _remove(part)


def write_text(path: Path, text: str) -> None:
    """Replaces a file by UTF-8 text."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def json_text(content: Any, **options: Any) -> str:
    """JSON text; every JSON that the package writes is made here.

    Args:
        options: further arguments of `json.dumps`.

    Raises:
        ValueError: a number is not finite, which JSON cannot state: see `finite_or_none`.
    """
    return json.dumps(content, **{"ensure_ascii": False, "allow_nan": False, **options})


def finite_or_none(value: float) -> float | None:
    """The value for JSON: null for a figure that is not defined, such as the mean of nothing."""
    return value if math.isfinite(value) else None


def write_json(path: Path, content: Any) -> None:
    """Replaces a file by indented JSON."""
    write_text(path, json_text(content, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]], *, line_end: str = "\n") -> None:
    """Replaces a file by comma-separated rows in UTF-8; fields are quoted where necessary."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=line_end).writerows(rows)


def parse_json(text: str | bytes) -> Any:
    """As json.loads; whatever is wrong with the text is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Adds one line; concurrent processes do not interleave within a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_text(record) + "\n")


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left of `replacing` below a folder that nobody else writes."""
    for part in [*folder.rglob(".*.part")]:
        _remove(part)


def make_writable_folder(folder: Path) -> None:
    """Makes a folder if it is missing and raises OSError if no file can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")


@contextmanager
def locked(folder: Path, setting: str) -> Iterator[None]:
    """Keeps other runs from writing into a folder, which is made if it is missing.

    The lock is on `.lock` in the folder, which names its holder. It ends with the block or with the
    process, however that ends. Where the file system has no locks, a warning says so.

    Args:
        setting: that names the folder, for the message.

    Raises:
        UserError: another process holds the lock: which one, and since when.
    """
    import fcntl  # missing on some systems

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by {file.read()}: wait for its end, or choose another "
                f"{setting}"
            ) from None
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): make sure that no other run writes into it",
                folder,
                error.strerror,
            )
        file.truncate(0)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}")
        file.flush()
        yield


def shipped_folder(name: Literal["configs", "datasets"]) -> Path:
    """The recipes, or what comes for each data set: in an installed package, or in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def own_or_shipped(path: str | os.PathLike[str]) -> Path:
    """The path; if nothing is there, of `datasets/...` the file that comes with the package."""
    path = Path(path).expanduser()
    if path.exists() or path.parts[:1] != ("datasets",):
        return path
    return shipped_folder("datasets").joinpath(*path.parts[1:])


def _flush(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
