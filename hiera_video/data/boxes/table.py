"""Boxes of people at key frames: ground truth, proposals and detections, all in one table.

Official files of AVA and those of SlowFast and mmaction2 are read as they are; for one's own videos
and classes the same csv serves, or one with a header, or JSON lines, with the columns video,
second, x1, y1, x2, y2 and, where they apply, action (id or name), person, score.
"""

from __future__ import annotations

import csv
import difflib
import io
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hiera_video.data.boxes.files import Kind, Last, Problem, read_rows
from hiera_video.data.videos.files import AnnotationError, is_media, listing, load_json, read_text
from hiera_video.data.videos.records import read_class_names
from hiera_video.files import replacing

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
    """One row: one box with one action, or none, at one key frame."""

    source: str
    videos: tuple[str, ...]  # names, each once
    video: np.ndarray  # int32 [R], position in videos
    second: np.ndarray  # float64 [R], time of the key frame
    boxes: np.ndarray  # float64 [R, 4], x1 y1 x2 y2 as fractions of the picture; NaN: empty frame
    action: np.ndarray  # int32 [R], class id from 1; 0: none
    person: np.ndarray  # int32 [R]; -1: not given
    score: np.ndarray | None  # float64 [R]; NaN where the boxes are
    lines: np.ndarray  # int64 [R], line in the file
    problems: tuple[Problem, ...] = ()  # what is wrong with the file it was read from, by line

    def __len__(self) -> int:
        return len(self.video)

    @property
    def is_box(self) -> np.ndarray:
        """Bool [R]: False in rows that only say that a key frame was looked at and is empty."""
        return ~np.isnan(self.boxes).any(axis=1)


@dataclass(frozen=True)
class LabelMap:
    """Names of class ids; groups ("pose", "object", "person") where they are known."""

    names: dict[int, str]
    groups: dict[int, str]

    @property
    def ids_by_name(self) -> dict[str, int]:
        return {name: class_id for class_id, name in self.names.items()}


# ---- reading


def read_label_map(path: str | os.PathLike[str]) -> LabelMap:
    """Class ids and names.

    Forms: pbtxt (`item { name id }` and `label { name label_id label_type }`), text lines `id:
    name` or plain names (ids from 1), json {name: id} with ids from 1, or a list of names.

    Raises:
        AnnotationError: naming the line.
    """
    path = Path(path).expanduser()
    text = read_text(path)
    if re.search(r"^\s*(item|label)\s*\{", text, re.MULTILINE):
        return _label_map_of_pbtxt(path, text)
    if path.suffix.lower() == ".json":
        content = load_json(text, str(path))
        if isinstance(content, dict):
            pairs = [(f"{path}", name, value) for name, value in content.items()]
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
        raise AnnotationError("label map: no classes in it")
    return dict(sorted(names.items()))


def read_ground_truth(
    path: str | os.PathLike[str], label_map: LabelMap | None = None, *, strict: bool = True
) -> BoxTable:
    """Boxes with actions (7 or 8 columns); 2 columns mark a key frame without anybody.

    Rows given twice are kept, and told in a warning.

    Args:
        strict: False keeps boxes that `find_problems` objects to, and ids that are not in the
            label map.

    Raises:
        AnnotationError: the first mistake, by file and line, and how many more there are.
    """
    table = inspect_boxes(path, "ground truth", label_map, check_actions=strict)
    return _checked(table, {"row", "box", "action"} if strict else {"row"})


def read_proposals(path: str | os.PathLike[str]) -> BoxTable:
    """Person boxes with scores: SlowFast's csv, mmaction2's pickle, plain csv or JSON lines.

    Raises:
        AnnotationError: as `read_ground_truth`; for scores outside 0..1, or that some boxes have
            and others not; for a pickle that would run code.
    """
    return _checked(inspect_boxes(path, "proposals", None), {"row", "box"})


def read_detections(path: str | os.PathLike[str], label_map: LabelMap | None = None) -> BoxTable:
    """Boxes with actions and scores. Boxes and ids are not checked: scoring counts them.

    Raises:
        AnnotationError: as `read_ground_truth`; for boxes without a score or an action.
    """
    return _checked(inspect_boxes(path, "detections", label_map, check_actions=False), {"row"})


def read_keyframes(path: str | os.PathLike[str]) -> list[tuple[str, float]]:
    """(video, second) of a list such as AVA's excluded time stamps; further columns are ignored.

    Raises:
        AnnotationError: a row without a video and a number.
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
    """The readable rows of a file; its `problems` are everything that is wrong.

    Args:
        role: what the file is: the last column of a csv without header is the person in ground
            truth, else the score, and each has its own rules.
        check_actions: whether ids that are not in the label map are a problem.
    """
    source = Path(path).expanduser()
    last: Last = "person" if role == "ground truth" else "score"
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
    found = [*raw.problems, *find_problems(table, label_map if check_actions else None)]

    def note(wrong: np.ndarray, say: Callable[[int], str]) -> None:
        rows = np.flatnonzero(wrong).tolist()
        found.extend(Problem(int(raw.lines[r]), "row", say(r)) for r in rows)

    note(values["action"] == 0, lambda r: "action is 0; ids count from 1")
    unscored = table.is_box & np.isnan(score)
    if role == "detections":
        unnamed = table.is_box & np.isnan(values["action"])
        note(unscored, lambda r: "no score; detections have one in each row")
        note(unnamed, lambda r: "no action; detections have one in each row")
    elif role == "proposals" and table.score is not None:
        note(unscored, lambda r: "no score, as other rows have; needed is 0..1")
        note(
            table.is_box & ((score < 0) | (score > 1)),
            lambda r: (
                f"score is {score[r]:g}; needed is 0..1; is this the person id of a ground-truth "
                "file?"
            ),
        )
    return replace(table, problems=tuple(sorted(found, key=lambda problem: problem.line)))


def find_problems(table: BoxTable, label_map: LabelMap | None = None) -> list[Problem]:
    """Boxes outside 0..1 or upside down, unknown actions, time stamps below 0, repeated rows."""
    found: list[Problem] = []

    def note(wrong: np.ndarray, kind: Kind, say: Callable[[int], str]) -> None:
        found.extend(
            Problem(int(table.lines[r]), kind, say(r)) for r in np.flatnonzero(wrong).tolist()
        )

    x1, y1, x2, y2 = table.boxes.T

    def box(r: int) -> str:
        return ",".join(f"{value:g}" for value in table.boxes[r])

    with np.errstate(invalid="ignore"):
        outside = np.any((table.boxes < 0) | (table.boxes > 1), axis=1)
        upside_down: np.ndarray = (x1 >= x2) | (y1 >= y2)
    note(outside, "box", lambda r: f"box {box(r)} leaves the picture; corners are fractions 0..1")
    note(upside_down, "box", lambda r: f"box {box(r)} has no area; needed are x1 < x2 and y1 < y2")
    late: np.ndarray = (table.second < 0) | (table.second >= 1e6)
    note(late, "row", lambda r: f"second is {table.second[r]:g}; needed is 0 up to 1,000,000")
    if label_map is not None:
        unknown = ~np.isin(table.action, [0, *label_map.names])
        note(
            unknown,
            "action",
            lambda r: (
                f"action {table.action[r]} is not in the label map; its {len(label_map.names)} ids "
                f"lie from {min(label_map.names)} to {max(label_map.names)}"
            ),
        )
    repeated = _repeated(table)
    note(repeated, "duplicate", lambda r: "the same row stands further up; remove one of them")
    return sorted(found, key=lambda problem: problem.line)


def _repeated(table: BoxTable) -> np.ndarray:
    """Bool [R]: rows that equal an earlier one in video, second, box, action and person."""
    if not len(table):
        return np.zeros(0, dtype=bool)
    columns = [table.video, table.second, *table.boxes.T, table.action, table.person]
    mixed = np.zeros(len(table), dtype=np.uint64)  # a hash: candidates only, compared below
    for column in columns:
        bits = np.ascontiguousarray(column, dtype=np.float64).view(np.uint64)
        mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    ranked = mixed[order]
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
    """The table; the first fatal problem as an error, repeated rows as a warning."""
    serious = [problem for problem in table.problems if problem.kind in fatal]
    if serious:
        first = serious[0]
        more = len(serious) - 1
        raise AnnotationError(
            f"{table.source}:{first.line}: {first.text}"
            + (f" (and {more} more such lines)" if more else "")
        )
    repeated = [problem.line for problem in table.problems if problem.kind == "duplicate"]
    if repeated:
        logger.warning(
            "%s: %d rows stand there twice, line %d first; both count",
            *(table.source, len(repeated), repeated[0]),
        )
    return table


# ---- writing


def write_detections(path: str | os.PathLike[str], table: BoxTable) -> None:
    """AVA's csv: video,second,x1,y1,x2,y2,action,score. Reading it back gives the same numbers."""
    if table.score is None:
        raise ValueError("write_detections: the table has no scores")
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        rows = zip(
            *(table.video.tolist(), table.second.tolist(), table.boxes.tolist()),
            *(table.action.tolist(), table.score.tolist(), table.is_box.tolist()),
            strict=True,
        )
        for video, second, box, action, score, is_box in rows:
            rest = [*box, action or "", score] if is_box else []
            writer.writerow([table.videos[video], _stamp(second), *rest])


def write_keyframes(path: str | os.PathLike[str], keyframes: Iterable[tuple[str, float]]) -> None:
    """`video,second` lines, which `read_keyframes` reads."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([video, _stamp(second)] for video, second in keyframes)


def _stamp(second: float) -> str:
    """As AVA writes it: 0902."""
    return f"{int(second):04d}" if second == int(second) else repr(second)


# ---- geometry


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU float64 [N, M] of boxes [N, 4] with boxes [M, 4]; 0 where neither has an area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@dataclass(frozen=True)
class ProposalRecall:
    """How many different ground-truth boxes a proposal reaches."""

    reached: int
    total: int

    @property
    def share(self) -> float:
        """0..1, NaN without ground truth: a bound on the mAP of any detector on these proposals."""
        return self.reached / self.total if self.total else float("nan")


def proposal_recall(
    ground_truth: BoxTable,
    proposals: BoxTable,
    iou: float = 0.5,
    *,
    min_score: float | None = None,
    excluded: Iterable[tuple[str, float]] = (),
) -> ProposalRecall:
    """Ground-truth boxes, each once whatever its actions, that a proposal overlaps by `iou`.

    Args:
        min_score: the lowest score of a proposal that is taken, where proposals have scores.
        excluded: (video, second) of key frames that are left out.
    """
    taken = proposals.is_box
    if min_score is not None and proposals.score is not None:
        taken &= proposals.score >= min_score
    proposed = _boxes_by_keyframe(proposals, taken)
    left_out = set(excluded)
    reached = total = 0
    for key, boxes in _boxes_by_keyframe(ground_truth, ground_truth.is_box).items():
        if key in left_out:
            continue
        boxes = np.unique(boxes, axis=0)
        total += len(boxes)
        if key in proposed:
            reached += int((box_iou(boxes, proposed[key]).max(axis=1) >= iou).sum())
    return ProposalRecall(reached, total)


def _boxes_by_keyframe(table: BoxTable, taken: np.ndarray) -> dict[tuple[str, float], np.ndarray]:
    rows = np.flatnonzero(taken)
    rows = rows[np.lexsort((table.second[rows], table.video[rows]))]
    if not len(rows):
        return {}
    video, second = table.video[rows], table.second[rows]
    ends = np.flatnonzero((np.diff(video) != 0) | (np.diff(second) != 0)) + 1
    groups = np.split(rows, ends)
    return {
        (table.videos[table.video[g[0]]], float(table.second[g[0]])): table.boxes[g] for g in groups
    }


# ---- files of videos


def find_videos(names: Sequence[str], folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Where each video lies below a folder: a file, or a folder of frames.

    A name may be a path with suffix, one without, or that of a folder of frames.

    Raises:
        AnnotationError: there is no such folder, two files fit one name, or videos are missing.
    """
    found, missing = locate_videos(names, folder)
    if missing:
        near = nearest_name(missing[0], _entries(Path(folder).expanduser() / missing[0]))
        raise AnnotationError(
            f"{folder}: {len(missing)} of {len(names)} videos are not there: "
            f"{listing(missing)}; needed is a video file or a folder of frames of that name{near}"
        )
    return found


def locate_videos(
    names: Sequence[str], folder: str | os.PathLike[str]
) -> tuple[dict[str, Path], list[str]]:
    """As `find_videos`, with the names that are missing as a second result."""
    base = Path(folder).expanduser()
    if not base.is_dir():
        raise AnnotationError(f"{base}: no such folder; needed is the folder of the videos")
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for parent in {(base / name).parent for name in names}:
        if parent.is_dir():
            for entry in sorted(parent.iterdir()):
                if not entry.name.startswith(".") and entry.is_file() and is_media(entry.name):
                    by_stem[str(entry.with_suffix(""))].append(entry)
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        exact = base / name
        candidates = [exact] if exact.exists() else by_stem.get(str(exact), [])
        if len(candidates) > 1:
            raise AnnotationError(
                f"{base}: {listing([str(c.name) for c in candidates])} all fit the video {name!r}; "
                "write its suffix in the list, or remove the others"
            )
        if candidates:
            found[name] = candidates[0]
        else:
            missing.append(name)
    return found, missing


def _entries(path: Path) -> list[str]:
    return [entry.stem for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def nearest_name(name: str, known: Sequence[str]) -> str:
    """A hint for a message: the known name most like another, or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
