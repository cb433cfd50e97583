"""Reads folders and list files of videos into rows: name, path and labels of each video.

Labels are class ids or class names, as in the file; `records` turns them into class ids.
"""

import csv
import io
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from hiera_video.errors import UserError, listing
from hiera_video.files import MAX_LINE, load_json, read_text, user_path
from hiera_video.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
PATH_COLUMNS = ("path", "video", "filename")
LABEL_COLUMNS = ("label", "labels", "class", "class_name")
EXAMPLE = '{"path": ..., "label": ...}'
KINETICS_COLUMNS = frozenset(("youtube_id", "time_start", "time_end"))

Entry = tuple[str, dict[str, Any]]  # "FILE:LINE", and the fields by column name


class AnnotationError(UserError, ValueError):
    """A list, a folder or a file of class names cannot be used. The message is one line."""


@dataclass(frozen=True)
class Row:
    """One listed video."""

    where: str  # "FILE:LINE", for messages
    name: str  # as in the list
    path: str
    labels: tuple[str | int, ...]


# ---- folders


def read_folder(folder: Path, *, labelled: bool) -> tuple[list[Row], tuple[str, ...] | None]:
    """Reads a folder with one folder per class, or with videos and images only.

    Args:
        labelled: False: all videos and images at any depth, without labels.

    Returns:
        The rows, sorted, and the names of the class folders, or None if there are none.
    """
    base = os.path.abspath(folder)
    skipped: Counter[str] = Counter()
    entries = {entry.name: _is_folder(entry) for entry in os.scandir(base)} if labelled else {}
    classes = sorted(name for name in entries if entries[name] and not name.startswith("."))
    found: list[tuple[str, tuple[str, ...]]]
    if classes:
        beside = entries.keys() - classes
        skipped["beside the class folders"] += sum(_is_usable(name, skipped) for name in beside)
        found = [(name, (label,)) for label in classes for name in _walk(base, label, skipped)]
    else:
        found = [(name, ()) for name in sorted(_walk(base, "", skipped))]
    if reasons := [f"{count} {reason}" for reason, count in sorted(skipped.items()) if count]:
        logger.warning("%s: files left out: %s", folder, ", ".join(reasons))
    if not found:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise AnnotationError(f"{folder}: no videos or images in it; known are {known}")
    rows = [Row(f"{folder}/{name}", name, os.path.join(base, name), ids) for name, ids in found]
    return rows, tuple(classes) or None


def _walk(base: str, class_name: str, skipped: Counter[str]) -> Iterator[str]:
    """Videos and images at any depth of a class folder, relative to `base`.

    A folder that several links point to is visited once.
    """
    visited = set()
    pending = [class_name]  # os.walk calls itself, which ends in folders that are too deep
    while pending:
        inside = pending.pop()
        folder = os.path.join(base, inside)
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=attrgetter("name"))
        except OSError as error:
            raise AnnotationError(f"{error.filename}: {error.strerror}") from None
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        folders = []
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if not _is_folder(entry):
                if _is_usable(entry.name, skipped):
                    yield name
            elif entry.name.startswith("."):
                skipped["hidden"] += 1
            else:
                folders.append(name)
        pending += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_usable(name: str, skipped: Counter[str]) -> bool:
    if name.startswith("."):
        skipped["hidden"] += 1
    elif not is_media(name):
        skipped[f"with extension {os.path.splitext(name)[1].lower() or '(none)'}"] += 1
    else:
        return True
    return False


def is_media(path: str) -> bool:
    """Whether the name of a file has the suffix of a video or an image."""
    return os.path.splitext(path)[1].lower() in MEDIA_SUFFIXES


def locate_videos(
    names: Iterable[str], folder: str | os.PathLike[str]
) -> tuple[dict[str, Path], list[str]]:
    """Finds videos by their names: a file with or without suffix, or a folder of frames.

    Returns:
        The paths by name, and the names that are missing.

    Raises:
        AnnotationError: there is no such folder, or several files match one name.
    """
    base, names = user_path(folder), list(names)
    if not base.is_dir():
        raise AnnotationError(f"{base}: no such folder; needed is the folder of the videos")
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for parent in {(base / name).parent for name in names}:
        if os.path.isdir(parent):
            for entry in sorted(parent.iterdir()):
                if not entry.name.startswith(".") and entry.is_file() and is_media(entry.name):
                    by_stem[str(entry.with_suffix(""))].append(entry)
    found: dict[str, Path] = {}
    for name in names:
        exact = base / name
        candidates = [exact] if os.path.exists(exact) else by_stem.get(str(exact), [])
        if len(candidates) > 1:
            raise AnnotationError(
                f"{base}: {listing([c.name for c in candidates])} all match the video {name!r}; "
                "write its suffix in the list, or remove the others"
            )
        if candidates:
            found[name] = candidates[0]
    return found, [name for name in names if name not in found]


# ---- lists of lines


def read_list(file: Path, root: str, known: frozenset[str]) -> tuple[list[Row], bool]:
    """Reads a list file.

    Args:
        root: absolute folder to which paths in the list are relative.
        known: class names that may contain ';' or '|', which otherwise separate labels.

    Returns:
        The rows, and whether all labels are names. If not, they may be ids.
    """
    if is_media(file.name):
        raise AnnotationError(f"{file}: a single video; give a list of videos or a folder")
    text = read_text(file, AnnotationError)
    entries: Iterable[Entry]
    match file.suffix.lower():
        case ".json":
            entries = _json_entries(file, text)
        case ".jsonl" | ".ndjson":
            lines = json_lines(file, text, EXAMPLE)
            entries = ((f"{file}:{number}", fields) for number, fields in lines)
        case _ if (delimiter := _header_delimiter(text)) in ("\t", ","):
            entries = _csv_entries(file, text, delimiter)
        case _:
            entries = _line_entries(file, text, skip_header=delimiter == " ")
    table = list(entries)
    columns = {column for _, fields in table for column in fields}
    if columns >= KINETICS_COLUMNS:
        return list(_kinetics_rows(table, root)), True
    path_column = next((column for column in PATH_COLUMNS if column in columns), "")
    if not path_column and "id" in columns:
        return list(_ssv2_rows(table, root)), True
    if not path_column and table:
        raise AnnotationError(
            f"{table[0][0]}: no column of paths; call it one of {listing(PATH_COLUMNS)}"
        )
    label_column = next((column for column in LABEL_COLUMNS if column in columns), "")
    if not label_column and len(columns) > 1:
        allowed = listing(LABEL_COLUMNS)
        logger.warning("%s: no labels; the column of labels must be called %s", file, allowed)
    rows = []
    for where, fields in table:
        name = fields.get(path_column)
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}: no path in column {path_column!r}")
        labels = _split_labels(fields.get(label_column), where, known)
        rows.append(Row(where, name, _below(root, name), labels))
    return rows, label_column == "class_name"


def _header_delimiter(text: str) -> str | None:
    """The separator of the column names in the first line; None if it is not a header."""
    first = text.lstrip().split("\n", 1)[0].lower()
    for delimiter in ("\t", ","):
        fields = {field.strip(' "') for field in first.split(delimiter)}
        if fields & set(PATH_COLUMNS) or fields >= KINETICS_COLUMNS:
            return delimiter
    words = first.split()
    is_header = len(words) == 2 and words[0] in PATH_COLUMNS and words[1] in LABEL_COLUMNS
    return " " if is_header else None


def _line_entries(file: Path, text: str, skip_header: bool) -> list[Entry]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    split = [
        (f"{file}:{number}", *_split_line(file, number, line.strip())) for number, line in lines
    ]
    split = split[skip_header:]
    if len(split) > 1 and not is_media(split[0][1]) and is_media(split[1][1]):
        raise AnnotationError(
            f"{split[0][0]}: {split[0][1]!r} is not a video; if this is a header, call the "
            f"column of paths {listing(PATH_COLUMNS)}, the column of labels "
            f"{listing(LABEL_COLUMNS)}"
        )
    return [(where, {"path": name, "label": label}) for where, name, label in split]


def _split_line(file: Path, number: int, line: str) -> tuple[str, str]:
    """Splits line `number` into (path, label), each of which may be quoted; label is "" if missing.

    The separator is chosen such that a video's name precedes it, so that paths may contain spaces
    and commas.
    """
    if is_media(line.strip('"')):
        return line.strip('"'), ""
    candidates = []
    for delimiter in ("\t", ",", " "):
        if '"' in line:
            spaced = delimiter == ","
            rows = csv_rows(file, line, number, delimiter=delimiter, skipinitialspace=spaced)
            *head, label = next(rows)[1]
            path = delimiter.join(head).strip()
        else:
            path, _, label = line.rpartition(delimiter)
            path = path.strip()
        if is_media(path):
            return path, label
        if path:
            candidates.append((path, label))
    return candidates[0] if candidates else (line, "")


# ---- tables with named columns


def _csv_entries(file: Path, text: str, delimiter: str) -> Iterator[Entry]:
    rows = csv_rows(file, text, delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] = []
    for line, fields in rows:
        if not any(field.strip() for field in fields):
            continue
        if not columns:
            columns = [field.strip().lower() for field in fields]
            continue
        where = f"{file}:{line}"
        if len(fields) != len(columns):
            raise AnnotationError(
                f"{where}: {len(fields)} fields, but the header has {len(columns)} "
                f"({', '.join(columns)}); quote a field that contains {delimiter!r}"
            )
        yield where, dict(zip(columns, (field.strip() for field in fields), strict=True))


def csv_rows(
    file: Path, text: str, first: int = 1, **options: Any
) -> Iterator[tuple[int, list[str]]]:
    """Yields each row of comma-separated text, with the number of its last line.

    Args:
        first: number of the first line of `text` in the file.
        options: of `csv.reader`.

    Raises:
        AnnotationError: text that is not csv, or a field of more than 131,072 characters.
    """
    reader = csv.reader(io.StringIO(text), **options)
    try:
        for row in reader:
            yield first - 1 + reader.line_num, row
    except csv.Error as error:
        line = first - 1 + reader.line_num
        raise AnnotationError(f"{file}:{line}: {error}; check the quotes") from None


def json_lines(file: Path, text: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of each line that is not blank, and its fields by names in lower case.

    Args:
        example: of a line, for the message.

    Raises:
        AnnotationError: a line is not a JSON object.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{file}:{number}"
            yield number, _json_object(load_json(line, where, AnnotationError), where, example)


def _json_entries(file: Path, text: str) -> Iterator[Entry]:
    entries = load_json(text, str(file), AnnotationError)
    if not isinstance(entries, list):
        raise AnnotationError(
            f"{file}: expected a list of videos; set class_names to use a label map"
        )
    for number, entry in enumerate(entries, 1):
        where = f"{file}: entry {number}"
        yield where, _json_object(entry, where)


def _json_object(entry: Any, where: str, example: str = EXAMPLE) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{where}: expected an object such as {example}")
    for key, value in entry.items():
        if len(key) > MAX_LINE or (isinstance(value, str) and len(value) > MAX_LINE):
            raise AnnotationError(f"{where}: a text of more than {MAX_LINE:,} characters")
    return {key.strip().lower(): value for key, value in entry.items()}


def _kinetics_rows(table: list[Entry], root: str) -> Iterator[Row]:
    """Rows of an official Kinetics list, with videos in the root or in folders by label."""
    folders: dict[str, str] = {}
    for where, fields in table:
        try:
            start, end = (int(float(fields[column])) for column in ("time_start", "time_end"))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise AnnotationError(f"{where}: time_start and time_end must be seconds") from None
        label = str(fields.get("label") or "")
        if label not in folders:
            spellings = (label, label.replace(" ", "_"))
            present = (name for name in spellings if os.path.isdir(_below(root, name)))
            folders[label] = next(present, "")
        name = f"{fields.get('youtube_id')}_{start:06d}_{end:06d}.mp4"
        path = _below(root, os.path.join(folders[label], name))
        yield Row(where, name, path, (label,) if label else ())


def _ssv2_rows(table: list[Entry], root: str) -> Iterator[Row]:
    """Rows of an official SSv2 list, whose classes are the templates without brackets."""
    present = frozenset(os.listdir(root))
    for where, fields in table:
        name, template = str(fields.get("id") or ""), fields.get("template") or ""
        if not name or not isinstance(template, str):
            raise AnnotationError(f"{where}: expected an id and a template, which is a string")
        is_mp4 = f"{name}.mp4" in present and f"{name}.webm" not in present
        path = _below(root, name + (".mp4" if is_mp4 else ".webm"))
        class_name = template.replace("[", "").replace("]", "")
        yield Row(where, name, path, (class_name,) if class_name else ())


# ---- fields and files


def _split_labels(value: Any, where: str, known: frozenset[str]) -> tuple[str | int, ...]:
    """Labels in one field: ids or names, separated by ';' or '|', or as a JSON list."""
    if isinstance(value, str):
        text = value.strip()
        if text in known:
            value = text
        elif text.startswith("[") and text.endswith("]"):
            value = load_json(text, where, AnnotationError)
        else:
            value = [part.strip() for part in re.split(r"[;|]", text) if part.strip()]
    labels = value if isinstance(value, list) else [] if value is None else [value]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise AnnotationError(f"{where}: label {label!r} must be a class id or a class name")
    return tuple(dict.fromkeys(labels))


def _below(root: str, name: str) -> str:
    return os.path.normpath(os.path.join(root, name))
