"""What is probably meant by a list that cannot be used, for messages.

Nothing here changes what is read: a name is called a mistake only where no file has it.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from hiera_video.data.videos.columns import LABEL_COLUMNS, PATH_COLUMNS, argument, column_name
from hiera_video.data.videos.folders import MEDIA_SUFFIXES, SUFFIX_PATTERN, Row, below, is_media
from hiera_video.errors import MAX_COMPARED, AnnotationError, listing
from hiera_video.files import missing_path, similar_path
from hiera_video.video.content import is_frame_folder

NUM_FILES_CHECKED = 20
# Where a few files are looked for that are not below the root, which may be in a network.
NUM_SOUGHT = 5
NUM_PARENTS = 3
NUM_INSIDE = 100
MAX_PATH = 4096  # characters of a path on Linux
JSON_SUFFIXES = {".json", ".jsonl", ".ndjson"}
JSON_START = re.compile(r'\s*(\[\s*[\[{"]|\{\s*")')
QUOTED = re.compile("'[^']+'|\u2018.+\u2019|\u201c.+\u201d|`.+`")
BEGINS_QUOTED = re.compile(rf"({QUOTED.pattern}).*")
WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
HEADER_ADVICE = (
    f"if this is a header, call the column of paths {listing(PATH_COLUMNS)}, the column of labels "
    f"{listing(LABEL_COLUMNS)}"
)
_SUFFIX_AND_MORE = re.compile(rf"(.*?(?:{SUFFIX_PATTERN}))([^\w.].*)", re.IGNORECASE)


# ---- the content of a file


def check_content(file: Path, text: str) -> None:
    """Raises AnnotationError for JSON in a file of lines, and for lines in a file of JSON."""
    suffix, start = file.suffix.lower(), re.match(r"\s*(\S?)", text)
    if suffix not in JSON_SUFFIXES:
        if JSON_START.match(text):
            raise AnnotationError(
                f"{file}: its content is JSON; call the file .json, or .jsonl if each line is an "
                "object"
            )
    elif start and start[1] not in ("", "[", "{"):
        raise AnnotationError(
            f"{file}: its content is not JSON, which begins with [ or {{; call a file of lines or "
            "csv .txt or .csv"
        )
    elif start and start[1] == "[" and suffix != ".json":
        raise AnnotationError(
            f"{file}: a line of {suffix} is an object, which begins with {{; a JSON list belongs "
            "in a .json file"
        )


def object_advice(content: dict[str, Any]) -> str:
    """How to make a list of a JSON object, by the forms that other programs write."""
    values = list(content.values())
    columns = [key for key in content if column_name(key) in PATH_COLUMNS]
    lists = [key for key in content if isinstance(content[key], list)]
    nested = [key for key in lists if any(isinstance(item, dict) for item in content[key])]
    if isinstance(content.get("database"), dict):
        return (
            "this is ActivityNet's form: write one object for each annotation, with the keys path, "
            "start, end, label and split"
        )
    if (columns and isinstance(content[columns[0]], list | dict)) or {"columns", "data"} <= {
        *content
    }:
        return "pandas writes a list with to_json(FILE, orient='records')"
    if columns:
        return "this is one video: put [ ] around it"
    if "annotations" in nested and len(nested) > 1:
        return (
            "this is COCO's form: write one object for each video, with the keys path and label; "
            "`hiera-video data build-lists` makes a list of iNaturalist's json"
        )
    if nested:
        return f"write what is under {listing(nested)} to a file of its own"
    if values and all(isinstance(value, dict) for value in values):
        return "put the key of each video into its object, as the path"
    if content and all(map(is_media, content)):
        return "its keys are paths: write an object for each"
    if values and len(lists) == len(values):
        return "write an object for each path, with its label"
    name = argument("class_names")
    return f"if this is a map from class names to ids, give it as {name}"


def stated_separator(text: str) -> tuple[str, str]:
    """The separator in a first line `sep=;`, with which spreadsheets begin csv files, else "", and
    the text, in which that line is blank."""
    match = re.match(r'"?sep=(.)"?[ ,;\t]*\n', text)
    return (match[1], text[match.end() - 1 :]) if match else ("", text)


# ---- names and labels


def check_only_names(where: str, names: Sequence[str]) -> None:
    """Raises AnnotationError if lines of a file of class names hold paths or JSON objects, or ids
    beside the names.

    They hold ids if all but a header have a number, each the next one.
    """
    if names and all(JSON_START.match(name) for name in names):
        raise AnnotationError(
            f"{where}: its lines are JSON, such as {names[0][:60]}; write names, one a line, or a "
            "JSON list of names in a .json file"
        )
    if names and all(is_media(name) or _SUFFIX_AND_MORE.fullmatch(name) for name in names):
        raise AnnotationError(
            f"{where}: a list of videos, such as {names[0]!r}; expected class names, one a line"
        )
    for pattern in (r"(\d{1,9})[\s,;:]+\S.*", r".*\S[\t,;:]\s*(\d{1,9})"):
        found = [re.fullmatch(pattern, name) for name in names]
        ids = [int(match[1]) for match in found[found[:1] == [None] :] if match]
        is_counted = all(after == before + 1 for before, after in pairwise(ids))
        if len(ids) > 1 and len(ids) >= len(names) - 1 and is_counted:
            raise AnnotationError(
                f"{where}: its lines hold ids and names, such as {names[-1]!r}; write the names "
                "alone, in the order of the ids, or, if the numbers belong to the names, a "
                "JSON list of names"
            )


def check_comment(where: str, line: str, root: str) -> None:
    """Raises AnnotationError for a line that begins with #, unless it names a file."""
    names = {line, *(line.rpartition(separator)[0].strip() for separator in "\t, ;")}
    if not any(name and os.path.lexists(below(root, name)) for name in names):
        raise AnnotationError(
            f"{where}: {line[:60]!r} is no comment, because lists have none, and there is no such "
            "file; remove the line, or begin it with ./ if it is a path"
        )


def check_name(where: str, name: str, root: str) -> None:
    """Raises AnnotationError for a name in single quotes or after #, unless a file has it."""
    if name.startswith("#"):
        check_comment(where, name, root)
    quoted = BEGINS_QUOTED.fullmatch(name)
    if quoted and not os.path.lexists(below(root, name)):
        inside = quoted[1][1:-1]
        raise AnnotationError(
            f"{where}: the quotes in {name} are read as a part of the path, and there is no such "
            f'file; write {inside} without quotes, or "{inside}"'
        )


def check_order(rows: Iterable[Row]) -> None:
    """Raises AnnotationError if a label has the name of a file, and its path has not."""
    rows = list(rows)
    labels = {label for row in rows for label in row.labels}
    files = {label for label in labels if isinstance(label, str) and is_media(label)}
    for row in rows if files else ():
        if files.issuperset(row.labels) and not (is_media(row.path) or os.path.exists(row.path)):
            raise AnnotationError(
                f"{row.where}: {row.name!r} is read as the path and {row.labels[0]!r} as the "
                "label; exchange them, or their names in the header"
            )


def path_comes_first(row: Row, root: str) -> str:
    """That the end of a name is a path, if there is such a file or only a number stands before it,
    as a message without its place; "" if not."""
    if os.path.exists(row.path) or not is_media(row.name) or len(row.path) > MAX_PATH:
        return ""
    for gap in re.finditer(r"(?<=[\w)])[\t;, ]+", row.name):
        head, tail = row.name[: gap.start()], row.name[gap.end() :]
        is_there = os.path.exists(below(root, tail))
        if tail and (is_there or head.isdecimal()):
            known = f", but there is {tail!r}" if is_there else ""
            return (
                f"{row.name!r} is read as a path, and there is no such file{known}; the path comes "
                f"first and then the label, as in {tail},{row.labels[0] if row.labels else head}; "
                "other columns need a header, such as label,path"
            )
    return ""


# ---- files that are not there


def check_found(rows: Sequence[Row], root: str, source: Path) -> None:
    """Raises AnnotationError, with the folder in which they are, if none of the first files of a
    list exists."""
    checked = rows[:NUM_FILES_CHECKED]
    if not checked or any(os.path.exists(row.path) for row in checked):
        return
    for row in checked:
        if text := path_comes_first(row, root):
            raise AnnotationError(f"{row.where}: {text}")
    first = checked[0]
    if len(first.path) > MAX_PATH:
        raise AnnotationError(f"{first.where}: no file has a path of {len(first.path)} characters")
    names = [
        row.path if os.path.isabs(os.path.expanduser(row.name)) else os.path.relpath(row.path, root)
        for row in checked
    ]
    place = "" if all(map(os.path.isabs, names)) else f" below the root {root}"
    advice = (
        _other_separator(checked, root)
        or _classes(checked, root)
        or elsewhere(root, source, names)
        or (not WINDOWS_ROOT.match(names[0]) and similar_path(first.path))
        or _other_base(names[0], root, source)
        or _other_name(first.path)
    )
    if not advice and not any(is_media(row.path) or "/" in row.name for row in checked):
        advice = (
            f"; if they are class names, give the file as {argument('class_names')}; if they are "
            f"folders of frames, set {argument('root')} to the folder that they are in; a line "
            "begins with a path, and a header needs a column path"
        )
    if not advice and place:
        advice = f"; set {argument('root')} to the folder to which paths are relative"
    raise AnnotationError(
        f"{source}: none of the first {len(checked)} videos exists{place}, for example "
        f"{first.path}{advice or '; correct the paths'}"
    )


def elsewhere(root: str, source: Path, names: Iterable[str], *, any_suffix: bool = False) -> str:
    """Which other folder has the files of a list, as the end of a message; "" if none is found.

    Args:
        root: the folder in which they are not.
        any_suffix: whether names may stand without the suffix.
    """
    relative = [name for name in names if not os.path.isabs(name) and len(name) < MAX_PATH]
    suffixes = ["", *(sorted(MEDIA_SUFFIXES) if any_suffix else ())]
    listed = os.path.abspath(source.parent)
    above = [str(folder) for base in (listed, root) for folder in _parents(base)]
    inside: list[str] = []
    with suppress(OSError):
        names_inside = (entry.path for entry in os.scandir(root) if entry.is_dir())
        inside = sorted(islice(names_inside, NUM_INSIDE))
    found = {
        folder: [
            name
            for name in relative[:NUM_SOUGHT]
            if any(_is_video(os.path.join(folder, name + suffix)) for suffix in suffixes)
        ]
        for folder in dict.fromkeys([listed, os.getcwd(), *above, *inside])
    }
    best = max(found, key=lambda folder: len(found[folder]))
    if not found[best]:
        return ""
    return f"; {found[best][0]!r} is in {best}: set {argument('root', best)}"


def _parents(folder: str) -> Iterable[Path]:
    return islice(Path(folder).parents, NUM_PARENTS)


def _is_video(path: str) -> bool:
    return os.path.isfile(path) or (os.path.isdir(path) and is_frame_folder(path))


def _other_separator(rows: Sequence[Row], root: str) -> str:
    for row in rows:
        found = _SUFFIX_AND_MORE.fullmatch(row.name)
        if found and os.path.exists(below(root, found[1])):
            advice = "separate path and label by a space, a tab, a comma or a semicolon"
            if found[2][0] in "\t, ;":  # below a header of one column
                advice = "the header must name all columns, such as path,label"
            return f"; there is {found[1]!r}, followed by {found[2][:20]!r} in the list: {advice}"
    return ""


def _classes(rows: Sequence[Row], root: str) -> str:
    """That the files are in folders of their classes."""
    for row in rows:
        for label in row.labels:
            if os.path.exists(os.path.join(root, str(label), row.name)):
                return (
                    f"; there is {f'{label}/{row.name}'!r}: write the folders into the list, or "
                    f"give {root} in place of the list"
                )
    return ""


def _other_base(name: str, root: str, source: Path) -> str:
    """That the end of a path, such as one of another machine, is there."""
    parts = name.replace("\\", "/").split("/")
    for start in range(1, len(parts)):
        tail = "/".join(parts[start:])
        for base in dict.fromkeys([root, os.path.abspath(source.parent), os.getcwd()]):
            if tail and os.path.exists(os.path.join(base, tail)):
                setting = "" if base == root else f", and set {argument('root', base)}"
                cut = name[: len(name) - len(tail)]
                return f"; there is {tail!r} in {base}: remove {cut!r} from the paths{setting}"
    return ""


def _other_name(path: str) -> str:
    """That the folder is not there, or has the file with another suffix or in other capitals."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f": {missing_path(folder)}" if os.path.isabs(folder) else ""
    stem = os.path.splitext(name)[0] if is_media(name) else name
    others = [stem + suffix for suffix in sorted(MEDIA_SUFFIXES)]
    found = [other for other in others if os.path.exists(os.path.join(folder, other))]
    with suppress(OSError):
        for entry in islice(os.scandir(folder), MAX_COMPARED):
            is_alike = os.path.splitext(entry.name)[0].casefold() == stem.casefold()
            if is_alike and (is_media(entry.name) or entry.is_dir()):
                found.append(entry.name)
    return f"; there is {found[0]!r}: write names as they are, with the suffix" if found else ""
