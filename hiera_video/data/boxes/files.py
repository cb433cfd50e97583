"""Files of boxes as rows of numbers: csv, JSON lines, pickled proposals, each with its mistakes.

A csv file without faults is parsed whole, by columns (pyarrow). Anything else goes row by row
through `_convert`, which says what is wrong on which line.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hiera_video.data.videos.files import AnnotationError, load_json, read_text

Last = Literal["person", "score"]
Kind = Literal["row", "box", "action", "duplicate"]
NUMBERS = ("second", "x1", "y1", "x2", "y2", "action", "person", "score")
REQUIRED = ("video", *NUMBERS[:5])
SYNONYMS = {
    **{"video_id": "video", "timestamp": "second", "time": "second", "t_sec": "second"},
    **{"action_id": "action", "action_name": "action", "label": "action", "class": "action"},
    **{"person_id": "person", "entity_id": "person"},
}
RECONSTRUCTORS = {
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row."""

    line: int
    kind: Kind  # row: it cannot be used at all
    text: str


@dataclass(frozen=True)
class RawRows:
    """The readable rows of a file."""

    videos: tuple[str, ...]
    video: np.ndarray  # int32 [R]
    values: dict[str, np.ndarray]  # float64 [R] each; NaN: not given
    lines: np.ndarray  # int64 [R]
    problems: list[Problem]


def read_rows(path: Path, last: Last, action_ids: Mapping[str, int]) -> RawRows:
    """Rows of a csv, JSON-lines or pickle file.

    Args:
        last: what the eighth column is, in a csv file without header.
        action_ids: ids of action names, for files that have names.

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
    rows = _read_columns(data, columns, num_skipped)
    return rows if rows is not None else _convert(_csv_rows(path, columns, num_skipped), action_ids)


# ---- csv


def _columns(path: Path, data: bytes, last: Last) -> tuple[list[str], int]:
    """Names of the columns, and the number of header lines (0 or 1)."""
    fixed = ["video", *NUMBERS[:6], last]
    text = data[: 1 << 16].decode("utf-8-sig", errors="replace")
    rows = [row for row in csv.reader(io.StringIO(text[: text.rfind("\n") + 1] or text)) if row]
    if not rows:
        return fixed, 0
    header = [field.strip().lower() for field in rows[0]]
    names = [SYNONYMS.get(field, field) for field in header]
    if "video" not in names:
        width = next((len(row) for row in rows if len(row) != 2), 8)
        return fixed[: 7 if width == 7 else 8], 0
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise AnnotationError(
            f"{path}:1: no column {', '.join(missing)}; needed are {', '.join(REQUIRED)}, and "
            "possible action, person, score"
        )
    return names, 1


def _read_columns(data: bytes, columns: list[str], num_skipped: int) -> RawRows | None:
    """All rows at once; None where a row needs a closer look."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    key_frames: list[tuple[int, str]] = []
    odd: list[int] = []

    def take(row: Any) -> str:
        if row.actual_columns == 2:
            key_frames.append((row.number, row.text))
        else:
            odd.append(row.number)
        return "skip"

    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    data = data.removeprefix(b"\xef\xbb\xbf")
    for _ in range(num_skipped):
        data = data.partition(b"\n")[2]
    if not data.strip():
        return RawRows((), np.empty(0, np.int32), _no_values(0), np.empty(0, np.int64), [])
    types = {name: pyarrow.float64() for name in columns if name in NUMBERS}
    types["video"] = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    try:
        table = arrow_csv.read_csv(
            pyarrow.BufferReader(data),
            arrow_csv.ReadOptions(
                use_threads=False, column_names=columns, block_size=max(len(data) + 1, 1 << 20)
            ),
            arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=take),
            arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=["video", *(name for name in NUMBERS if name in columns)],
                null_values=[""],
                strings_can_be_null=False,
            ),
        ).combine_chunks()
    except pyarrow.ArrowInvalid:
        return None
    if odd:
        return None
    at = {number: text.split(",") for number, text in key_frames}
    lines = np.arange(1, len(table) + len(at) + 1)
    lines = lines[~np.isin(lines, list(at))]
    values = {
        name: table[name].to_numpy() if name in columns else np.full(len(table), np.nan)
        for name in NUMBERS
    }
    names: tuple[str, ...] = ()
    video = np.empty(0, np.int32)
    if len(table):
        coded = table["video"].chunk(0)
        names, video = tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy()
        full = np.isfinite(np.stack([values[name] for name in REQUIRED[1:]])).all(axis=0)
        if not full.all() or not _is_clean(table, columns, values):
            return None
    if any(name != name.strip() or not name for name in names):
        return None
    if at:  # rows of two columns, put in their place among the others
        try:
            seconds = np.array([float(fields[1]) for fields in at.values()])
        except ValueError:
            return None
        position = {name: i for i, name in enumerate(names)}
        found = [fields[0].strip() for fields in at.values()]
        if '"' in "".join(found) or not np.isfinite(seconds).all() or not all(found):
            return None
        extra = [position.setdefault(name, len(position)) for name in found]
        names = tuple(position)
        order = np.argsort(np.concatenate([lines, list(at)]), kind="stable")
        video = np.concatenate([video, np.array(extra, np.int32)])[order]
        gap = np.full(len(at), np.nan)
        for name in NUMBERS:
            more = seconds if name == "second" else gap
            values[name] = np.concatenate([values[name], more])[order]
        lines = np.concatenate([lines, list(at)])[order]
    return RawRows(names, video, values, lines + num_skipped, [])


def _is_clean(table: Any, columns: list[str], values: dict[str, np.ndarray]) -> bool:
    """Whether ids are whole numbers and scores, where there is a column of them, all given."""
    for name in ("action", "person"):
        given = values[name][~np.isnan(values[name])]
        if (given != np.rint(given)).any() or (np.abs(given) > 2**31 - 1).any():
            return False
        if table[name].null_count != len(table) - len(given) if name in columns else False:
            return False  # the word "nan"
    return "score" not in columns or bool(np.isfinite(values["score"]).all())


def _csv_rows(
    path: Path, columns: list[str], num_skipped: int
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, fields by column, or what is wrong)."""
    reader = csv.reader(io.StringIO(read_text(path)), skipinitialspace=True)
    header = columns if num_skipped else None
    for fields in reader:
        if reader.line_num <= num_skipped or not any(field.strip() for field in fields):
            continue
        if len(fields) == len(columns) or (len(fields) == 2 and header is None):
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
    return RawRows(
        tuple(position),
        np.array(video, dtype=np.int32),
        dict(zip(NUMBERS, values.T.copy(), strict=True)),
        np.array(lines, dtype=np.int64),
        problems,
    )


def _number(key: str, fields: dict[str, Any], action_ids: Mapping[str, int]) -> float:
    """One field as a number; NaN where an optional one is empty, or all but the key frame are."""
    value = fields.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        only_key_frame = not any(fields.get(k) not in (None, "") for k in NUMBERS[1:])
        optional = key in ("action", "person") or key not in fields
        if (key not in REQUIRED and optional) or (key != "second" and only_key_frame):
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
    if key in ("action", "person") and (number != int(number) or abs(number) > 2**31 - 1):
        raise ValueError(f"{key} is {value!r}; needed is a whole number")
    return number


def _no_values(num_rows: int) -> dict[str, np.ndarray]:
    return {name: np.full(num_rows, np.nan) for name in NUMBERS}


# ---- pickled proposals


class _ArraysOnly(pickle.Unpickler):
    """Builds containers, numbers, text and numpy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin1_bytes
        if (module, name) in (("builtins", "bytes"), ("__builtin__", "bytes")):  # and none
            return _no_bytes
        module = module.replace("numpy.core", "numpy._core")  # until numpy 2
        if (module, name) in RECONSTRUCTORS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _no_bytes() -> bytes:
    return b""


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for text in {encoding}")
    return text.encode("latin1")


def _read_pickle(path: Path) -> RawRows:
    """mmaction2's proposals: {"video,0902": [N, 5] of x1 y1 x2 y2 score}; lines count its entries.

    Nothing in the file is executed.
    """
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror}") from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise AnnotationError(
            f"{path}: refused ({error}); allowed is a dict from 'video,second' to arrays of numpy, "
            "and nothing that runs code"
        ) from None
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: a {type(content).__name__}; needed is a dict of arrays")
    position: dict[str, int] = {}
    parts, problems = [], []
    for line, (key, boxes) in enumerate(content.items(), 1):
        name, _, stamp = str(key).rpartition(",")
        try:
            rows = np.asarray(boxes, dtype=np.float64)
            second = float(stamp)
        except (TypeError, ValueError):
            problems.append(Problem(line, "row", f"{key!r}: needed is 'video,second' and an array"))
            continue
        if rows.size == 0:
            rows = np.full((1, 5), np.nan)  # looked at, and nobody there
        elif rows.ndim != 2 or rows.shape[1] != 5 or not np.isfinite(rows).all():
            text = f"{key!r}: an array {list(rows.shape)}; needed are finite numbers [N, 5]"
            problems.append(Problem(line, "row", text))
            continue
        if not name or not np.isfinite(second):
            problems.append(Problem(line, "row", f"{key!r}: needed is 'video,second'"))
            continue
        head = np.tile([position.setdefault(name, len(position)), line, second], (len(rows), 1))
        parts.append(np.hstack([head, rows]))
    rows = np.concatenate(parts) if parts else np.empty((0, 8))
    values = _no_values(len(rows))
    for name, column in zip(
        ("second", "x1", "y1", "x2", "y2", "score"), rows[:, 2:].T, strict=True
    ):
        values[name] = column.copy()
    video, lines = rows[:, 0].astype(np.int32), rows[:, 1].astype(np.int64)
    return RawRows(tuple(position), video, values, lines, problems)
