"""Boxes of people at key frames, in one kind of table for all uses, and the names of actions."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hiera_video.data.videos.records import check_class_name, read_class_names
from hiera_video.errors import AnnotationError
from hiera_video.files import load_json, own_or_shipped, read_text, write_csv

Kind = Literal["row", "box", "action", "duplicate"]

MAX_CLASS_ID = 100_000  # of a class; a model has an output for each id up to the highest
AVA_NUM_CLASSES = 80
AVA_FIRST_CLASS = "bend/bow (at the waist)"
LABEL_TYPES = {
    "PERSON_MOVEMENT": "pose",
    "OBJECT_MANIPULATION": "object",
    "PERSON_INTERACTION": "person",
}


@dataclass(frozen=True)
class Problem:
    """A mistake in one row."""

    line: int
    kind: Kind  # "row": the row cannot be used at all
    text: str


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


def read_label_map(path: str | os.PathLike[str]) -> LabelMap:
    """Reads class ids and names.

    Formats: pbtxt (`item { name id }` and `label { name label_id label_type }`); text with lines
    `id: name`, or names alone (ids from 1); JSON {name: id} with ids from 1, or a list of names.

    Raises:
        AnnotationError: with the line.
    """
    path = own_or_shipped(path)
    text = read_text(path, AnnotationError)
    if re.search(r"^\s*(item|label)\s*\{", text, re.MULTILINE):
        return _label_map_of_pbtxt(path, text)
    if path.suffix.lower() == ".json":
        content = load_json(text, str(path), AnnotationError)
        items = content.items() if isinstance(content, dict) else ()
        pairs = [(str(path), name, value) for name, value in items]
    else:
        lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        matches = [(i, re.fullmatch(r"(\d+)\s*:\s*(.+)", line)) for i, line in lines]
        pairs = [(f"{path}:{i}", match[2], _id_of(match[1])) for i, match in matches if match]
        if len(pairs) < len(lines):
            pairs = []
    return LabelMap(
        _names_by_id(pairs) if pairs else dict(enumerate(read_class_names(path), 1)), {}
    )


def _label_map_of_pbtxt(path: Path, text: str) -> LabelMap:
    pairs: list[tuple[str, str, Any]] = []
    types: dict[Any, str] = {}
    for block in re.finditer(r"\b(?:item|label)\s*\{([^}]*)\}", text):
        where = f"{path}:{text.count(chr(10), 0, block.start()) + 1}"
        name = re.search(r"\bname\s*:\s*(\"[^\"]*\"|'[^']*')", block[1])
        class_id = re.search(r"\b(?:label_id|id)\s*:\s*(\d+)", block[1])
        if name is None or class_id is None:
            raise AnnotationError(f"{where}: expected a name in quotes and an id")
        pairs.append((where, name[1][1:-1], _id_of(class_id[1])))
        kind = re.search(r"\blabel_type\s*:\s*(\w+)", block[1])
        if kind and kind[1] in LABEL_TYPES:
            types[_id_of(class_id[1])] = LABEL_TYPES[kind[1]]
    names = _names_by_id(pairs)
    if names.get(1) == AVA_FIRST_CLASS and max(names) == AVA_NUM_CLASSES and not types:
        types = {c: "pose" if c <= 14 else "object" if c <= 63 else "person" for c in names}
    return LabelMap(names, types)


def _id_of(digits: str) -> int | str:
    """The number; as text if it has more digits than any id, of which Python parses 4,300 only."""
    return int(digits) if len(digits) <= len(str(MAX_CLASS_ID)) else digits


def _names_by_id(pairs: Iterable[tuple[str, str, object]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for where, name, value in pairs:
        check_class_name(name, where)
        if type(value) is not int or not 1 <= value <= MAX_CLASS_ID:
            raise AnnotationError(
                f"{where}: id of {name!r} is {value!r}; expected a whole number from 1 to "
                f"{MAX_CLASS_ID}"
            )
        if value in names or name in names.values():
            raise AnnotationError(f"{where}: id {value} or name {name!r} more than once")
        names[value] = name
    if not names:
        raise AnnotationError("the label map has no classes")
    return dict(sorted(names.items()))


# ---- writing


def write_detections(path: str | os.PathLike[str], table: BoxTable) -> None:
    """Writes AVA's csv: video,second,x1,y1,x2,y2,action,score. Reading it gives the same numbers.

    Args:
        table: with scores.
    """
    assert table.score is not None
    rows = zip(
        (table.videos[video] for video in table.video.tolist()),
        map(_stamp, table.second.tolist()),
        *table.boxes.T.tolist(),
        (action or "" for action in table.action.tolist()),
        table.score.tolist(),
        strict=True,
    )
    kept = zip(rows, table.is_box.tolist(), strict=True)
    write_csv(Path(path), (row if is_box else row[:2] for row, is_box in kept))


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
