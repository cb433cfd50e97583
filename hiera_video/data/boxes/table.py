"""Boxes of people at key frames: ground truth, proposals and detections, in one kind of table.

The official files of AVA, and those of SlowFast and mmaction2, are read without changes. Other data
sets use the same csv format, or csv with a header, or JSON lines, with the columns video, second,
x1, y1, x2, y2 and, where they apply, action (id or name), person, score.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hiera_video.data.boxes.files import Kind, LastColumn, Problem, read_rows
from hiera_video.data.videos.files import AnnotationError, load_json, read_text
from hiera_video.data.videos.records import read_class_names
from hiera_video.files import own_or_shipped, write_csv

logger = logging.getLogger(__name__)

Role = Literal["ground truth", "proposals", "detections"]

AVA_NUM_CLASSES = 80
AVA_FIRST_CLASS = "bend/bow (at the waist)"
LABEL_TYPES = {
    "PERSON_MOVEMENT": "pose",
    "OBJECT_MANIPULATION": "object",
    "PERSON_INTERACTION": "person",
}


@dataclass(frozen=True)
class BoxTable:
    """Rows of one box at one key frame with one action, or without action."""

    source: str
    videos: tuple[str, ...]  # names, each once
    video: np.ndarray  # int32 [R], position in videos
    second: np.ndarray  # float64 [R], time of the key frame
    boxes: np.ndarray  # float64 [R, 4], x1 y1 x2 y2 as fractions of the frame; NaN: empty frame
    action: np.ndarray  # int32 [R], class id from 1; 0: none
    person: np.ndarray  # int32 [R]; -1: not given
    score: np.ndarray | None  # float64 [R]; NaN in empty frames
    lines: np.ndarray  # int64 [R], line in the file
    problems: tuple[Problem, ...] = ()  # mistakes in the file, by line

    def __len__(self) -> int:
        return len(self.video)

    @property
    def is_box(self) -> np.ndarray:
        """Bool [R]: False in rows that mark an annotated key frame without boxes."""
        return ~np.isnan(self.boxes).any(axis=1)


@dataclass(frozen=True)
class LabelMap:
    """Names of class ids, and their groups ("pose", "object", "person") if known."""

    names: dict[int, str]
    groups: dict[int, str]

    @property
    def ids_by_name(self) -> dict[str, int]:
        return {name: class_id for class_id, name in self.names.items()}


# ---- reading


def read_label_map(path: str | os.PathLike[str]) -> LabelMap:
    """Reads class ids and names.

    Formats: pbtxt (`item { name id }` and `label { name label_id label_type }`); text with lines
    `id: name`, or names alone (ids from 1); JSON {name: id} with ids from 1, or a list of names.

    Raises:
        AnnotationError: with the line.
    """
    path = own_or_shipped(path)
    text = read_text(path)
    if re.search(r"^\s*(item|label)\s*\{", text, re.MULTILINE):
        return _label_map_of_pbtxt(path, text)
    if path.suffix.lower() == ".json":
        content = load_json(text, str(path))
        if isinstance(content, dict):
            pairs = [(str(path), name, value) for name, value in content.items()]
            return LabelMap(_names_by_id(pairs), {})
        return LabelMap(dict(enumerate(read_class_names(path), 1)), {})
    lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    matches = [(i, re.fullmatch(r"(\d+)\s*:\s*(.+)", line)) for i, line in lines]
    if lines and all(match for _, match in matches):
        pairs = [(f"{path}:{i}", m[2], int(m[1])) for i, m in matches if m]
        return LabelMap(_names_by_id(pairs), {})
    return LabelMap(dict(enumerate(read_class_names(path), 1)), {})


def _label_map_of_pbtxt(path: Path, text: str) -> LabelMap:
    pairs, types = [], {}
    for block in re.finditer(r"\b(?:item|label)\s*\{([^}]*)\}", text):
        where = f"{path}:{text.count(chr(10), 0, block.start()) + 1}"
        name = re.search(r"\bname\s*:\s*(\"[^\"]*\"|'[^']*')", block[1])
        class_id = re.search(r"\b(?:label_id|id)\s*:\s*(\d+)", block[1])
        if name is None or class_id is None:
            raise AnnotationError(f"{where}: needed are a name in quotes and an id")
        pairs.append((where, name[1][1:-1], int(class_id[1])))
        kind = re.search(r"\blabel_type\s*:\s*(\w+)", block[1])
        if kind and kind[1] in LABEL_TYPES:
            types[int(class_id[1])] = LABEL_TYPES[kind[1]]
    names = _names_by_id(pairs)
    if names.get(1) == AVA_FIRST_CLASS and max(names) == AVA_NUM_CLASSES and not types:
        types = {c: "pose" if c <= 14 else "object" if c <= 63 else "person" for c in names}
    return LabelMap(names, types)


def _names_by_id(pairs: Iterable[tuple[str, str, object]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for where, name, value in pairs:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AnnotationError(f"{where}: id of {name!r} is {value!r}; ids count from 1")
        if value in names or name in names.values():
            raise AnnotationError(f"{where}: id {value} or name {name!r} more than once")
        names[value] = name
    if not names:
        raise AnnotationError("the label map has no classes")
    return dict(sorted(names.items()))


def read_ground_truth(
    path: str | os.PathLike[str], label_map: LabelMap | None = None, *, strict: bool = True
) -> BoxTable:
    """Reads boxes with actions (7 or 8 columns); rows of 2 columns are empty key frames.

    Repeated rows are kept, with a warning.

    Args:
        strict: False: boxes with problems, and ids that are not in the label map, are kept.

    Raises:
        AnnotationError: the first mistake, with file and line, and the number of others.
    """
    table = inspect_boxes(path, "ground truth", label_map, check_actions=strict)
    return _checked(table, {"row", "box", "action"} if strict else {"row"})


def read_proposals(path: str | os.PathLike[str]) -> BoxTable:
    """Reads person boxes with scores: SlowFast's csv, mmaction2's pickle, csv or JSON lines.

    Raises:
        AnnotationError: as `read_ground_truth`; scores are outside 0..1 or given for some boxes
            only; a pickle would run code.
    """
    return _checked(inspect_boxes(path, "proposals", None), {"row", "box"})


def read_detections(path: str | os.PathLike[str], label_map: LabelMap | None = None) -> BoxTable:
    """Reads boxes with actions and scores. Boxes and ids are not checked: scoring counts them.

    Raises:
        AnnotationError: as `read_ground_truth`; a box has no score or no action.
    """
    return _checked(inspect_boxes(path, "detections", label_map, check_actions=False), {"row"})


def read_keyframes(path: str | os.PathLike[str]) -> list[tuple[str, float]]:
    """Reads (video, second) of a list such as AVA's excluded time stamps; ignores other columns.

    Raises:
        AnnotationError: a row has no video and number.
    """
    source, result = Path(path).expanduser(), []
    reader = csv.reader(io.StringIO(read_text(source)), skipinitialspace=True)
    for row in reader:
        if not any(row) or (reader.line_num == 1 and row[0] in ("video", "video_id")):
            continue
        try:
            second = float(row[1])
            if not row[0].strip() or not 0 <= second < 1e6:
                raise ValueError
        except (IndexError, ValueError):
            raise AnnotationError(
                f"{source}:{reader.line_num}: {','.join(row)!r}; needed is video,second"
            ) from None
        result.append((row[0].strip(), second))
    return result


def inspect_boxes(
    path: str | os.PathLike[str],
    role: Role,
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
    source = Path(path).expanduser()
    last: LastColumn = "person" if role == "ground truth" else "score"
    raw = read_rows(source, last, {} if label_map is None else label_map.ids_by_name)
    values = raw.values
    score = values["score"]
    table = BoxTable(
        source=str(source),
        videos=raw.videos,
        video=raw.video,
        second=values["second"],
        boxes=np.column_stack([values[name] for name in ("x1", "y1", "x2", "y2")]),
        action=np.nan_to_num(values["action"], nan=0).astype(np.int32),
        person=np.nan_to_num(values["person"], nan=-1).astype(np.int32),
        score=None if np.isnan(score).all() and role != "detections" else score,
        lines=raw.lines,
    )
    problems = [*raw.problems, *find_problems(table, label_map if check_actions else None)]
    problems += _problems(table, values["action"] == 0, "row", "action is 0; ids count from 1")
    unscored = table.is_box & np.isnan(score)
    if role == "detections":
        unnamed = table.is_box & np.isnan(values["action"])
        problems += _problems(table, unscored, "row", "no score; each detection needs one")
        problems += _problems(table, unnamed, "row", "no action; each detection needs one")
    elif role == "proposals" and table.score is not None:
        problems += _problems(
            table, unscored, "row", "no score, but other rows have one; needed is 0..1"
        )
        problems += _problems(
            table,
            table.is_box & ((score < 0) | (score > 1)),
            "row",
            lambda r: (
                f"score is {score[r]:g}; needed is 0..1; is this the person id of a ground-truth "
                "file?"
            ),
        )
    return replace(table, problems=tuple(sorted(problems, key=lambda problem: problem.line)))


def find_problems(table: BoxTable, label_map: LabelMap | None = None) -> list[Problem]:
    """Boxes outside 0..1 or without area, unknown actions, wrong time stamps, repeated rows."""

    def box(r: int) -> str:
        return ",".join(f"{value:g}" for value in table.boxes[r])

    x1, y1, x2, y2 = table.boxes.T
    with np.errstate(invalid="ignore"):
        outside = np.any((table.boxes < 0) | (table.boxes > 1), axis=1)
        is_flat: np.ndarray = (x1 >= x2) | (y1 >= y2)
        is_wrong_time: np.ndarray = (table.second < 0) | (table.second >= 1e6)
    problems = [
        *_problems(
            table,
            outside,
            "box",
            lambda r: f"box {box(r)} leaves the picture; corners are fractions 0..1",
        ),
        *_problems(
            table,
            is_flat,
            "box",
            lambda r: f"box {box(r)} has no area; needed are x1 < x2 and y1 < y2",
        ),
        *_problems(
            table,
            is_wrong_time,
            "row",
            lambda r: f"second is {table.second[r]:g}; needed is 0 up to 1,000,000",
        ),
        *_problems(table, _repeated(table), "duplicate", "repeats an earlier row; remove it"),
    ]
    if label_map is not None:
        ids = label_map.names
        problems += _problems(
            table,
            ~np.isin(table.action, [0, *ids]),
            "action",
            lambda r: (
                f"action {table.action[r]} is not in the label map, which has {len(ids)} ids from "
                f"{min(ids)} to {max(ids)}"
            ),
        )
    return sorted(problems, key=lambda problem: problem.line)


def _problems(
    table: BoxTable, is_wrong: np.ndarray, kind: Kind, text: str | Callable[[int], str]
) -> list[Problem]:
    """A problem for each row [R] that is wrong, with a text, or a function from row to text."""
    return [
        Problem(int(table.lines[row]), kind, text if isinstance(text, str) else text(row))
        for row in np.flatnonzero(is_wrong).tolist()
    ]


def _repeated(table: BoxTable) -> np.ndarray:
    """Bool [R]: rows that equal an earlier one in video, second, box, action and person."""
    if not len(table):
        return np.zeros(0, dtype=bool)
    columns = [table.video, table.second, *table.boxes.T, table.action, table.person]
    hashes = np.zeros(len(table), dtype=np.uint64)  # equal rows have equal hashes
    for column in columns:
        bits = np.ascontiguousarray(column, dtype=np.float64).view(np.uint64)
        hashes = (hashes ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    tied = np.flatnonzero(ranked[1:] == ranked[:-1])
    rows = np.unique(order[np.concatenate([tied, tied + 1])])
    seen: set[tuple[float, ...]] = set()
    result = np.zeros(len(table), dtype=bool)
    key = np.nan_to_num(np.column_stack([column[rows] for column in columns]), nan=-1e9)
    for row, values in zip(rows.tolist(), key.tolist(), strict=True):
        result[row] = tuple(values) in seen
        seen.add(tuple(values))
    return result


def _checked(table: BoxTable, fatal: set[Kind]) -> BoxTable:
    """Returns the table; raises AnnotationError for problems of `fatal` kinds.

    Repeated rows are logged as a warning.
    """
    mistakes = [problem for problem in table.problems if problem.kind in fatal]
    if mistakes:
        others = f" (and {len(mistakes) - 1} more such lines)" if mistakes[1:] else ""
        raise AnnotationError(f"{table.source}:{mistakes[0].line}: {mistakes[0].text}{others}")
    repeated = [problem.line for problem in table.problems if problem.kind == "duplicate"]
    if repeated:
        logger.warning(
            "%s: %d rows repeat an earlier row, the first in line %d; all rows count",
            table.source,
            len(repeated),
            repeated[0],
        )
    return table


# ---- writing


def write_detections(path: str | os.PathLike[str], table: BoxTable) -> None:
    """Writes AVA's csv: video,second,x1,y1,x2,y2,action,score. Reading it gives the same numbers.

    Raises:
        ValueError: the table has no scores.
    """
    if table.score is None:
        raise ValueError("write_detections: the table has no scores")
    names = (table.videos[video] for video in table.video.tolist())
    stamps = map(_stamp, table.second.tolist())
    boxes = table.boxes.tolist()
    actions = (action or "" for action in table.action.tolist())
    rows = zip(
        names, stamps, boxes, actions, table.score.tolist(), table.is_box.tolist(), strict=True
    )
    write_csv(
        Path(path),
        (
            [name, stamp, *box, action, score] if is_box else [name, stamp]
            for name, stamp, box, action, score, is_box in rows
        ),
    )


def write_keyframes(path: str | os.PathLike[str], keyframes: Iterable[tuple[str, float]]) -> None:
    """Writes lines `video,second` for `read_keyframes`."""
    write_csv(Path(path), ((video, _stamp(second)) for video, second in keyframes))


def _stamp(second: float) -> str:
    """A time stamp as AVA writes it, e.g. 0902."""
    return f"{int(second):04d}" if second == int(second) else repr(second)


# ---- geometry


def common_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area of the intersections [N, M] of boxes [N, 4] with boxes [M, 4], x1 y1 x2 y2."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [N, M] of boxes [N, 4] with boxes [M, 4]; 0 where both have no area."""
    shared = common_area(a, b)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@dataclass(frozen=True)
class ProposalRecall:
    """The number of different ground-truth boxes that proposals overlap."""

    reached: int
    total: int

    @property
    def fraction(self) -> float:
        """0..1; NaN without ground truth. An upper bound of the mAP with these proposals."""
        return self.reached / self.total if self.total else float("nan")


def proposal_recall(
    ground_truth: BoxTable,
    proposals: BoxTable,
    iou: float = 0.5,
    *,
    min_score: float | None = None,
    excluded: Iterable[tuple[str, float]] = (),
) -> ProposalRecall:
    """Counts ground-truth boxes that a proposal overlaps with an IoU of at least `iou`.

    A box with several actions counts once.

    Args:
        min_score: lowest score of the proposals, if they have scores.
        excluded: (video, second) of key frames to leave out.
    """
    is_used = proposals.is_box
    if min_score is not None and proposals.score is not None:
        is_used &= proposals.score >= min_score
    proposed = _boxes_by_keyframe(proposals, is_used)
    skipped = set(excluded)
    reached = total = 0
    for key, boxes in _boxes_by_keyframe(ground_truth, ground_truth.is_box).items():
        if key in skipped:
            continue
        boxes = np.unique(boxes, axis=0)
        total += len(boxes)
        if key in proposed:
            reached += int((box_iou(boxes, proposed[key]).max(axis=1) >= iou).sum())
    return ProposalRecall(reached, total)


def _boxes_by_keyframe(table: BoxTable, rows: np.ndarray) -> dict[tuple[str, float], np.ndarray]:
    """Boxes [n, 4] of the rows, bool [R], by video and second."""
    rows = np.flatnonzero(rows)
    rows = rows[np.lexsort((table.second[rows], table.video[rows]))]
    if not len(rows):
        return {}
    video, second = table.video[rows], table.second[rows]
    ends = np.flatnonzero((np.diff(video) != 0) | (np.diff(second) != 0)) + 1
    groups = np.split(rows, ends)
    return {
        (table.videos[table.video[g[0]]], float(table.second[g[0]])): table.boxes[g] for g in groups
    }
