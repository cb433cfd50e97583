"""Reads files of boxes at key frames: ground truth, proposals and detections.

The official files of AVA, and those of SlowFast and mmaction2, are read without changes. Other data
sets use the same csv format, or csv with a header, or JSON lines, with the columns video, second,
x1, y1, x2, y2 and, where they apply, action (id or name), person, score.
"""

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hiera_video.data.boxes.pickled import read_arrays
from hiera_video.data.boxes.table import BoxTable, Kind, LabelMap, Problem
from hiera_video.data.videos.files import csv_rows, json_lines
from hiera_video.data.videos.mistakes import check_content, stated_separator
from hiera_video.errors import AnnotationError, counted
from hiera_video.files import read_bytes, read_text, user_path, utf8_text

logger = logging.getLogger(__name__)

Role = Literal["ground truth", "proposals", "detections"]

CORNERS = ("x1", "y1", "x2", "y2")
REQUIRED = ("video", "second", *CORNERS)
COLUMNS = (*REQUIRED, "action", "person", "score")
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
NEEDED = {"action": "a whole number from 1, or a name of the label map", "person": "a whole number"}
MAX_ID = 2**31 - 1
MIN_MOST_BOXES = 1_000_000  # of a pickle, which may refer to the same array again and again
LOWEST_ID = {"action": 1, "person": -MAX_ID}


def read_boxes(
    role: Role,
    path: str | os.PathLike[str],
    label_map: LabelMap | None = None,
    *,
    strict: bool = True,
) -> BoxTable:
    """Reads a file of boxes at key frames, and refuses mistakes.

    Ground truth has boxes with actions (7 or 8 columns); rows of 2 columns are empty key frames.
    Proposals are boxes of people with scores: SlowFast's csv, mmaction2's pickle, csv or JSON
    lines. Detections have actions and scores; their boxes and ids are not checked: scoring counts
    them. Repeated rows are kept, with a warning.

    Args:
        strict: False: boxes with problems, and ids that are not in the label map, are kept.

    Raises:
        AnnotationError: the first mistake, with file and line, and the number of others. It may be
            that a detection has no score or no action; that scores of proposals are outside 0..1
            or given for some boxes only; that a pickle would run code.
    """
    strict = strict and role != "detections"
    check_actions = strict and role == "ground truth"  # of proposals, only boxes are used
    table = inspect_boxes(role, path, label_map, check_actions=check_actions)
    fatal = ("row", "box", "action") if strict else ("row",)
    mistakes = [problem for problem in table.problems if problem.kind in fatal]
    if mistakes:
        others = f" (and {len(mistakes) - 1} more such lines)" if mistakes[1:] else ""
        raise AnnotationError(f"{table.source}:{mistakes[0].line}: {mistakes[0].text}{others}")
    repeated = [problem.line for problem in table.problems if problem.kind == "duplicate"]
    if repeated:
        rows = counted(len(repeated), "repeated row")
        text = f"{rows}, the first in line {repeated[0]}"
        logger.warning("%s: %s; all rows count", table.source, text)
    return table


def read_keyframes(path: str | os.PathLike[str]) -> list[tuple[str, float]]:
    """Reads (video, second) of a list such as AVA's excluded time stamps; ignores other columns.

    A header may name the columns as those of boxes, in any order; without one, they are the first.

    Raises:
        AnnotationError: a row has no video and number.
    """
    source, result = user_path(path), []
    text = read_text(source, AnnotationError)
    read = csv_rows(source, text, skipinitialspace=True)
    rows = [(line, row) for line, row in read if any(field.strip() for field in row)]
    header = _column_names(rows[0][1]) if rows else []
    video_column, second_column = 0, 1
    if "video" in header:
        video_column = header.index("video")
        second_column = header.index("second") if "second" in header else 1
        del rows[0]
    for line, row in rows:
        try:
            video, second = row[video_column].strip(), float(row[second_column])
            if not video or not 0 <= second < 1e6:
                raise ValueError
        except (IndexError, ValueError):
            raise AnnotationError(
                f"{source}:{line}: {','.join(row)!r}; expected video,second"
            ) from None
        result.append((video, second))
    return result


def inspect_boxes(
    role: Role,
    path: str | os.PathLike[str],
    label_map: LabelMap | None,
    *,
    check_actions: bool = True,
) -> BoxTable:
    """Reads the rows of a file that can be read; `problems` lists all mistakes.

    Args:
        role: kind of the file, which decides on the checks. The last column of a csv without header
            is the person in ground truth, else the score.
        check_actions: whether ids that are not in the label map are a problem.
    """
    import pyarrow.compute

    source = user_path(path)
    match source.suffix.lower():
        case ".pkl" | ".pickle":
            fields, lines, problems = _read_pickle(source)
        case ".json":
            raise AnnotationError(
                f"{source}: boxes are csv, JSON lines or pickles; write one object a line, and "
                "call the file .jsonl"
            )
        case ".jsonl" | ".ndjson":
            example = '{"video": ..., "second": ..., "x1": ...}'
            text = read_text(source, AnnotationError)
            check_content(source, text)
            rows = dict(json_lines(source, text, example))
            fields, lines, problems = _table(rows.values()), np.fromiter(rows, np.int64), []
        case _:
            fields, lines, problems = _read_csv(
                source, "person" if role == "ground truth" else "score"
            )
    names = pyarrow.compute.utf8_trim_whitespace(fields["video"].fill_null(""))
    fields = fields.set_column(0, "video", names)
    ids = {} if label_map is None else {name: i for i, name in label_map.names.items()}
    values = {name: _numbers(name, fields[name], ids) for name in COLUMNS[1:]}
    mistakes = _mistakes(fields, values)
    problems += [Problem(int(lines[row]), "row", text) for row, text in mistakes.items()]
    kept = np.ones(len(lines), dtype=bool)
    kept[list(mistakes)] = False
    values = {name: numbers[kept] for name, numbers in values.items()}
    video = names.filter(kept).combine_chunks().dictionary_encode()
    no_score = np.isnan(values["score"]).all() and role != "detections"
    table = BoxTable(
        source=str(source),
        videos=tuple(video.dictionary.to_pylist()),
        video=video.indices.to_numpy(),
        second=values["second"],
        boxes=np.column_stack([values[name] for name in CORNERS]),
        action=np.nan_to_num(values["action"], nan=0).astype(np.int32),
        person=np.nan_to_num(values["person"], nan=-1).astype(np.int32),
        score=None if no_score else values["score"],
        lines=lines[kept],
    )
    problems += _problems(table, role, label_map.names if label_map and check_actions else {})
    return replace(table, problems=tuple(sorted(problems, key=lambda problem: problem.line)))


def _problems(table: BoxTable, role: Role, names: Mapping[int, str]) -> list[Problem]:
    """Mistakes in the rows of a table. `names` are those of the actions; empty: not checked."""
    is_box, score, (x1, y1, x2, y2) = table.is_box, table.score, table.boxes.T
    is_outside: Any = ((table.boxes < 0) | (table.boxes > 1)).any(axis=1)
    is_wrong_time = (table.second < 0) | (table.second >= 1e6)
    checks: list[tuple[Kind, np.ndarray, str]] = [
        ("box", is_outside, "box {box} leaves the picture; corners are fractions 0..1"),
        ("box", (x1 >= x2) | (y1 >= y2), "box {box} has no area; expected x1 < x2 and y1 < y2"),
        ("row", is_wrong_time, "second is {second:g}; expected 0 up to 1,000,000"),
        ("duplicate", _repeated(table), "repeats an earlier row; remove it"),
    ]
    if names:
        is_unknown = ~np.isin(table.action, [0, *names])
        known = f"{len(names)} ids from {min(names)} to {max(names)}"
        text = f"action {{action}} is not in the label map, which has {known}"
        checks.append(("action", is_unknown, text))
    if role == "detections" and score is not None:
        unnamed = is_box & (table.action == 0)
        checks.append(("row", is_box & np.isnan(score), "no score; each detection needs one"))
        checks.append(("row", unnamed, "no action; each detection needs one"))
    if role == "proposals" and score is not None:
        unscored = is_box & np.isnan(score)
        checks.append(("row", unscored, "no score, but other rows have one; expected 0..1"))
        text = "score is {score:g}; expected 0..1; is this the person id of a ground-truth file?"
        checks.append(("row", is_box & ((score < 0) | (score > 1)), text))
    return [
        Problem(
            int(table.lines[row]),
            kind,
            text.format(
                box=",".join(f"{corner:g}" for corner in table.boxes[row]),
                second=table.second[row],
                action=table.action[row],
                score=math.nan if score is None else score[row],
            ),
        )
        for kind, is_wrong, text in checks
        for row in np.flatnonzero(is_wrong).tolist()
    ]


def _repeated(table: BoxTable) -> np.ndarray:
    """Bool [R]: rows that equal an earlier one in video, second, box, action and person."""
    import pyarrow

    columns = [table.video, table.second, *table.boxes.T, table.action, table.person]
    keys = [str(number) for number in range(len(columns))]
    rows = pyarrow.table([*columns, np.arange(len(table))], [*keys, "row"])
    firsts = rows.group_by(keys, use_threads=False).aggregate([("row", "min")])
    result = np.ones(len(table), dtype=bool)
    result[firsts["row_min"].to_numpy()] = False
    return result


# ---- columns: pyarrow arrays of texts or numbers, with null where nothing is given

Columns = tuple[Any, np.ndarray, list[Problem]]
"""A table with COLUMNS, the line of each row, int64 [R], and problems that left no row."""


def _numbers(name: str, column: Any, ids: Mapping[str, int]) -> np.ndarray:
    """Converts a column, and names of actions to their `ids`.

    Returns:
        Float64 [R]: NaN where nothing is given, infinite for anything but a number that is allowed.
    """
    import pyarrow

    def number(text: str | None) -> float | None:
        text = (text or "").strip()
        try:
            return float(ids[text] if name == "action" and text in ids else text) if text else None
        except ValueError:
            return math.inf

    try:
        column = column.cast(pyarrow.float64())
    except pyarrow.ArrowInvalid:  # words, or spaces around numbers
        column = pyarrow.array(map(number, column.to_pylist()), pyarrow.float64())
    numbers = np.asarray(column)
    is_right = np.isfinite(numbers)
    if name in LOWEST_ID:
        is_right &= (
            (numbers >= LOWEST_ID[name]) & (numbers <= MAX_ID) & (numbers == np.rint(numbers))
        )
    return np.where(is_right | np.asarray(column.is_null()), numbers, np.inf)


def _mistakes(fields: Any, values: Mapping[str, np.ndarray]) -> dict[int, str]:
    """The rows that cannot be used, each with its first mistake."""
    import pyarrow.compute

    unnamed = np.asarray(pyarrow.compute.equal(fields["video"], ""))
    mistakes = dict.fromkeys(np.flatnonzero(unnamed).tolist(), "no video named; expected its name")
    only_keyframe = np.all([np.isnan(values[name]) for name in COLUMNS[2:]], axis=0)
    for name, numbers in values.items():
        is_wrong = np.isinf(numbers)
        if name in REQUIRED:
            is_wrong |= np.isnan(numbers) & ((name == "second") | ~only_keyframe)
        for row in np.flatnonzero(is_wrong).tolist():
            field = fields[name][row].as_py()
            stated = "empty" if field is None else repr(field)
            needed = NEEDED.get(name, "a finite number")
            mistakes.setdefault(row, f"{name} is {stated}; expected {needed}")
    return mistakes


def _table(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A table of texts; the columns of `rows` may have other names (SYNONYMS)."""
    import pyarrow

    schema = pyarrow.schema(dict.fromkeys(COLUMNS, pyarrow.string()))
    texts = [
        {SYNONYMS.get(k, k): None if v in (None, "") else utf8_text(str(v)) for k, v in row.items()}
        for row in rows
    ]
    return pyarrow.Table.from_pylist(texts, schema=schema)


def _read_csv(path: Path, last: str) -> Columns:
    """Reads a csv file; `last` is the name of the eighth column if it has no header."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    text = read_text(path, AnnotationError)
    check_content(path, text)
    separator, text = stated_separator(text)
    if separator not in ("", ","):
        raise AnnotationError(
            f"{path}:1: the separator is {separator!r}; columns of boxes are separated by commas"
        )
    columns, num_skipped = _header(path, text, last)
    others: dict[int, str] = {}  # rows with more or fewer fields than columns, by line

    def set_aside(row: Any) -> str:
        others[row.number] = row.text
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pyarrow.BufferReader(f"{text}\n".encode()),
            arrow_csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=num_skipped),
            arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=set_aside),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS, pyarrow.string()),
                include_columns=COLUMNS,
                include_missing_columns=True,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pyarrow.ArrowInvalid as error:
        reason = str(error).partition("\n")[0]
        raise AnnotationError(f"{path}: {reason}; check the quotes") from None
    parsed = [
        next(csv_rows(path, row, line, skipinitialspace=True), (line, list[str]()))[1]
        for line, row in others.items()
    ]
    end = num_skipped + len(table) + len(others) + 1
    is_other = np.isin(np.arange(num_skipped + 1, end), list(others))
    lines = np.flatnonzero(~is_other) + num_skipped + 1
    is_blank = np.all([np.asarray(column.is_null()) for column in table.columns], axis=0)
    rows, problems = {}, []
    for line, fields in zip(others, parsed, strict=True):
        if len(fields) == len(columns) or (len(fields) == 2 and columns[:2] == [*COLUMNS[:2]]):
            rows[line] = dict(zip(columns, fields, strict=False))
        elif any(field.strip() for field in fields):
            found = f"{others[line].strip()[:60]!r} has {counted(len(fields), 'column')}"
            needed = f"expected {len(columns)}, separated by commas: {','.join(columns)}"
            problems.append(Problem(line, "row", f"{found}; {needed}"))
    lines = np.concatenate([lines[~is_blank], np.fromiter(rows, np.int64)])
    order = np.argsort(lines)
    table = pyarrow.concat_tables([table.filter(~is_blank), _table(rows.values())])
    return table.take(order), lines[order], problems


def _column_names(header: Iterable[str]) -> list[str]:
    """The names of columns as they are known here, in lower case."""
    return [SYNONYMS.get(name, name) for name in (field.strip().lower() for field in header)]


def _header(path: Path, text: str, last: str) -> tuple[list[str], int]:
    """Names of the columns of a csv file, and the number of lines before its rows."""
    without_header = [*COLUMNS[:7], last]
    head = text[: 1 << 16]
    read = csv_rows(path, head[: head.rfind("\n") + 1] or text)
    lines = [(line, row) for line, row in read if any(field.strip() for field in row)]
    rows = [row for _, row in lines]
    if not rows:
        return without_header, 0
    names = _column_names(rows[0])
    if "video" not in names and not {"second", *CORNERS}.intersection(names[1:]):
        width = next((len(row) for row in rows if len(row) != 2), 8)
        return without_header[: 7 if width == 7 else 8], 0
    if missing := [name for name in REQUIRED if name not in names]:
        raise AnnotationError(
            f"{path}:{lines[0][0]}: no column {', '.join(missing)}; expected "
            f"{', '.join(REQUIRED)}, separated by commas, and possible action, person, score"
        )
    return names, lines[0][0]


# ---- pickled proposals


def _read_pickle(path: Path) -> Columns:
    """Reads mmaction2's proposals: {"video,0902": [N, 5] of x1 y1 x2 y2 score}.

    `lines` are the numbers of the entries. Nothing in the file is executed.
    """
    import pyarrow

    data = read_bytes(path, AnnotationError)
    try:
        content = read_arrays(data)
    except Exception as error:  # damaged pickles raise nearly any type
        reason = str(error)[:200] if isinstance(error, ValueError) else "it is damaged"
        raise AnnotationError(
            f"{path}: refused ({reason}); allowed is a dict from 'video,second' to arrays of "
            "numpy, and nothing that runs code"
        ) from None
    most = max(MIN_MOST_BOXES, len(data))
    videos, seconds, lines, problems = [], [], [], []
    parts = [np.empty((0, 5))]
    num_boxes = 0
    for line, (key, boxes) in enumerate(content.items(), 1):
        name, _, second = key.rpartition(",")
        part = _as_boxes(boxes)
        if not name or part is None:
            text = f"{key!r}: expected 'video,second' and an array [N, 5] of finite numbers"
            problems.append(Problem(line, "row", text))
            continue
        num_boxes += len(part)
        if num_boxes > most:
            raise AnnotationError(f"{path}: refused (it repeats the same boxes in too many places)")
        videos.append(name)
        seconds.append(second)
        lines.append(line)
        parts.append(part if len(part) else np.full((1, 5), np.nan))  # an empty key frame
    of_row = np.repeat(np.arange(len(lines)), [len(part) for part in parts[1:]])
    numbers = np.concatenate(parts)
    columns = dict.fromkeys(COLUMNS, pyarrow.nulls(len(numbers), pyarrow.string()))
    columns |= {
        "video": pyarrow.array(videos, pyarrow.string()).take(of_row),
        "second": pyarrow.array(seconds, pyarrow.string()).take(of_row),
    }
    for column, name in enumerate((*CORNERS, "score")):
        columns[name] = pyarrow.array(numbers[:, column], from_pandas=True)  # NaN: not given
    return pyarrow.table(columns), np.array(lines, dtype=np.int64)[of_row], problems


def _as_boxes(boxes: Any) -> np.ndarray | None:
    """Float64 [N, 5]; None for anything else than an array or lists of finite numbers."""
    if isinstance(boxes, list):
        rows = [row for row in boxes if isinstance(row, list | tuple) and len(row) == 5]
        is_right = all(type(n) in (int, float) and abs(n) <= MAX_ID for row in rows for n in row)
        boxes = np.array(rows, np.float64) if is_right and len(rows) == len(boxes) else None
    if not isinstance(boxes, np.ndarray) or (boxes.size and boxes.shape[1:] != (5,)):
        return None
    part = boxes.astype(np.float64).reshape(-1, 5)
    return part if np.isfinite(part).all() else None
