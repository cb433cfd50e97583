"""The videos of a data set, with their labels as class ids.

`read_video_list` recognises
  * a folder with one folder per class, or a folder of videos without classes;
  * lines `path label`, separated by spaces, tabs, commas or semicolons, or paths alone;
  * mmaction2's lines `path number-of-frames label` of folders of frames;
  * csv, tsv, JSON and JSON lines with named columns, with one or several labels per video, parts of
    videos and splits;
  * the official lists of Kinetics (label,youtube_id,time_start,time_end,split) and SSv2 (json).

datasets/README.md has them in a table. An image counts as a video of one frame, and a folder of
numbered images as a video where the rate of its frames is known. Files are not opened: a list is
refused only if none of its first files exists.
"""

import functools
import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hiera_video.data.videos.columns import argument
from hiera_video.data.videos.files import read_list
from hiera_video.data.videos.folders import Row, read_folder
from hiera_video.data.videos.mistakes import (
    check_content,
    check_found,
    check_only_names,
    check_order,
    path_comes_first,
)
from hiera_video.errors import AnnotationError, UnknownClassError, counted, did_you_mean, listing
from hiera_video.files import (
    json_text,
    load_json,
    own_or_shipped,
    read_text,
    similar_path,
    user_path,
)
from hiera_video.settings.training import ClassificationData
from hiera_video.video.open import OpenVideo
from hiera_video.video.parts import Part, open_part
from hiera_video.video.reader import VideoReader

logger = logging.getLogger(__name__)

TRAINING_FOLDERS = {"train", "training"}
HELD_OUT_FOLDERS = {"val", "valid", "validation", "test", "testing", "eval", "dev"}
MAX_DERIVED_CLASSES = 100_000  # higher ids probably come from another column than the labels


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video, or a part of one."""

    path: str  # absolute
    labels: tuple[int, ...]  # class ids, ascending; () if the video has no label
    name: str  # as in the list, and the part, `#t=2,4.5`; identifies the record in outputs
    part: Part | None = None  # None: the whole video
    frames_fps: float | None = (
        None  # of a folder of frames or TIFF pages. None: the list does not state it
    )

    def open(self, open_video: OpenVideo) -> VideoReader:
        """The reader of the video or of the part.

        Raises:
            VideoError: the file cannot be read, or the part lies outside of it.
        """
        if self.frames_fps is not None:
            open_video = functools.partial(open_video, frames_fps=self.frames_fps)
        return open_part(open_video, self.path, self.part)


@dataclass(frozen=True)
class VideoList:
    """The videos of one list or folder, in its order, and the names of its classes."""

    source: str
    records: tuple[VideoRecord, ...]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the videos in order, their labels and rates, and the class names."""
        videos = [(r.name, r.labels, *filter(None, [r.frames_fps])) for r in self.records]
        content = [self.class_names, videos]
        return hashlib.sha256(json_text(content, ensure_ascii=True).encode()).hexdigest()

    @property
    def class_counts(self) -> Counter[int]:
        """The number of videos of each class that has any, by id."""
        return Counter(label for record in self.records for label in record.labels)


def read_video_list(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    multi_label: bool = False,
    labelled: bool = True,
    split: str | None = None,
    frames_fps: float | None = None,
) -> VideoList:
    """Reads the videos of a folder or of a list, with class ids.

    Args:
        source: the folder or the list, in one of the forms of datasets/README.md.
        root: folder to which paths in a list are relative. None: the folder of the list.
        class_names: the classes in id order, as a sequence, a text file (one per line) or a JSON
            file (a map from name to id, or a list). None: the sorted names of labels or folders, or
            "0", "1", ... up to the highest id. Read a validation list with the class names of its
            training list.
        multi_label: allow several labels per video, separated by ';' or '|', or as a JSON list.
        labelled: False: all videos of a folder, at any depth, or of a list, without labels.
        split: the rows with this value in the column `split`. None: the list must have one value
            there, or no such column.
        frames_fps: frames per second of folders of frames, where the list does not state it. None:
            pictures in folders are pictures.

    Raises:
        AnnotationError: the source cannot be used; the message names file and line.
    """
    source = user_path(source)
    names = None if class_names is None else read_class_names(class_names)
    if source.is_dir():
        if root is not None:
            raise AnnotationError(
                f"{source}: a folder, which takes no root; {argument('root')} is {root}"
            )
        if split is not None:
            raise AnnotationError(
                f"{source}: a folder, which has no column split; {argument('split')} is {split}"
            )
        labels_are_names, folder = True, str(source)
        has_frames = frames_fps is not None
        rows, folder_names = read_folder(source, labelled=labelled, has_frames=has_frames)
        _refuse_splits(source, folder_names or (), names or ())
        names = folder_names if names is None else names
    else:
        folder = _root_folder(source, root)
        rows, labels_are_names = read_list(source, folder, frozenset(names or ()), split)
        check_order(rows)
        check_found(rows, folder, source)
    if not rows:
        raise AnnotationError(f"{source}: no videos listed")
    if not labelled:
        rows = [replace(row, labels=()) for row in rows]
    _check_label_counts(rows, folder, multi_label)
    if names is None:
        names = _derive_class_names(rows, labels_are_names)
    for name in names:
        check_class_name(name, str(source))
    _check_forms(names, str(source))
    records = _to_records(rows, names, labels_are_names, source)
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
        check_content(path, text)
        if path.suffix.lower() == ".json":
            names = _names_of_json(load_json(text, where, AnnotationError), where)
        else:
            names = [line.strip() for line in text.split("\n")] if text else []
            check_only_names(where, names)
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
    _check_forms(names, where)
    return tuple(names)


def _check_forms(names: Sequence[str], where: str) -> None:
    """Raises AnnotationError if two names look alike, but are different Unicode text."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise AnnotationError(
                f"{where}: the classes {other!a} and {name!a} are the same letters in "
                "two Unicode forms; write both in one (NFC)"
            )


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
        AnnotationError: a list cannot be used, videos have no labels, or all have the same ones.
    """
    train, val = data.train, data.val
    if data.val_split is not None and val is None:
        raise AnnotationError(
            f"data.val_split={data.val_split} is given without data.val; set it to the list"
        )
    read = functools.partial(
        read_video_list,
        root=data.root,
        multi_label=data.multi_label,
        frames_fps=data.frames_fps,
    )
    train_list = read(train, class_names=data.class_names, split=data.split)
    require_labels(train_list)
    _check_classes(train_list, are_given=data.class_names is not None)
    if val is None:
        return train_list, None
    val_list = read(val, class_names=train_list.class_names, split=data.val_split)
    require_labels(val_list)
    trained = {(record.path, record.part) for record in train_list.records}
    if shared := [r.name for r in val_list.records if (r.path, r.part) in trained]:
        num_shared = f"{len(shared)} of {len(val_list.records)} videos"
        logger.warning("%s of %s are also in %s: %s", num_shared, val, train, listing(shared))
    return train_list, val_list


def _check_classes(train: VideoList, *, are_given: bool) -> None:
    """Logs a warning for classes without a video.

    Args:
        are_given: the names of the classes come from a file.

    Raises:
        AnnotationError: all videos are of one class.
    """
    names, counts = train.class_names, train.class_counts
    if len(counts) == 1:
        raise AnnotationError(
            f"{train.source}: all videos are of the class {names[next(iter(counts))]!r}; a "
            "classifier needs videos of two classes or more, in one folder for each class or with "
            "labels in a list"
        )
    if unseen := [name for i, name in enumerate(names) if i not in counts]:
        hint = ""
        if not are_given and unseen[0] == "0":
            hint = "; ids count from 0: if these count from 1, subtract 1 from each"
        num_unseen = f"{len(unseen)} of {len(names)} classes"
        logger.warning(
            "%s have no video in %s: %s%s", num_unseen, train.source, listing(unseen), hint
        )


def require_labels(videos: VideoList) -> None:
    """Raises AnnotationError if videos have no label."""
    unlabelled = [record.name for record in videos.records if not record.labels]
    if unlabelled:
        raise AnnotationError(
            f"{videos.source}: no label for {counted(len(unlabelled), 'video')}, for example "
            f"{unlabelled[0]}; each needs a class: one folder for each class, or a list with "
            "labels (`hiera-video predict` needs none)"
        )


def _refuse_splits(folder: Path, found: Sequence[str], names: Sequence[str]) -> None:
    """Raises AnnotationError if the folders are those of splits, and not of classes `names`."""
    trained = [name for name in found if name.lower() in TRAINING_FOLDERS and name not in names]
    held_out = [name for name in found if name.lower() in HELD_OUT_FOLDERS and name not in names]
    if trained and held_out:
        raise AnnotationError(
            f"{folder}: its folders {listing([*trained, *held_out])} are splits, not classes; give "
            f"them one by one, in commands as data.train={folder / trained[0]} and "
            f"data.val={folder / held_out[0]} (if they are classes, name them in class_names, "
            "data.class_names in commands)"
        )


def _root_folder(source: Path, root: str | os.PathLike[str] | None) -> str:
    if not source.exists():
        raise AnnotationError(f"{source}: no such file or folder{similar_path(str(source))}")
    folder = os.path.abspath(source.parent if root is None else user_path(root))
    if not os.path.isdir(folder):
        raise AnnotationError(
            f"{source}: the root {folder} is not a folder; set {argument('root')} to the folder "
            "to which paths are relative"
        )
    return folder


def _check_label_counts(rows: list[Row], root: str, multi_label: bool) -> None:
    labelled = sum(bool(row.labels) for row in rows)
    for row in rows:
        if labelled and not row.labels:
            if swapped := path_comes_first(row, root):
                raise AnnotationError(f"{row.where}: {swapped}")
            raise AnnotationError(
                f"{row.where}: {row.name!r} has no label, unlike "
                f"{counted(labelled, 'other video')}; label all of them or none"
            )
        if len(row.labels) > 1 and not multi_label:
            raise AnnotationError(
                f"{row.where}: {row.name!r} has {len(row.labels)} labels, {listing(row.labels)}; "
                f"keep one, or train with {argument('multi_label')}; if ';' or '|' belongs to a "
                f"name, set {argument('class_names')}"
            )


def _derive_class_names(rows: list[Row], labels_are_names: bool) -> tuple[str, ...]:
    labels = [(row.where, label) for row in rows for label in row.labels]
    ids = [None if labels_are_names else _as_id(label) for _, label in labels]
    for (where, label), class_id in zip(labels, ids, strict=True):
        if not labels_are_names and re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*|nan|NaN", str(label)):
            raise AnnotationError(
                f"{where}: label {label!r} is no class id, which is a whole number; if it is a "
                f"name, call the column class_name or set {argument('class_names')}"
            )
        if (class_id is None) != (ids[0] is None):
            hint = _leading_zeros(label) or _leading_zeros(labels[0][1])
            raise AnnotationError(
                f"{where}: label {label!r}, but {labels[0][1]!r} in {labels[0][0]}; use either ids "
                f"or names, set {argument('class_names')}, or call the column class_name if all "
                f"are names{hint}"
            )
        if class_id is not None and not 0 <= class_id < MAX_DERIVED_CLASSES:
            raise AnnotationError(
                f"{where}: class id {label} must be 0 to {MAX_DERIVED_CLASSES - 1}; check that "
                f"this is the column of labels, or set {argument('class_names')}"
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
    kept: dict[tuple[str, Part | None], tuple[VideoRecord, str]] = {}
    for row in rows:
        found = {_class_id(label, ids, labels_are_names, row.where) for label in row.labels}
        labels = tuple(sorted(found))
        record = VideoRecord(row.path, labels, row.name, row.part, row.frames_fps)
        earlier, where = kept.setdefault((row.path, row.part), (record, row.where))
        if earlier.labels != record.labels:
            here, there = ([names[i] for i in video.labels] for video in (record, earlier))
            raise AnnotationError(
                f"{row.where}: {row.name!r} is {listing(here)}, but {listing(there)} in {where}; "
                "keep one line, with all labels separated by ';' if it has several"
            )
        if earlier.frames_fps != record.frames_fps:
            raise AnnotationError(
                f"{row.where}: {row.name!r} has {record.frames_fps} frames per second, but "
                f"{earlier.frames_fps} in {where}; keep one line"
            )
    if len(kept) < len(rows):
        logger.warning("%s: lines left out that repeat a video: %d", source, len(rows) - len(kept))
    return tuple(record for record, _ in kept.values())


def _class_id(label: str | int, ids: dict[str, int], is_name: bool, where: str) -> int:
    by_name = ids.get(str(label))
    by_id = None if is_name else _as_id(label)
    if by_id is None and by_name is not None:
        return by_name
    if by_id is None:
        hint = _misspelt(str(label), ids) + _leading_zeros(label)
        raise UnknownClassError(f"{where}: unknown class {label!r}{hint}")
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


def _misspelt(label: str, known: Mapping[str, int]) -> str:
    """What may be wrong with an unknown class, as the end of a message."""
    form = unicodedata.normalize("NFC", label)
    for name in known:
        if unicodedata.normalize("NFC", name) == form:
            return (
                f", which is {label!a}, but {name!a} among the known classes: the same letters in "
                "two Unicode forms; write both in one (NFC)"
            )
    return did_you_mean(label, known) or f"; known are {listing(list(known))}"


def _leading_zeros(label: str | int) -> str:
    return "; ids have no leading zeros" if re.fullmatch(r"0\d+", str(label)) else ""


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
