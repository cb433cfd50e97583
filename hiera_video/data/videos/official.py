"""Which files of an official list are there, and where: Kinetics, iNaturalist, Places365."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hiera_video.data.videos.files import read_list
from hiera_video.data.videos.folders import Row, read_folder
from hiera_video.data.videos.records import check_class_name
from hiera_video.errors import AnnotationError
from hiera_video.files import load_json, read_text
from hiera_video.video.reader import VIDEO_SUFFIXES

NAME = re.compile(r"(?P<stem>(?P<youtube_id>.+)_\d{6,}_\d{6,})\.mp4")


@dataclass
class Found:
    """The files of an official list: those that are there, by path, and those that are not."""

    unit: str = "video"
    class_names: tuple[str, ...] | None = None  # by id, where the list states them
    listed: list[tuple[str, Row]] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    empty: list[tuple[str, Row]] = field(default_factory=list)

    def add(self, row: Row, path: str | None) -> None:
        if path is None:
            self.missing.append(row)
        elif os.path.getsize(path) == 0:
            self.empty.append((path, row))
        else:
            self.listed.append((path, row))


def find_official(annotations: Path, folders: Sequence[Path], split: str | None = None) -> Found:
    """Looks for the files of an official list in folders: a .json file is iNaturalist's, a .txt
    file Places365's, any other one Kinetics'.

    Of several files of one name, that of the folder which stands first is taken.

    Args:
        split: of the rows to look for. None: the list has one split, or no column `split`.

    Raises:
        AnnotationError: another kind of file; a line or an entry that is wrong; a folder of
            Kinetics without videos.
    """
    match annotations.suffix.lower():
        case ".json":
            return _find_inaturalist(annotations, folders, split)
        case ".txt":
            return _find_places365(annotations, folders, split)
        case _:
            return _find_kinetics(annotations, folders, split)


def _find_kinetics(annotations: Path, folders: Sequence[Path], split: str | None) -> Found:
    """Videos are called YOUTUBE-ID_START_END (seconds, six digits) or YOUTUBE-ID, at any depth."""
    videos: dict[str, str] = {}
    for folder in folders:
        for row in read_folder(folder, labelled=False)[0]:
            stem, suffix = os.path.splitext(os.path.basename(row.path))
            if suffix.lower() in VIDEO_SUFFIXES:
                videos.setdefault(stem, row.path)
    found = Found()
    for row in _rows(annotations, folders, split):
        name = NAME.fullmatch(row.name)
        if name is None:
            raise AnnotationError(
                f"{row.where}: not of an official Kinetics file, which has the columns "
                "label,youtube_id,time_start,time_end,split"
            )
        found.add(row, videos.get(name["stem"]) or videos.get(name["youtube_id"]))
    return found


def _find_places365(annotations: Path, folders: Sequence[Path], split: str | None) -> Found:
    """Lines `path id`; paths of training pictures begin with a slash, but start in the folder."""
    found = Found("picture")
    for row in _rows(annotations, folders, split):
        found.add(row, _below(folders, row.name))
    return found


def _find_inaturalist(annotations: Path, folders: Sequence[Path], split: str | None) -> Found:
    """Json with images (id, file_name), annotations (image_id, category_id) and categories."""
    if split is not None:
        raise AnnotationError(
            f"{annotations}: the split {split!r} is asked for, but a .json file has no column split"
        )
    content = load_json(read_text(annotations, AnnotationError), str(annotations), AnnotationError)
    images, categories, labels = (
        _by_id(content, key, annotations) for key in ("images", "categories", "annotations")
    )
    names = _class_names(categories, annotations)
    class_of: dict[int, int] = {}
    for number, entry in labels.items():
        ids = []
        for key, known in (("image_id", images), ("category_id", categories)):
            if type(entry.get(key)) is not int or entry[key] not in known:
                raise AnnotationError(
                    f"{annotations}: annotation {number}: {key} is {entry.get(key)!r}, which no "
                    f"{key.removesuffix('_id')} of the file has"
                )
            ids.append(entry[key])
        if class_of.setdefault(*ids) != ids[1]:
            raise AnnotationError(
                f"{annotations}: annotation {number}: image {ids[0]} is of category {ids[1]} here, "
                f"but of {class_of[ids[0]]} before; keep one"
            )
    found = Found("picture", names)
    for number, entry in images.items():
        where, name = f"{annotations}: image {number}", entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}: file_name is {name!r}; expected a path")
        if number not in class_of:
            raise AnnotationError(f"{where}: no annotation has this image_id; remove the image")
        row = Row(where, name, name, (names[class_of[number]],))
        found.add(row, _below(folders, name))
    return found


def _by_id(content: Any, key: str, file: Path) -> dict[int, dict[str, Any]]:
    """The entries of one of the lists of iNaturalist's json, by their ids."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(
            f"{file}: no list {key!r}; expected images, annotations and categories, as in "
            "iNaturalist's files of 2017 to 2019 for training and validation"
        )
    found: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise AnnotationError(f"{file}: entry {number} of {key!r} has no whole number as id")
        if found.setdefault(entry["id"], entry) is not entry:
            raise AnnotationError(f"{file}: id {entry['id']} stands twice in {key!r}")
    return found


def _class_names(categories: dict[int, dict[str, Any]], file: Path) -> tuple[str, ...]:
    """The names of categories in the order of their ids, which are class ids."""
    if gaps := set(range(len(categories))) - categories.keys():
        raise AnnotationError(
            f"{file}: no category has the id {min(gaps)}; ids are class ids, 0 to "
            f"{len(categories) - 1} for {len(categories)} categories: number them so in "
            "'categories' and 'annotations'"
        )
    ids: dict[str, int] = {}
    for number in range(len(categories)):
        stated = categories[number].get("name")
        name = " ".join(stated.split()) if isinstance(stated, str) else ""  # on one line
        check_class_name(name or stated, f"{file}: category {number}")
        if ids.setdefault(name, number) != number:
            raise AnnotationError(
                f"{file}: the categories {ids[name]} and {number} are both called {name!r}; "
                "rename one"
            )
    return tuple(ids)


def _rows(annotations: Path, folders: Sequence[Path], split: str | None) -> list[Row]:
    return read_list(annotations, os.fspath(folders[0]), frozenset(), split, "split=NAME")[0]


def _below(folders: Sequence[Path], name: str) -> str | None:
    """The file of this name below the first of the folders that has it."""
    paths = (os.path.join(folder, name.lstrip("/")) for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), None)
