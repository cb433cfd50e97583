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

from hiera_video.data.videos.columns import (
    END_COLUMNS,
    KINETICS_COLUMNS,
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_KEY,
    START_COLUMNS,
    Columns,
    Entry,
    column_name,
    named_columns,
    report_unused,
    selected,
)
from hiera_video.errors import AnnotationError, listing
from hiera_video.files import MAX_LINE, load_json, read_text, user_path
from hiera_video.video.content import frame_number, is_frame_folder
from hiera_video.video.parts import Part
from hiera_video.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

NUM_FILES_CHECKED = 20
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
EXAMPLE = '{"path": ..., "label": ...}'
KNOWN_COLUMNS = {*PATH_COLUMNS, *LABEL_COLUMNS, *START_COLUMNS, *END_COLUMNS, "split"}
SSV2_COLUMNS = ("id", "template", "label", "placeholders")
_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(MEDIA_SUFFIXES))
PATH_AND_FIELDS = re.compile(rf'"?(.*?(?:{_SUFFIX}))"?[\t;, ]+(.+)', re.IGNORECASE)
# mmaction2's lines of folders of frames.
FRAMES_LINE = re.compile(r"(?P<path>.*[^\t, ])[\t, ]+(?P<end_frame>\d+)[\t, ]+(?P<label>\d+)")
NUMBERS_ADVICE = (
    "'path number-of-frames label' is for folders of frames; several labels are written 3;5, with "
    "multi_label; a part of a video needs a header, such as path,start,end,label"
)


@dataclass(frozen=True)
class Row:
    """One listed video."""

    where: str  # "FILE:LINE", for messages
    name: str  # as in the list
    path: str
    labels: tuple[str | int, ...]
    part: Part | None = None
    frames_fps: float | None = None  # of a folder of frames or TIFF pages, if the list states it


# ---- folders


def read_folder(
    folder: Path, *, labelled: bool, has_frames: bool = False
) -> tuple[list[Row], tuple[str, ...] | None]:
    """Reads a folder with one folder per class, or with videos and images only.

    Args:
        labelled: False: all videos and images at any depth, without labels.
        has_frames: a folder of numbered pictures is one video, unless it is that of a class.

    Returns:
        The rows, sorted, and the names of the class folders, or None if there are none.
    """
    base = os.path.abspath(folder)
    skipped: Counter[str] = Counter()
    if has_frames and not labelled and is_frame_folder(base):
        return [Row(str(folder), os.path.basename(base), base, ())], None
    entries = {entry.name: _is_folder(entry) for entry in os.scandir(base)} if labelled else {}
    classes = sorted(name for name in entries if entries[name] and not name.startswith("."))
    found: list[tuple[str, tuple[str, ...]]]
    if classes:
        beside = entries.keys() - classes
        skipped["beside the class folders"] += sum(_is_usable(name, skipped) for name in beside)
        walked = ((label, _walk(base, label, skipped, has_frames)) for label in classes)
        found = [(name, (label,)) for label, names in walked for name in names]
    else:
        found = [(name, ()) for name in sorted(_walk(base, "", skipped, has_frames))]
    if reasons := [f"{count} {reason}" for reason, count in sorted(skipped.items()) if count]:
        logger.warning("%s: files left out: %s", folder, ", ".join(reasons))
    if not found:
        known = " ".join(sorted(MEDIA_SUFFIXES))
        raise AnnotationError(f"{folder}: no videos or images in it; known are {known}")
    rows = [Row(f"{folder}/{name}", name, os.path.join(base, name), ids) for name, ids in found]
    return rows, tuple(classes) or None


def _walk(
    base: str, class_name: str, skipped: Counter[str], has_frames: bool = False
) -> Iterator[str]:
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
        if has_frames and inside != class_name and is_frame_folder(folder):
            skipped["in folders of frames, without a number"] += sum(
                frame_number(entry.name) is None for entry in entries
            )
            yield inside
            continue
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
        raise AnnotationError(f"{base}: no such folder; expected the folder of the videos")
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


def read_list(
    file: Path,
    root: str,
    known: frozenset[str],
    split: str | None = None,
    split_key: str = SPLIT_KEY,
) -> tuple[list[Row], bool]:
    """Reads a list file.

    Args:
        root: absolute folder to which paths in the list are relative.
        known: class names that may contain ';' or '|', which otherwise separate labels.
        split: of the rows to read. None: the list has one split, or no column `split`.
        split_key: how the user chooses a split, for messages.

    Returns:
        The rows, and whether all labels are names. If not, they may be ids.
    """
    if is_media(file.name):
        raise AnnotationError(f"{file}: a single video; give a list of videos or a folder")
    text = read_text(file, AnnotationError)
    header, delimiter = _header(text)
    entries: Iterable[Entry]
    match file.suffix.lower():
        case ".json":
            entries = _json_entries(file, text)
        case ".jsonl" | ".ndjson":
            lines = json_lines(file, text, EXAMPLE)
            entries = ((f"{file}:{number}", fields) for number, fields in lines)
        case _ if delimiter and (delimiter != " " or len(header) > 2):
            entries = _csv_entries(file, text, delimiter)
        case _:
            entries = _line_entries(file, text, root, skip_header=bool(delimiter))
    table, names = named_columns(list(entries))
    table = selected(table, split, str(file), split_key)
    if not table:
        return [], False
    if not set(PATH_COLUMNS).intersection(names):
        if KINETICS_COLUMNS.issubset(names):
            report_unused(names, {*KINETICS_COLUMNS, "label", "split"}, str(file))
            return list(_kinetics_rows(table, root)), True
        if "id" in names:
            report_unused(names, {*SSV2_COLUMNS, "split"}, str(file))
            return list(_ssv2_rows(table, root)), True
    columns = Columns.of(names, table[0][0])
    allowed = listing(LABEL_COLUMNS)
    hint = "" if columns.label else f"; no labels; the column of labels must be called {allowed}"
    report_unused(names, columns.used, str(file), hint)
    rows = []
    for where, fields in table:
        name = fields.get(columns.path)
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}: no path in column {columns.path!r}")
        if "://" in name and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name):
            raise AnnotationError(
                f"{where}: {name!r} is an address; videos are read from files: fetch it, and list "
                "the file"
            )
        labels = _split_labels(fields.get(columns.label), where, known)
        part = columns.part(fields, where)
        has_rate = not is_media(name) or name.lower().endswith((".tif", ".tiff"))  # of pages
        fps = columns.frames_fps(fields, where) if has_rate else None
        rows.append(Row(where, f"{name}{part or ''}", _below(root, name), labels, part, fps))
    return rows, columns.label == "class_name"


def _header(text: str) -> tuple[list[str], str]:
    """The column names in the first line and their separator; none if it is not a header."""
    first = text.lstrip().split("\n", 1)[0]
    for delimiter in ("\t", ";", ","):
        fields = [column_name(field.strip(' "')) for field in first.split(delimiter)]
        if set(PATH_COLUMNS).intersection(fields) or KINETICS_COLUMNS.issubset(fields):
            return fields, delimiter
    words = [column_name(word) for word in first.split()]
    is_header = len(words) > 1 and words[0] in PATH_COLUMNS and KNOWN_COLUMNS.issuperset(words)
    return (words, " ") if is_header else ([], "")


def _line_entries(file: Path, text: str, root: str, skip_header: bool) -> list[Entry]:
    """Entries of lines `path label` or `path`, or of mmaction2's `path number-of-frames label`."""
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = [(number, line) for number, line in stripped if line][skip_header:]
    matches = [FRAMES_LINE.fullmatch(line) for _, line in lines]
    found = [match.groupdict() for match in matches if match and not is_media(match["path"])]
    if lines and len(found) == len(lines) and _are_of_folders(found, f"{file}:{lines[0][0]}", root):
        return [
            (f"{file}:{number}", {**fields, "start_frame": 0})
            for (number, _), fields in zip(lines, found, strict=True)
        ]
    split = [(f"{file}:{number}", *_split_line(file, number, line)) for number, line in lines]
    if split and not is_media(split[0][1]) and any(is_media(name) for _, name, _ in split):
        raise AnnotationError(
            f"{split[0][0]}: {split[0][1]!r} is not a video; if this is a header, call the "
            f"column of paths {listing(PATH_COLUMNS)}, the column of labels "
            f"{listing(LABEL_COLUMNS)}"
        )
    return [(where, {"path": name, "label": label}) for where, name, label in split]


def _are_of_folders(found: list[dict[str, str]], where: str, root: str) -> bool:
    """Whether lines `path 163 5` name folders, and not files `path 163`."""
    first = found[:NUM_FILES_CHECKED]
    if any(os.path.isdir(_below(root, fields["path"])) for fields in first):
        return True
    if any(os.path.exists(_below(root, f"{f['path']} {f['end_frame']}")) for f in first):
        return False
    path, *numbers = first[0].values()
    raise AnnotationError(
        f"{where}: {path!r}, followed by {' and '.join(numbers)}, is not a folder of frames; "
        f"{NUMBERS_ADVICE}"
    )


def _split_line(file: Path, number: int, line: str) -> tuple[str, str]:
    """Splits line `number` into (path, label), each of which may be quoted; label is "" if missing.

    The separator is chosen such that a video's name precedes it, so that paths may contain spaces
    and commas.
    """
    if is_media(line.strip('"')):
        return line.strip('"'), ""
    candidates = []
    for delimiter in ("\t", ",", " ", ";"):
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
    if match := PATH_AND_FIELDS.match(line):
        path, rest = match.groups()
        fields = [field for field in re.split(r"[\t;, ]+", rest) if field]
        if all(re.fullmatch(r"[0-9.]+", field) for field in fields):
            advice = NUMBERS_ADVICE
        elif re.search('[\t;,"]', rest):
            advice = "more than a path and a label need a header, such as path,label,start,end"
        else:
            advice = f'quote a label of several words, {path} "{rest}", or separate it by a tab'
        raise AnnotationError(
            f"{file}:{number}: {path!r} is followed by {len(fields)} fields, {rest!r}; {advice}"
        )
    return candidates[0] if candidates else (line, "")


# ---- tables with named columns


def _csv_entries(file: Path, text: str, delimiter: str) -> Iterator[Entry]:
    rows = csv_rows(file, text, delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] = []
    for line, fields in rows:
        if not any(field.strip() for field in fields):
            continue
        if not columns:
            columns = [column_name(field) for field in fields]
            repeated = [name for name, n in Counter(columns).items() if name and n > 1]
            if repeated:
                raise AnnotationError(
                    f"{file}:{line}: more than one column is called {listing(repeated)}"
                )
            continue
        where = f"{file}:{line}"
        if [column_name(field) for field in fields] == columns:
            raise AnnotationError(f"{where}: the header stands here again; remove the line")
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
    # pandas writes ids as 3.0 if the column has an empty field.
    labels = [int(x) if isinstance(x, float) and x.is_integer() else x for x in labels]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise AnnotationError(f"{where}: label {label!r} must be a class id or a class name")
    return tuple(dict.fromkeys(labels))


def _below(root: str, name: str) -> str:
    return os.path.normpath(os.path.join(root, os.path.expanduser(name)))
