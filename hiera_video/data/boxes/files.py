"""Reads files of boxes (csv, JSON lines, pickled proposals) into columns of numbers.

A csv file without mistakes is parsed by columns (pyarrow). Any other csv file, and JSON lines, are
read row by row, which finds the mistakes and their lines.
"""

from __future__ import annotations

import csv
import io
import logging
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hiera_video.data.videos.files import AnnotationError, load_json, read_text

logger = logging.getLogger(__name__)

LastColumn = Literal["person", "score"]
Kind = Literal["row", "box", "action", "duplicate"]
NUMBERS = ("second", "x1", "y1", "x2", "y2", "action", "person", "score")
IDS = ("action", "person")
REQUIRED = ("video", *NUMBERS[:5])
SYNONYMS = {
    "video_id": "video",
    "timestamp": "second",
    "time": "second",
    "t_sec": "second",
    "action_id": "action",
    "action_name": "action",
    "label": "action",
    "class": "action",
    "person_id": "person",
    "entity_id": "person",
}
MAX_ID = 2**31 - 1
KEYFRAME_COLUMNS = ["video", "second"]  # rows of these alone are key frames without boxes


@dataclass(frozen=True)
class Problem:
    """A mistake in one row."""

    line: int
    kind: Kind  # "row": the row cannot be used at all
    text: str


@dataclass(frozen=True)
class RawRows:
    """The readable rows of a file."""

    videos: tuple[str, ...]
    video: np.ndarray  # int32 [R], position in `videos`
    values: dict[str, np.ndarray]  # float64 [R] for each of NUMBERS; NaN: not given
    lines: np.ndarray  # int64 [R]
    problems: list[Problem]


def read_rows(path: Path, last: LastColumn, action_ids: Mapping[str, int]) -> RawRows:
    """Reads a csv, JSON-lines or pickle file.

    Args:
        last: meaning of the eighth column of a csv file without header.
        action_ids: ids of action names, for files that contain names.

    Raises:
        AnnotationError: the file as a whole cannot be read.
    """
    match path.suffix.lower():
        case ".pkl" | ".pickle":
            return _read_pickle(path)
        case ".jsonl" | ".ndjson":
            return _convert(_json_rows(path), action_ids)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror}") from None
    columns, num_skipped = _columns(path, data, last)
    try:
        return _read_by_columns(data, columns, num_skipped)
    except _NeedsSlowPath as reason:
        logger.debug("%s is read row by row: %s", path, reason)
        return _convert(_csv_rows(path, columns, num_skipped), action_ids)


# ---- csv


def _columns(path: Path, data: bytes, last: LastColumn) -> tuple[list[str], int]:
    """Names of the columns, and the number of header lines (0 or 1)."""
    without_header = ["video", *NUMBERS[:6], last]
    text = data[: 1 << 16].decode("utf-8-sig", errors="replace")
    rows = [row for row in csv.reader(io.StringIO(text[: text.rfind("\n") + 1] or text)) if row]
    if not rows:
        return without_header, 0
    header = [field.strip().lower() for field in rows[0]]
    names = [SYNONYMS.get(field, field) for field in header]
    if "video" not in names:
        width = next((len(row) for row in rows if len(row) != 2), 8)
        return without_header[: 7 if width == 7 else 8], 0
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise AnnotationError(
            f"{path}:1: no column {', '.join(missing)}; needed are {', '.join(REQUIRED)}, and "
            "possible action, person, score"
        )
    return names, 1


class _NeedsSlowPath(Exception):
    """A csv file that cannot be parsed by columns. `str()` is the reason."""


def _read_by_columns(data: bytes, columns: list[str], num_skipped: int) -> RawRows:
    """Reads a csv file without mistakes.

    Raises:
        _NeedsSlowPath: the file may contain a mistake.
    """
    try:
        data.decode()
    except UnicodeDecodeError:
        raise _NeedsSlowPath("it is not UTF-8") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if num_skipped:
        data = data.partition(b"\n")[2]
    if not data.strip():
        return _raw_rows((), [], np.empty((len(NUMBERS), 0)), [])
    try:
        table = _parse(data, columns)
    except _NeedsSlowPath:
        table = _parse(_with_full_rows(data, columns), columns)
    values = np.full((len(NUMBERS), len(table)), np.nan)
    for row, name in zip(values, NUMBERS, strict=True):
        if name in columns:
            row[:] = table[name].to_numpy()
    _check(table, columns, values)
    coded = table["video"].chunk(0)
    lines = np.arange(1, len(table) + 1) + num_skipped
    return _raw_rows(coded.dictionary.to_pylist(), coded.indices.to_numpy(), values, lines)


def _with_full_rows(data: bytes, columns: list[str]) -> bytes:
    """Adds the missing fields, empty, to rows of two columns."""
    if columns[:2] != KEYFRAME_COLUMNS or b'"' in data:
        raise _NeedsSlowPath("rows have different numbers of columns, or other mistakes")
    rest = b"," * (len(columns) - 2)
    lines = data.split(b"\n")
    return b"\n".join(
        line.rstrip(b"\r") + rest if line.count(b",") == 1 else line for line in lines
    )


def _parse(data: bytes, columns: list[str]) -> Any:
    """A pyarrow table of `columns`, with empty fields as null."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    types = {name: pyarrow.float64() for name in columns if name in NUMBERS}
    types["video"] = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    try:
        table = arrow_csv.read_csv(
            pyarrow.BufferReader(data),
            arrow_csv.ReadOptions(
                use_threads=False, column_names=columns, block_size=max(len(data) + 1, 1 << 20)
            ),
            arrow_csv.ParseOptions(ignore_empty_lines=False),
            arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=["video", *(name for name in NUMBERS if name in columns)],
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise _NeedsSlowPath(str(error)) from None
    return table.combine_chunks()


def _check(table: Any, columns: list[str], values: np.ndarray) -> None:
    """Raises _NeedsSlowPath unless all rows of a table are boxes or empty key frames."""
    names = table["video"].chunk(0).dictionary.to_pylist()
    if any(name != name.strip() or not name for name in names):
        raise _NeedsSlowPath("names of videos are empty or have spaces around them")
    by_name = dict(zip(NUMBERS, values, strict=True))
    needed = [name for name in (*REQUIRED[1:], "score") if name in columns]
    is_box = np.logical_and.reduce([np.isfinite(by_name[name]) for name in needed])
    is_empty = np.isfinite(values[0, ~is_box]) & np.isnan(values[1:, ~is_box]).all(axis=0)
    if not is_empty.all():
        raise _NeedsSlowPath("numbers are missing or not finite")
    for name, numbers in by_name.items():
        given = numbers[~np.isnan(numbers)]
        if name in columns and table[name].null_count != len(table) - len(given):
            raise _NeedsSlowPath(f"a {name} is the word nan")
        if name in IDS and ((given != np.rint(given)) | (np.abs(given) > MAX_ID)).any():
            raise _NeedsSlowPath(f"a {name} is not a whole number")


def _raw_rows(
    videos: Iterable[str],
    video: Any,
    values: np.ndarray,
    lines: Any,
    problems: Iterable[Problem] = (),
) -> RawRows:
    """Rows of `values` [len(NUMBERS), R]."""
    return RawRows(
        tuple(videos),
        np.asarray(video, dtype=np.int32),
        dict(zip(NUMBERS, values, strict=True)),
        np.asarray(lines, dtype=np.int64),
        list(problems),
    )


def _csv_rows(
    path: Path, columns: list[str], num_skipped: int
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (line, fields by column) or (line, description of a mistake)."""
    reader = csv.reader(io.StringIO(read_text(path)), skipinitialspace=True)
    for fields in reader:
        if reader.line_num <= num_skipped or not any(field.strip() for field in fields):
            continue
        is_keyframe = len(fields) == 2 and columns[:2] == KEYFRAME_COLUMNS
        if len(fields) == len(columns) or is_keyframe:
            yield reader.line_num, dict(zip(columns, fields, strict=False))
        else:
            yield (
                reader.line_num,
                f"{len(fields)} columns, needed are {len(columns)} as in the rows before: "
                + ",".join(columns),
            )


# ---- row by row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        entry = load_json(line, f"{path}:{number}")
        if isinstance(entry, dict):
            yield number, {SYNONYMS.get(key.lower(), key.lower()): entry[key] for key in entry}
        else:
            yield number, 'not an object such as {"video": ..., "second": ..., "x1": ...}'


def _convert(
    rows: Iterable[tuple[int, dict[str, Any] | str]], action_ids: Mapping[str, int]
) -> RawRows:
    """Converts rows one by one; a row with a mistake becomes a `Problem`."""
    position: dict[str, int] = {}
    video, lines, problems = [], [], []
    table: list[list[float]] = []
    for line, fields in rows:
        if isinstance(fields, str):
            problems.append(Problem(line, "row", fields))
            continue
        try:
            name = str(fields.get("video") or "").strip()
            if not name:
                raise ValueError("no video named; needed is its name")
            numbers = [_number(key, fields, action_ids) for key in NUMBERS]
        except ValueError as error:
            problems.append(Problem(line, "row", str(error)))
            continue
        video.append(position.setdefault(name, len(position)))
        table.append(numbers)
        lines.append(line)
    values = np.array(table, dtype=np.float64).reshape(-1, len(NUMBERS))
    return _raw_rows(position, video, values.T.copy(), lines, problems)


def _number(key: str, fields: dict[str, Any], action_ids: Mapping[str, int]) -> float:
    """One field as a number. NaN if it is empty and optional, or only the key frame is given.

    Raises:
        ValueError: with the mistake, for a `Problem`.
    """
    value = fields.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        only_keyframe = not any(fields.get(k) not in (None, "") for k in NUMBERS[1:])
        optional = key in IDS or key not in fields
        if (key not in REQUIRED and optional) or (key != "second" and only_keyframe):
            return float("nan")
        raise ValueError(f"{key} is empty; needed is a number")
    if key == "action" and isinstance(value, str) and value.strip() in action_ids:
        return action_ids[value.strip()]
    try:
        number = float(value)
    except (TypeError, ValueError):
        known = ", an id or a name of the label map" if key == "action" else ""
        raise ValueError(f"{key} is {value!r}; needed is a number{known}") from None
    if not np.isfinite(number):
        raise ValueError(f"{key} is {value!r}; needed is a finite number")
    if key in IDS and (number != int(number) or abs(number) > MAX_ID):
        raise ValueError(f"{key} is {value!r}; needed is a whole number")
    return number


# ---- pickled proposals


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for text in {encoding}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


SUBSTITUTES = {  # protocol 2 writes bytes as calls of these functions
    ("_codecs", "encode"): _latin1_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("__builtin__", "bytes"): _empty_bytes,
}
ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArraysOnly(pickle.Unpickler):
    """Builds containers, numbers, text and numpy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in SUBSTITUTES:
            return SUBSTITUTES[module, name]
        module = module.replace("numpy.core", "numpy._core")  # written by numpy 1
        if (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_pickle(path: Path) -> RawRows:
    """Reads mmaction2's proposals: {"video,0902": [N, 5] of x1 y1 x2 y2 score}.

    `lines` are the numbers of the entries. Nothing in the file is executed.
    """
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror}") from None
    except Exception as error:  # damaged pickles raise nearly any type
        raise AnnotationError(
            f"{path}: refused ({error}); allowed is a dict from 'video,second' to arrays of numpy, "
            "and nothing that runs code"
        ) from None
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: a {type(content).__name__}; needed is a dict of arrays")
    position: dict[str, int] = {}
    video, lines, parts, problems = [], [], [], []
    for line, (key, boxes) in enumerate(content.items(), 1):
        name, _, stamp = str(key).rpartition(",")
        try:
            rows = np.asarray(boxes, dtype=np.float64)
            second = float(stamp)
        except (TypeError, ValueError):
            problems.append(Problem(line, "row", f"{key!r}: needed is 'video,second' and an array"))
            continue
        if rows.size == 0:
            rows = np.full((1, 5), np.nan)  # an empty key frame
        elif rows.ndim != 2 or rows.shape[1] != 5 or not np.isfinite(rows).all():
            text = f"{key!r}: an array {list(rows.shape)}; needed are finite numbers [N, 5]"
            problems.append(Problem(line, "row", text))
            continue
        if not name or not np.isfinite(second):
            problems.append(Problem(line, "row", f"{key!r}: needed is 'video,second'"))
            continue
        part = np.full((len(NUMBERS), len(rows)), np.nan)
        part[NUMBERS.index("second")] = second
        part[[NUMBERS.index(name) for name in ("x1", "y1", "x2", "y2", "score")]] = rows.T
        parts.append(part)
        video += [position.setdefault(name, len(position))] * len(rows)
        lines += [line] * len(rows)
    values = np.concatenate([np.empty((len(NUMBERS), 0)), *parts], axis=1)
    return _raw_rows(position, video, values, lines, problems)
