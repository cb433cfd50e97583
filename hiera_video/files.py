"""Files: read with checks, written whole or not at all, and those that come with the package.

`read_bytes` opens what a user names, and `replacing` is the only place where a file or folder
appears under its final name. What a process writes under another name states the process, so that
others remove it if that was killed.
"""

import csv
import glob
import json
import logging
import math
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from multiprocessing import util
from pathlib import Path
from typing import Any, Literal, NoReturn

from hiera_video.errors import OutputError, UserError, nearest

logger = logging.getLogger(__name__)

ObjectHook = Callable[[dict[str, Any]], Any]

MAX_FILE_BYTES = 2**30  # lists of ten million videos have less
MAX_LINE = 2**20  # characters


def read_bytes(
    path: str | os.PathLike[str], error: type[UserError], at_most: int = MAX_FILE_BYTES
) -> bytes:
    """The content of a regular file.

    Pipes and devices are refused: reading one may wait forever, and a second process, or a second
    look, would find nothing.

    Args:
        error: what is raised; its message names the file.
        at_most: bytes; a larger file is an error.
    """
    try:
        is_regular = stat.S_ISREG(os.stat(path).st_mode)
        if is_regular:
            with open(path, "rb") as file:
                content = file.read(at_most + 1)
    except OSError as failure:
        raise error(f"{path}: {failure.strerror or failure}") from None
    except ValueError as failure:
        raise error(f"{path}: no file can have this name ({failure})") from None
    if not is_regular:
        raise error(f"{path}: a folder, a pipe or a device; expected a regular file")
    if len(content) > at_most:
        raise error(f"{path}: larger than {at_most:,} bytes; check that it is the right file")
    return content


def read_text(path: Path, error: type[UserError], at_most: int = MAX_FILE_BYTES) -> str:
    """The text of a UTF-8 file, without byte-order mark and with "\\n" as line ends.

    Args:
        error, at_most: as for `read_bytes`. Other errors are text that is not UTF-8, and lines of
            more than `MAX_LINE` characters in other files than .json.
    """
    content = read_bytes(path, error, at_most)
    if kind := _kind_of_content(content):
        raise error(f"{path}: {kind}")
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as failure:
        number = 1 + content.count(b"\n", 0, failure.start)
        problem = f"not UTF-8 text (byte {failure.start}); save it as UTF-8"
        raise error(f"{path}:{number}: {problem}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix.lower() != ".json":  # which may be one line
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > MAX_LINE:
                raise error(
                    f"{path}:{number}: a line of {len(line):,} characters; allowed are {MAX_LINE:,}"
                )
    return text


def _kind_of_content(content: bytes) -> str:
    """What a file is that is known not to be UTF-8 text, with what to do; else ""."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:2].count(0) == 1:
        return "UTF-16 text, or no text at all; save it as UTF-8 text"
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return "a workbook or an archive, not text; save a table as csv in UTF-8"
    if content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "a compressed file; unpack it"
    return ""


def load_json(
    text: str, where: str, error: type[UserError], object_hook: ObjectHook | None = None
) -> Any:
    """`parse_json`, whose errors name a place.

    Args:
        where: the file, or the file and the line.
        error: what is raised instead of a ValueError.
    """
    try:
        return parse_json(text, object_hook)
    except json.JSONDecodeError as failure:
        line = f":{failure.lineno}" if failure.lineno > 1 else ""
        hint = "; lines of JSON belong in a .jsonl file" if "Extra" in failure.msg else ""
        raise error(
            f"{where}{line}: not JSON ({failure.msg} at column {failure.colno}){hint}"
        ) from None
    except ValueError as failure:
        raise error(f"{where}: not JSON ({failure})") from None


def parse_json(text: str | bytes, object_hook: ObjectHook | None = None) -> Any:
    """Parses JSON text.

    Args:
        object_hook: gives what an object becomes, as soon as it is parsed.

    Raises:
        ValueError: text that is not JSON, NaN and Infinity included, or numbers and nesting beyond
            what Python parses.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a value of JSON")

    try:
        return json.loads(text, parse_constant=refuse, object_hook=object_hook)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    except ValueError as failure:  # of numbers with thousands of digits, with advice about Python
        raise ValueError(str(failure).partition(";")[0]) from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write a file or a folder to, which becomes `path` when the block has ended.

    The new content is on the disk before it gets its name, and what stood there before is kept
    until then. If the block raises, what it wrote is removed. A killed process leaves a hidden
    `.NAME.PROCESS.part` beside `path`, which the next process that writes there removes.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{_this_process()}.part")
    _remove_left_in(path.parent)
    _remove(part)  # of an earlier process with this number
    try:
        yield part
        for written in [part, *_below(part)]:
            _flush(written)
        if path.is_dir():  # which os.replace does not replace
            old = part.with_suffix(".old.part")
            _remove(old)
            path.rename(old)
            part.rename(path)
            _remove(old)
        else:
            part.replace(path)
        _flush(path.parent)
    except OSError as error:
        about = error.filename
        if about is not None and not Path(os.fsdecode(about)).is_relative_to(part):
            raise
        with reported(path):
            raise
    finally:
        _remove(part)


@contextmanager
def replacing_all(paths: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """`replacing` for files that belong together, by key: all appear, the first last, or none."""
    with ExitStack() as stack:
        yield {key: stack.enter_context(replacing(path)) for key, path in paths.items()}


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises errors of the file system as OutputErrors, which name what is written: `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError) and not isinstance(error, OutputError):
            raise
        reason = error.strerror or str(error)
        raise OutputError(error.errno, reason, os.fspath(path)) from error


def utf8_text(text: str) -> str:
    """The text with escapes for surrogates, which names of files have for bytes not in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_text(path: Path, text: str) -> None:
    """Replaces a file by UTF-8 text; surrogates become backslash escapes, as in all files."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def json_text(content: Any, **options: Any) -> str:
    """JSON text, which UTF-8 can encode; every JSON that the package writes is made here.

    Args:
        options: further arguments of `json.dumps`.

    Raises:
        ValueError: a number is not finite, which JSON cannot state: see `finite_or_none`.
    """
    # The escapes of surrogates have the form of JSON's, so that names are read back the same.
    return utf8_text(json.dumps(content, **{"ensure_ascii": False, "allow_nan": False, **options}))


def finite_or_none(value: float) -> float | None:
    """The value for JSON: null for a figure that is not defined, such as the mean of nothing."""
    return value if math.isfinite(value) else None


def write_json(path: Path, content: Any) -> None:
    """Replaces a file by indented JSON."""
    write_text(path, json_text(content, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]], *, line_end: str = "\n") -> None:
    """Replaces a file by comma-separated rows in UTF-8; fields are quoted where necessary."""
    with (
        replacing(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file, lineterminator=line_end).writerows(rows)


def append(path: Path, data: bytes) -> None:
    """Adds data to the end of a file; that of concurrent processes does not interleave.

    Raises:
        OutputError: the file cannot be written.
    """
    with reported(path), open(path, "ab") as file:
        file.write(data)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Adds one line, as `append` does."""
    append(path, f"{json_text(record)}\n".encode())


def remove_unfinished(folder: Path, *, deep: bool) -> None:
    """Removes what killed processes left of `replacing` in a folder that nobody else writes into.

    Args:
        deep: also in the folders below it.
    """
    for path in [*(_below(folder) if deep else folder.iterdir())]:
        if path.match(".*.part"):
            _remove(path)


def _below(path: Path) -> Iterator[Path]:
    """All files and folders below a folder, of any depth, which Path.rglob is not made for."""
    pending = [path] if path.is_dir() else []
    while pending:
        for entry in os.scandir(pending.pop()):
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))


def make_folder(path: Path) -> None:
    """Makes a folder if it is missing, below folders of any depth, unlike Path.mkdir."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


def temporary_folder() -> Path:
    """The folder for temporary files of this process, which is removed when the process ends.

    It is that of multiprocessing, in which the socket of the fork server lies. If the process is
    killed, the next one that calls this removes it.
    """
    folder = Path(util.get_temp_dir())
    if not any(folder.glob("*.mark")):  # processes that this one starts share the folder
        (folder / f"{_this_process()}.mark").touch()
        # Not Path.glob, which fails where another process removes its folder meanwhile.
        for name in glob.glob("pymp-*/*.mark", root_dir=folder.parent):
            mark = folder.parent / name
            if _is_left_over(mark, mark.name):
                shutil.rmtree(mark.parent, ignore_errors=True)  # others may do so, too
    return folder


def make_writable_folder(folder: Path) -> None:
    """Makes a folder if it is missing; raises OutputError if no file can be written into it."""
    with reported(folder):
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
        OutputError: the folder cannot be written into.
    """
    import fcntl  # missing on some systems

    with reported(folder):
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
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {started}"
        with reported(folder):
            os.write(file.fileno(), holder.encode())
        yield


def shipped_folder(name: Literal["configs", "datasets"]) -> Path:
    """The recipes, or what comes for each data set: in an installed package, or in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, in which `~` or `~NAME` stands for a home folder if there is such a user."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises for a file called ~$list.csv


def missing_path(path: str | os.PathLike[str]) -> str:
    """That a path does not exist, in words, with the first folder that is missing, and a name that
    is similar to the missing one."""
    missing = user_path(path)
    while not os.path.exists(parent := missing.parent) and parent != missing:
        missing = parent
    alike = ""
    with suppress(OSError):  # a file, or a folder that cannot be listed
        alike = nearest(missing.name, (entry.name for entry in os.scandir(parent)))
    near = f"; did you mean {str(parent / alike)!r}?" if alike else ""
    hint = similar_path(os.fspath(path)) or near
    nor = "" if missing == user_path(path) or is_address(os.fspath(path)) else f", nor {missing}"
    here = "" if hint or missing.is_absolute() else f" in {os.getcwd()}"
    return f"there is no such file or folder{here}{nor}{hint}"


def is_address(path: str) -> bool:
    """Whether a path has the form of an address, as `https://...` has and `C://...` has not."""
    return "://" in path and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def similar_path(path: str) -> str:
    """Why a path that does not exist may be wrong, as the end of a message; "" if unknown.

    It may have the separators of Windows, or letters in another Unicode form than the names of
    files: macOS writes `é` as two code points (NFD), other systems as one (NFC).
    """
    if not path:
        return "; its path is empty"
    if is_address(path):
        return "; addresses are not opened: download it, and name the file"
    if "\\" in path and os.sep != "\\":
        return "; write / between folders, not the backslashes of Windows"
    if "*" in path:
        return "; patterns are not expanded here: name a folder, or a list of files"
    if os.path.islink(path):
        return f"; it is a link to {os.readlink(path)!r}, which does not exist"
    found = os.sep if path.startswith(os.sep) else ""
    for part in filter(None, path.split(os.sep)):
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        there = (os.path.join(found, form) for form in forms)
        found = next((name for name in there if os.path.lexists(name)), "")
        if not found:
            return ""
    return (
        f"; there is {found!a}, the same letters in another Unicode form; write both in one (NFC)"
    )


def own_or_shipped(path: str | os.PathLike[str]) -> Path:
    """The path; if nothing is there, of `datasets/...` the file that comes with the package."""
    path = user_path(path)
    if os.path.exists(path) or path.parts[:1] != ("datasets",):
        return path
    return shipped_folder("datasets").joinpath(*path.parts[1:])


def _this_process() -> str:
    """`PID-MACHINE`, for names of files that this process removes unless it is killed.

    Containers of a machine may share its name, and count their processes each for itself.
    """
    namespace = Path("/proc/self/ns/pid")
    machine = f"{socket.gethostname()} {os.readlink(namespace) if namespace.is_symlink() else ''}"
    return f"{os.getpid()}-{zlib.crc32(machine.encode()):08x}"


def _is_left_over(path: Path, process: str) -> bool:
    """Whether a file is of this user and, by `PID-MACHINE`, of a process here that has ended."""
    found = re.match(r"(\d{1,7})(-[0-9a-f]{8})\b", process)
    if os.name != "posix" or found is None or not _this_process().endswith(found[2]):
        return False
    with suppress(PermissionError, FileNotFoundError):  # of another user; removed meanwhile
        try:
            os.kill(int(found[1]), 0)  # asks whether it exists
        except ProcessLookupError:
            return path.lstat().st_uid == os.geteuid()
    return False


@cache
def _remove_left_in(folder: Path) -> None:
    """Removes what killed processes left of `replacing` in a folder; does so once."""
    for path in folder.glob(".*"):
        found = re.fullmatch(r"\.(.+)\.(\d+-[0-9a-f]+)(\.old)?\.part", path.name, re.DOTALL)
        if found and _is_left_over(path, found[2]):
            with suppress(FileNotFoundError):  # another process removes it, too
                if found[3] and not (folder / found[1]).exists():
                    path.rename(folder / found[1])  # what was about to be replaced
                else:
                    _remove(path)


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
