"""Folders and list files -> rows: which videos there are, where, and what stands as their label.

Only reading: what the labels mean, as class ids, is for `annotations` to decide.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiera_video.errors import UserError

logger = logging.getLogger(__name__)

# fmt: off
VIDEO_EXTENSIONS = frozenset([
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
])
IMAGE_EXTENSIONS = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
# fmt: on
PATH_COLUMNS = ("path", "video", "filename")
LABEL_COLUMNS = ("label", "labels", "class", "class_name")
KINETICS_COLUMNS = frozenset(("youtube_id", "time_start", "time_end"))

Entry = tuple[str, dict[str, Any]]  # where it stands, and its fields by column name


class AnnotationError(UserError, ValueError):
    """A list, a folder or a file of class names that cannot be used, in one line."""


@dataclass(frozen=True)
class Row:
    """One video as listed: "FILE:LINE" for messages, its name there, its path, its labels."""

    where: str
    name: str
    path: str
    labels: tuple[str | int, ...]


# ---- folders


def read_unlabelled_folder(folder: Path) -> list[Row]:
    """Rows of all videos and pictures of a folder, at any depth, sorted; without labels."""
    tally: Counter[str] = Counter()
    base = os.path.abspath(folder)
    names = sorted(name.removeprefix("./") for name in _walk(base, "", tally))
    rows = [Row(f"{folder}/{name}", name, os.path.join(base, name), ()) for name in names]
    _tell_left_out(folder, rows, tally)
    return rows


def read_folder(folder: Path) -> tuple[list[Row], tuple[str, ...] | None]:
    """Rows of a folder, sorted; its class folders' names, None where it has no folders."""
    tally: Counter[str] = Counter()
    classes: list[str] = []
    loose: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            classes.append(entry.name)
        elif _is_usable(entry.name, tally):
            loose.append(entry.name)
    base = os.path.abspath(folder)
    if classes:
        tally["beside the class folders"] += len(loose)
        rows = [
            Row(f"{folder}/{name}", name, os.path.join(base, name), (class_name,))
            for class_name in classes
            for name in _walk(base, class_name, tally)
        ]
    else:
        rows = [Row(f"{folder}/{name}", name, os.path.join(base, name), ()) for name in loose]
    _tell_left_out(folder, rows, tally)
    return rows, tuple(classes) or None


def _tell_left_out(folder: Path, rows: list[Row], tally: Counter[str]) -> None:
    """Logs what was left out of a folder; without any rows an AnnotationError."""
    left_out = [f"{count} {reason}" for reason, count in sorted(tally.items()) if count]
    if left_out:
        logger.warning("%s: files left out: %s", folder, ", ".join(left_out))
    if not rows:
        known = " ".join(sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
        raise AnnotationError(f"{folder}: no videos or pictures in it; known are {known}")


def _walk(base: str, class_name: str, tally: Counter[str]) -> Iterator[str]:
    """Usable files at any depth of a class folder, relative to `base`; links lead once anywhere."""

    def refuse(error: OSError) -> None:
        raise AnnotationError(f"{error.filename}: {error.strerror}")

    visited = set()
    top = os.path.join(base, class_name)
    for folder, subfolders, files in os.walk(top, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        tally["hidden"] += sum(name.startswith(".") for name in subfolders)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = Path(folder).relative_to(base).as_posix()
        yield from (f"{inside}/{name}" for name in sorted(files) if _is_usable(name, tally))


def _is_usable(name: str, tally: Counter[str]) -> bool:
    if name.startswith("."):
        tally["hidden"] += 1
    elif not is_media(name):
        tally[f"with extension {os.path.splitext(name)[1].lower() or '(none)'}"] += 1
    else:
        return True
    return False


def is_media(path: str) -> bool:
    """Whether a file is, by its extension, a video or a picture."""
    extension = os.path.splitext(path)[1].lower()
    return extension in VIDEO_EXTENSIONS or extension in IMAGE_EXTENSIONS


# ---- lists of lines


def read_list(file: Path, root: str, known: frozenset[str]) -> tuple[list[Row], bool]:
    """Rows of a list file, and whether its labels are names for certain (else they may be ids).

    root: folder, absolute, that the paths in the list start from.
    known: class names that may contain ';' or '|', which otherwise separate labels.
    """
    if is_media(file.name):
        raise AnnotationError(f"{file}: a single video; give a list of videos or a folder")
    text = read_text(file)
    match file.suffix.lower():
        case ".json":
            return _rows_of_table(_json_entries(file, text), file, root, known)
        case ".jsonl" | ".ndjson":
            return _rows_of_table(_json_lines(file, text), file, root, known)
    delimiter = _header_delimiter(text)
    if delimiter in ("\t", ","):
        return _rows_of_table(_csv_entries(file, text, delimiter), file, root, known)
    return _rows_of_lines(file, text, root, known, skip_header=delimiter == " "), False


def _header_delimiter(text: str) -> str | None:
    """What separates the column names of the first line; None where it holds no column names."""
    first = text.lstrip().split("\n", 1)[0].lower()
    for delimiter in ("\t", ","):
        fields = {field.strip(' "') for field in first.split(delimiter)}
        if fields & set(PATH_COLUMNS) or fields >= KINETICS_COLUMNS:
            return delimiter
    words = first.split()
    is_header = len(words) == 2 and words[0] in PATH_COLUMNS and words[1] in LABEL_COLUMNS
    return " " if is_header else None


def _rows_of_lines(
    file: Path, text: str, root: str, known: frozenset[str], skip_header: bool
) -> list[Row]:
    rows = []
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines[skip_header:]:
        where = f"{file}:{number}"
        try:
            name, label = _split_line(line.strip())
        except csv.Error as error:
            raise AnnotationError(f"{where}: {error}; expected 'path label'") from None
        rows.append(Row(where, name, _below(root, name), _split_labels(label, where, known)))
    if len(rows) > 1 and not is_media(rows[0].name) and is_media(rows[1].name):
        raise AnnotationError(
            f"{rows[0].where}: {rows[0].name!r} is not a video; if this is a header, call the "
            f"column of paths {listing(PATH_COLUMNS)}, that of labels {listing(LABEL_COLUMNS)}"
        )
    return rows


def _split_line(line: str) -> tuple[str, str]:
    """(path, label) of a line; the label comes last and may miss (""), either may be quoted.

    Of the possible separators the one is taken that leaves the name of a video before it, so that
    paths may hold spaces and commas.
    """
    if is_media(line.strip('"')):
        return line.strip('"'), ""
    candidates = []
    for delimiter in ("\t", ",", " "):
        if '"' in line:
            spaced = delimiter == ","
            *head, label = next(csv.reader([line], delimiter=delimiter, skipinitialspace=spaced))
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
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] = []
    try:
        for fields in reader:
            where = f"{file}:{reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if not columns:
                columns = [field.strip().lower() for field in fields]
                continue
            if len(fields) != len(columns):
                raise AnnotationError(
                    f"{where}: {len(fields)} fields, but the header has {len(columns)} "
                    f"({', '.join(columns)}); quote a field that contains {delimiter!r}"
                )
            yield where, dict(zip(columns, (field.strip() for field in fields), strict=True))
    except csv.Error as error:
        raise AnnotationError(f"{file}:{reader.line_num}: {error}; check the quotes") from None


def _json_lines(file: Path, text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{file}:{number}"
            yield where, _json_object(load_json(line, where), where)


def _json_entries(file: Path, text: str) -> Iterator[Entry]:
    entries = load_json(text, str(file))
    if not isinstance(entries, list):
        raise AnnotationError(f"{file}: expected a list of videos; a label map is for class_names")
    for number, entry in enumerate(entries, 1):
        where = f"{file}: entry {number}"
        yield where, _json_object(entry, where)


def _json_object(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise AnnotationError(f'{where}: expected an object such as {{"path": ..., "label": ...}}')
    return {key.strip().lower(): value for key, value in entry.items()}


def _rows_of_table(
    entries: Iterable[Entry], file: Path, root: str, known: frozenset[str]
) -> tuple[list[Row], bool]:
    table = list(entries)
    columns = {column for _, fields in table for column in fields}
    if columns >= KINETICS_COLUMNS:
        return _kinetics_rows(table, root), True
    path_column = next((column for column in PATH_COLUMNS if column in columns), "")
    if not path_column and "id" in columns:
        return _ssv2_rows(table, root), True
    if not path_column and table:
        raise AnnotationError(
            f"{table[0][0]}: no column of paths; call it one of {listing(PATH_COLUMNS)}"
        )
    label_column = next((column for column in LABEL_COLUMNS if column in columns), "")
    if not label_column and len(columns) > 1:
        allowed = listing(LABEL_COLUMNS)
        logger.warning("%s: no labels; a column of labels is called one of %s", file, allowed)
    rows = []
    for where, fields in table:
        name = fields.get(path_column)
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}: no path in column {path_column!r}")
        labels = _split_labels(fields.get(label_column), where, known)
        rows.append(Row(where, name, _below(root, name), labels))
    return rows, label_column == "class_name"


def _kinetics_rows(table: list[Entry], root: str) -> list[Row]:
    """Rows of an official Kinetics list; videos lie in the root or in folders named by label."""
    rows = []
    folders: dict[str, str] = {}
    for where, fields in table:
        try:
            start, end = (int(float(fields[column])) for column in ("time_start", "time_end"))
        except (KeyError, TypeError, ValueError):
            raise AnnotationError(f"{where}: time_start and time_end must be seconds") from None
        label = str(fields.get("label") or "")
        if label not in folders:
            spellings = (label, label.replace(" ", "_"))
            present = (name for name in spellings if os.path.isdir(_below(root, name)))
            folders[label] = next(present, "")
        name = f"{fields.get('youtube_id')}_{start:06d}_{end:06d}.mp4"
        path = _below(root, os.path.join(folders[label], name))
        rows.append(Row(where, name, path, (label,) if label else ()))
    return rows


def _ssv2_rows(table: list[Entry], root: str) -> list[Row]:
    """Rows of an official SSv2 list; the class is the template without its brackets."""
    present = frozenset(os.listdir(root))
    rows = []
    for where, fields in table:
        name, template = str(fields.get("id") or ""), fields.get("template") or ""
        if not name or not isinstance(template, str):
            raise AnnotationError(f"{where}: expected an id, and a template of one text")
        is_mp4 = f"{name}.mp4" in present and f"{name}.webm" not in present
        path = _below(root, name + (".mp4" if is_mp4 else ".webm"))
        class_name = template.replace("[", "").replace("]", "")
        rows.append(Row(where, name, path, (class_name,) if class_name else ()))
    return rows


# ---- fields and files


def _split_labels(value: Any, where: str, known: frozenset[str]) -> tuple[str | int, ...]:
    """The labels in one field: an id, a name, several by ';' or '|', or a JSON list of them."""
    if isinstance(value, str):
        text = value.strip()
        if text in known:
            value = text
        elif text.startswith("[") and text.endswith("]"):
            value = load_json(text, where)
        else:
            value = [part.strip() for part in re.split(r"[;|]", text) if part.strip()]
    labels = value if isinstance(value, list) else [] if value is None else [value]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise AnnotationError(f"{where}: label {label!r} must be a class id or a class name")
    return tuple(dict.fromkeys(labels))


def _below(root: str, name: str) -> str:
    return os.path.normpath(os.path.join(root, name))


def read_text(path: Path) -> str:
    """A UTF-8 file, line ends and byte-order mark removed."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        problem = error.strerror or str(error)
    raise AnnotationError(f"{path}: {problem}")


def load_json(text: str, where: str) -> Any:
    """The content of JSON text that stands at `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        hint = "; lines of JSON belong into a .jsonl file" if "Extra" in error.msg else ""
        raise AnnotationError(f"{where}{line}: not JSON ({error.msg}){hint}") from None


def listing(items: Sequence[object], at_most: int = 5) -> str:
    """Items for a message: the first few, and how many more there are."""
    text = ", ".join(repr(item) for item in items[:at_most])
    return text + (f" and {len(items) - at_most} more" if len(items) > at_most else "")
