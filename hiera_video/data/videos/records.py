"""Which videos a data set has, and their labels as class ids.

`read_video_list` reads, told apart by what it finds:
  * a folder with one folder a class, or a folder of videos without classes;
  * `path label` lines, separated by spaces, tabs or a comma, or paths alone;
  * csv, tsv, JSON and JSON lines with named columns, with one or several labels a video;
  * the official lists of Kinetics (label,youtube_id,time_start,time_end,split) and SSv2 (json).

A picture counts as a video of one frame. Whether a file exists and decodes is for the reader to
find out: a list is refused only where none of its first files exists.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hiera_video.data.videos.files import (
    AnnotationError,
    Row,
    listing,
    load_json,
    read_folder,
    read_list,
    read_text,
    read_unlabelled_folder,
)

__all__ = [
    "AnnotationError",
    "VideoList",
    "VideoRecord",
    "check_splits",
    "read_class_names",
    "read_splits",
    "read_video_list",
    "require_labels",
]

logger = logging.getLogger(__name__)

MAX_DERIVED_CLASSES = 100_000  # a higher id is another column, taken for the label
NUM_FILES_CHECKED = 20


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video.

    path: absolute path of the file.
    labels: class ids, ascending; () where the video has no label.
    name: the video as its list writes it, unique in the list; stands for it in outputs.
    """

    path: str
    labels: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class VideoList:
    """The videos of one list or folder, in its order, and what their class ids mean."""

    source: str
    records: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of what training depends on: the videos in order, their labels, the class names."""
        content = [self.class_names, [(record.name, record.labels) for record in self.records]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_video_list(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    multi_label: bool = False,
    labelled: bool = True,
) -> VideoList:
    """The videos of a folder or of a list, with class ids.

    Args:
        source: the folder or the list, see above.
        root: folder that the paths of a list start from; by default the list's own folder.
        class_names: the classes in id order, as a sequence, a text file (one a line) or a JSON
            file (a map from name to id, or a list). By default they come from the source: its
            names (or folders) sorted, or "0", "1", ... up to its highest id. Read a validation
            list with the class names of its training list.
        multi_label: allow several labels a video, separated by ';' or '|', or a JSON list.
        labelled: False takes all videos of a folder, at any depth, or of a list, without labels.

    Raises:
        AnnotationError: "FILE:LINE: what is wrong, what is allowed, what to do".
    """
    source = Path(source).expanduser()
    names = None if class_names is None else read_class_names(class_names)
    if source.is_dir():
        if root is not None:
            raise AnnotationError(f"{source}: a folder, which takes no root; root={root} is given")
        labels_are_names, folder = True, str(source)
        if labelled:
            rows, folder_names = read_folder(source)
            names = folder_names if names is None else names
        else:
            rows = read_unlabelled_folder(source)
    else:
        folder = _root_folder(source, root)
        rows, labels_are_names = read_list(source, folder, frozenset(names or ()))
    if not rows:
        raise AnnotationError(f"{source}: no videos listed")
    if not labelled:
        rows = [replace(row, labels=()) for row in rows]
    _check_label_counts(rows, multi_label)
    if names is None:
        names = _derive_class_names(rows, labels_are_names)
    records = _to_records(rows, names, labels_are_names, source)

    checked = records[:NUM_FILES_CHECKED]
    if not any(os.path.exists(record.path) for record in checked):
        raise AnnotationError(
            f"{source}: none of the first {len(checked)} videos exists below the root {folder}, "
            f"not even {checked[0].path}; set root to the folder that the paths start from"
        )
    return VideoList(str(source), records, names)


def read_class_names(source: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Class names in id order, from a sequence, a text file (one a line) or a JSON file.

    The JSON is a map from name to id (SSv2's labels, ids as text too) or a list of names.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        where, text = str(path), read_text(path).rstrip()
        if path.suffix.lower() == ".json":
            names = _names_of_json(load_json(text, where), where)
        else:
            names = [line.strip() for line in text.split("\n")] if text else []
    else:
        where, names = "class_names", list(source)
    if not names:
        raise AnnotationError(f"{where}: no class names")
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}:{number}: {name!r} is not a name; one name for each id")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise AnnotationError(f"{where}: {listing(repeated)} more than once; each id has its own")
    return tuple(names)


def read_splits(
    train: str | os.PathLike[str],
    val: str | os.PathLike[str] | None,
    *,
    root: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    multi_label: bool = False,
) -> tuple[VideoList, VideoList | None]:
    """The lists to train on and to validate with, of the same classes; logs what looks wrong.

    Raises:
        AnnotationError: as `read_video_list`, and for videos without labels.
    """
    train_list = read_video_list(train, root=root, class_names=class_names, multi_label=multi_label)
    require_labels(train_list)
    if val is None:
        return train_list, None
    val_list = read_video_list(
        val, root=root, class_names=train_list.class_names, multi_label=multi_label
    )
    require_labels(val_list)
    for warning in check_splits(train_list, val_list):
        logger.warning(warning)
    return train_list, val_list


def require_labels(videos: VideoList) -> None:
    """Raises AnnotationError for a list in which videos have no label."""
    unlabelled = [record.name for record in videos.records if not record.labels]
    if unlabelled:
        raise AnnotationError(
            f"{videos.source}: {len(unlabelled)} videos have no label, {unlabelled[0]} for one; "
            "needed is a class for each (`hiera-video predict` takes videos without)"
        )


def check_splits(train: VideoList, val: VideoList) -> list[str]:
    """Warnings about two lists, one to train on and one to validate with.

    Raises:
        AnnotationError: the lists disagree on the classes, so that ids mean different things.
    """
    if train.class_names != val.class_names:
        pairs = enumerate(zip(train.class_names, val.class_names, strict=False))
        differ = (
            f"id {i} is {ours!r} and {theirs!r}" for i, (ours, theirs) in pairs if ours != theirs
        )
        detail = next(differ, f"{len(train.class_names)} and {len(val.class_names)} classes")
        raise AnnotationError(
            f"{val.source}: its classes are not those of {train.source} ({detail}); read both "
            "with the same class_names"
        )
    warnings = []
    train_paths = {record.path for record in train.records}
    shared = [record.name for record in val.records if record.path in train_paths]
    if shared:
        warnings.append(
            f"{len(shared)} of {len(val.records)} videos of {val.source} are in {train.source} "
            f"too: {listing(shared)}"
        )
    seen = {label for record in train.records for label in record.labels}
    unseen = [name for i, name in enumerate(train.class_names) if i not in seen]
    if unseen:
        warnings.append(
            f"{len(unseen)} of {len(train.class_names)} classes have no video in {train.source}: "
            f"{listing(unseen)}"
        )
    return warnings


def _root_folder(source: Path, root: str | os.PathLike[str] | None) -> str:
    if not source.exists():
        raise AnnotationError(f"{source}: no such file or folder")
    folder = os.path.abspath(source.parent if root is None else Path(root).expanduser())
    if not os.path.isdir(folder):
        raise AnnotationError(
            f"{source}: the root {folder} is not a folder; set root to the folder that the paths "
            "start from"
        )
    return folder


def _check_label_counts(rows: list[Row], multi_label: bool) -> None:
    labelled = sum(bool(row.labels) for row in rows)
    for row in rows:
        if labelled and not row.labels:
            raise AnnotationError(
                f"{row.where}: {row.name!r} has no label, {labelled} other videos have; label all "
                "of them or none"
            )
        if len(row.labels) > 1 and not multi_label:
            raise AnnotationError(
                f"{row.where}: {row.name!r} has {len(row.labels)} labels, {listing(row.labels)}; "
                "leave one or set multi_label; where ';' or '|' belongs to a name, give class_names"
            )


def _derive_class_names(rows: list[Row], labels_are_names: bool) -> tuple[str, ...]:
    labels = [(row.where, label) for row in rows for label in row.labels]
    ids = [None if labels_are_names else _as_id(label) for _, label in labels]
    for (where, label), class_id in zip(labels, ids, strict=True):
        if (class_id is None) != (ids[0] is None):
            raise AnnotationError(
                f"{where}: label {label!r}, but {labels[0][1]!r} in {labels[0][0]}; use ids or "
                "names, not both, give class_names, or call the column class_name if all are names"
            )
        if class_id is not None and not 0 <= class_id < MAX_DERIVED_CLASSES:
            raise AnnotationError(
                f"{where}: class id {class_id} must be 0 to {MAX_DERIVED_CLASSES - 1}; give "
                "class_names, or check that this is the column of labels"
            )
    known_ids = [class_id for class_id in ids if class_id is not None]
    if known_ids:
        return tuple(str(class_id) for class_id in range(max(known_ids) + 1))
    return tuple(sorted({str(label) for _, label in labels}))


def _to_records(
    rows: list[Row], names: tuple[str, ...], labels_are_names: bool, source: Path
) -> tuple[VideoRecord, ...]:
    """Labels as ids; a video that is listed again with the same labels is kept once."""
    ids = {name: i for i, name in enumerate(names)}
    kept: dict[str, tuple[VideoRecord, str]] = {}
    for row in rows:
        found = {_class_id(label, ids, labels_are_names, row.where) for label in row.labels}
        record = VideoRecord(row.path, tuple(sorted(found)), row.name)
        earlier, where = kept.setdefault(row.path, (record, row.where))
        if earlier.labels != record.labels:
            ours, theirs = ([names[i] for i in video.labels] for video in (record, earlier))
            raise AnnotationError(
                f"{row.where}: {row.name!r} is {listing(ours)}, but {listing(theirs)} in {where}; "
                "keep one line, with all labels separated by ';' if it has several"
            )
    if len(kept) < len(rows):
        logger.warning("%s: %d lines repeat a video: left out", source, len(rows) - len(kept))
    return tuple(record for record, _ in kept.values())


def _class_id(label: str | int, ids: dict[str, int], is_name: bool, where: str) -> int:
    by_name = ids.get(str(label))
    by_id = None if is_name else _as_id(label)
    if by_id is None and by_name is not None:
        return by_name
    if by_id is None:
        near = difflib.get_close_matches(str(label), ids, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {listing(list(ids))}"
        raise AnnotationError(f"{where}: unknown class {label!r}; {hint}")
    if by_name not in (None, by_id):
        raise AnnotationError(
            f"{where}: label {label!r} may be id {by_id} or the name of class {by_name}; call the "
            "column class_name if it is a name"
        )
    if not 0 <= by_id < len(ids):
        raise AnnotationError(
            f"{where}: class id {by_id} must be 0 to {len(ids) - 1}, there being "
            f"{len(ids)} class names; ids count from 0"
        )
    return by_id


@functools.lru_cache(maxsize=10_000)  # a list repeats its labels
def _as_id(label: str | int) -> int | None:
    """The class id that a label may be: a plain number; spreadsheets write it as 3.0."""
    match = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?", str(label))
    return int(match[1]) if match else None


def _names_of_json(content: Any, where: str) -> list[str]:
    if isinstance(content, list):
        return content
    try:
        ids = {name: int(str(value)) for name, value in content.items()}
    except (AttributeError, ValueError):
        raise AnnotationError(f"{where}: expected a map from class name to id, or a list") from None
    names = sorted(ids, key=ids.__getitem__)
    if [ids[name] for name in names] != list(range(len(names))):
        raise AnnotationError(f"{where}: ids must be 0 to {len(names) - 1}, each once")
    return names
