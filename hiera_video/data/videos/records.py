"""The videos of a data set, with their labels as class ids.

`read_video_list` recognises
  * a folder with one folder per class, or a folder of videos without classes;
  * lines `path label`, separated by spaces, tabs or a comma, or paths alone;
  * csv, tsv, JSON and JSON lines with named columns, with one or several labels per video;
  * the official lists of Kinetics (label,youtube_id,time_start,time_end,split) and SSv2 (json).

An image counts as a video of one frame. Files are not opened: a list is refused only if none of its
first files exists.
"""

import functools
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hiera_video.data.videos.files import AnnotationError, Row, read_folder, read_list
from hiera_video.errors import did_you_mean, listing
from hiera_video.files import json_text, load_json, own_or_shipped, read_text, user_path
from hiera_video.settings.training import ClassificationData

logger = logging.getLogger(__name__)

MAX_DERIVED_CLASSES = 100_000  # higher ids probably come from another column than the labels
NUM_FILES_CHECKED = 20


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video."""

    path: str  # absolute
    labels: tuple[int, ...]  # class ids, ascending; () if the video has no label
    name: str  # as in the list, where it is unique; identifies the video in outputs


@dataclass(frozen=True)
class VideoList:
    """The videos of one list or folder, in its order, and the names of its classes."""

    source: str
    records: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the videos in order, their labels and the class names."""
        content = [self.class_names, [(record.name, record.labels) for record in self.records]]
        return hashlib.sha256(json_text(content, ensure_ascii=True).encode()).hexdigest()


def read_video_list(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    multi_label: bool = False,
    labelled: bool = True,
) -> VideoList:
    """Reads the videos of a folder or of a list, with class ids.

    Args:
        source: the folder or the list, in one of the forms above.
        root: folder to which paths in a list are relative. None: the folder of the list.
        class_names: the classes in id order, as a sequence, a text file (one per line) or a JSON
            file (a map from name to id, or a list). None: the sorted names of labels or folders, or
            "0", "1", ... up to the highest id. Read a validation list with the class names of its
            training list.
        multi_label: allow several labels per video, separated by ';' or '|', or as a JSON list.
        labelled: False: all videos of a folder, at any depth, or of a list, without labels.

    Raises:
        AnnotationError: the source cannot be used; the message names file and line.
    """
    source = user_path(source)
    names = None if class_names is None else read_class_names(class_names)
    if source.is_dir():
        if root is not None:
            raise AnnotationError(f"{source}: a folder, which takes no root; root={root} is given")
        labels_are_names, folder = True, str(source)
        rows, folder_names = read_folder(source, labelled=labelled)
        names = folder_names if names is None else names
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
    for name in names:
        check_class_name(name, str(source))
    records = _to_records(rows, names, labels_are_names, source)

    checked = records[:NUM_FILES_CHECKED]
    if not any(os.path.exists(record.path) for record in checked):
        raise AnnotationError(
            f"{source}: none of the first {len(checked)} videos exists below the root {folder}, "
            f"for example {checked[0].path}; set root to the folder to which paths are relative"
        )
    return VideoList(str(source), records, names)


def read_class_names(source: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Class names in id order, from a sequence, a text file (one per line) or a JSON file.

    A JSON file holds a map from name to id (as SSv2's labels; ids may be strings) or a list of
    names.

    Raises:
        AnnotationError: the file cannot be read, or names are missing or repeated.
    """
    if isinstance(source, (str, os.PathLike)):
        path = own_or_shipped(source)
        where, text = str(path), read_text(path, AnnotationError).rstrip()
        if path.suffix.lower() == ".json":
            names = _names_of_json(load_json(text, where, AnnotationError), where)
        else:
            names = [line.strip() for line in text.split("\n")] if text else []
    else:
        where, names = "class_names", list(source)
    if not names:
        raise AnnotationError(f"{where}: no class names")
    for number, name in enumerate(names, 1):
        check_class_name(name, f"{where}:{number}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise AnnotationError(
            f"{where}: {listing(repeated)} more than once; names must be different"
        )
    return tuple(names)


def check_class_name(name: Any, where: str) -> None:
    """Raises AnnotationError, which begins with `where`, unless `name` is text and not empty."""
    if not isinstance(name, str) or not name:
        raise AnnotationError(f"{where}: {name!r} is not a name; one name for each id")
    if re.search(r"[\0\ud800-\udfff]", name):
        raise AnnotationError(
            f"{where}: class name {name!r} holds NUL or is not valid Unicode; rename the class"
        )


def read_splits(data: ClassificationData) -> tuple[VideoList, VideoList | None]:
    """Reads a training list and a validation list of the same classes; see `read_video_list`.

    Logs a warning for videos that are in both lists and classes without training videos.

    Raises:
        AnnotationError: a list cannot be used, or videos have no labels.
    """
    train, val = data.train, data.val
    read = functools.partial(read_video_list, root=data.root, multi_label=data.multi_label)
    train_list = read(train, class_names=data.class_names)
    require_labels(train_list)
    if val is None:
        return train_list, None
    names = train_list.class_names
    val_list = read(val, class_names=names)
    require_labels(val_list)
    paths = {record.path for record in train_list.records}
    if shared := [record.name for record in val_list.records if record.path in paths]:
        num_shared = f"{len(shared)} of {len(val_list.records)} videos"
        logger.warning("%s of %s are also in %s: %s", num_shared, val, train, listing(shared))
    seen = {label for record in train_list.records for label in record.labels}
    if unseen := [name for i, name in enumerate(names) if i not in seen]:
        num_unseen = f"{len(unseen)} of {len(names)} classes"
        logger.warning("%s have no video in %s: %s", num_unseen, train, listing(unseen))
    return train_list, val_list


def require_labels(videos: VideoList) -> None:
    """Raises AnnotationError if videos have no label."""
    unlabelled = [record.name for record in videos.records if not record.labels]
    if unlabelled:
        raise AnnotationError(
            f"{videos.source}: {len(unlabelled)} videos have no label, for example "
            f"{unlabelled[0]}; each needs a class (`hiera-video predict` needs no labels)"
        )


def _root_folder(source: Path, root: str | os.PathLike[str] | None) -> str:
    if not source.exists():
        raise AnnotationError(f"{source}: no such file or folder")
    folder = os.path.abspath(source.parent if root is None else user_path(root))
    if not os.path.isdir(folder):
        raise AnnotationError(
            f"{source}: the root {folder} is not a folder; set root to the folder to which paths "
            "are relative"
        )
    return folder


def _check_label_counts(rows: list[Row], multi_label: bool) -> None:
    labelled = sum(bool(row.labels) for row in rows)
    for row in rows:
        if labelled and not row.labels:
            raise AnnotationError(
                f"{row.where}: {row.name!r} has no label, but {labelled} other videos have one; "
                "label all of them or none"
            )
        if len(row.labels) > 1 and not multi_label:
            raise AnnotationError(
                f"{row.where}: {row.name!r} has {len(row.labels)} labels, {listing(row.labels)}; "
                "keep one or set multi_label; if ';' or '|' belongs to a name, set class_names"
            )


def _derive_class_names(rows: list[Row], labels_are_names: bool) -> tuple[str, ...]:
    labels = [(row.where, label) for row in rows for label in row.labels]
    ids = [None if labels_are_names else _as_id(label) for _, label in labels]
    for (where, label), class_id in zip(labels, ids, strict=True):
        if (class_id is None) != (ids[0] is None):
            raise AnnotationError(
                f"{where}: label {label!r}, but {labels[0][1]!r} in {labels[0][0]}; use either ids "
                "or names, set class_names, or call the column class_name if all are names"
            )
        if class_id is not None and not 0 <= class_id < MAX_DERIVED_CLASSES:
            raise AnnotationError(
                f"{where}: class id {label} must be 0 to {MAX_DERIVED_CLASSES - 1}; set "
                "class_names, or check that this is the column of labels"
            )
    known_ids = [class_id for class_id in ids if class_id is not None]
    if known_ids:
        return tuple(str(class_id) for class_id in range(max(known_ids) + 1))
    return tuple(sorted({str(label) for _, label in labels}))


def _to_records(
    rows: list[Row], names: tuple[str, ...], labels_are_names: bool, source: Path
) -> tuple[VideoRecord, ...]:
    """Turns labels into ids. A video that is listed twice with the same labels is kept once."""
    ids = {name: i for i, name in enumerate(names)}
    kept: dict[str, tuple[VideoRecord, str]] = {}
    for row in rows:
        found = {_class_id(label, ids, labels_are_names, row.where) for label in row.labels}
        record = VideoRecord(row.path, tuple(sorted(found)), row.name)
        earlier, where = kept.setdefault(row.path, (record, row.where))
        if earlier.labels != record.labels:
            here, there = ([names[i] for i in video.labels] for video in (record, earlier))
            raise AnnotationError(
                f"{row.where}: {row.name!r} is {listing(here)}, but {listing(there)} in {where}; "
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
        hint = did_you_mean(str(label), ids) or f"; known are {listing(list(ids))}"
        raise AnnotationError(f"{where}: unknown class {label!r}{hint}")
    if by_name not in (None, by_id):
        raise AnnotationError(
            f"{where}: label {label!r} may be class id {by_id} or the name of class {by_name}; "
            "call the column class_name if it is a name"
        )
    if not 0 <= by_id < len(ids):
        raise AnnotationError(
            f"{where}: class id {label} must be 0 to {len(ids) - 1}, because there are "
            f"{len(ids)} class names; ids count from 0"
        )
    return by_id


@functools.lru_cache(maxsize=10_000)  # a list repeats its labels
def _as_id(label: str | int) -> int | None:
    """The class id in a label, or None. Spreadsheets may have written it as 3.0."""
    match = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?", str(label))
    # Of 20 digits, because Python parses 4,300 at most, and all larger numbers are as wrong.
    return int(match[1][:20]) if match else None


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
