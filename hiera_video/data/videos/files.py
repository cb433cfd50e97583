"""Reads list files of videos into rows: name, path and labels of each video.

Labels are class ids or class names, as in the file; `records` turns them into class ids.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
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
    argument,
    column_name,
    named_columns,
    report_unused,
    selected,
)
from hiera_video.data.videos.folders import SUFFIX_PATTERN, Row, below, is_media
from hiera_video.data.videos.mistakes import (
    HEADER_ADVICE,
    NUM_FILES_CHECKED,
    QUOTED,
    check_comment,
    check_content,
    check_name,
    object_advice,
    stated_separator,
)
from hiera_video.errors import AnnotationError, counted, listing
from hiera_video.files import MAX_LINE, is_address, load_json, parse_json, read_text

EXAMPLE = '{"path": ..., "label": ...}'
KNOWN_COLUMNS = {*PATH_COLUMNS, *LABEL_COLUMNS, *START_COLUMNS, *END_COLUMNS, "split"}
LINE_SEPARATORS = "\t, ;"  # in the order in which they are tried
HEADER_AGAIN = "the header is repeated here; remove the line"
SSV2_COLUMNS = ("id", "template", "label", "placeholders")
PATH_AND_FIELDS = re.compile(rf'"?(.*?(?:{SUFFIX_PATTERN}))"?[\t;, ]+(.+)', re.IGNORECASE)
# mmaction2's lines of folders of frames.
FRAMES_LINE = re.compile(r"(?P<path>.*[^\t, ])[\t, ]+(?P<end_frame>\d+)[\t, ]+(?P<label>\d+)")
NUMBERS_ADVICE = (
    "'path number-of-frames label' is for folders of frames; several labels are written 3;5, with "
    f"{argument('multi_label')}; a part of a video needs a header, such as path,start,end,label"
)


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
    check_content(file, text)
    stated, text = stated_separator(text)
    header, delimiter = _header(text, stated)
    entries: Iterable[Entry]
    match file.suffix.lower():
        case ".json":
            entries = _json_entries(file, text)
        case ".jsonl" | ".ndjson":
            lines = json_lines(file, text, EXAMPLE)
            entries = ((f"{file}:{number}", fields) for number, fields in lines)
        case _ if delimiter and (delimiter != " " or len(header) > 2):
            entries = _csv_entries(file, text, delimiter, root)
        case _:
            entries = _line_entries(file, text, root, header, stated or LINE_SEPARATORS)
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
        check_name(where, name, root)
        if is_address(name):
            raise AnnotationError(
                f"{where}: {name!r} is an address; videos are read from files: fetch it, and list "
                "the file"
            )
        labels = _split_labels(fields.get(columns.label), where, known)
        part = columns.part(fields, where)
        has_rate = not is_media(name) or name.lower().endswith((".tif", ".tiff"))  # of pages
        fps = columns.frames_fps(fields, where) if has_rate else None
        rows.append(Row(where, f"{name}{part or ''}", below(root, name), labels, part, fps))
    return rows, columns.label == "class_name"


def _header(text: str, stated: str) -> tuple[list[str], str]:
    """The column names in the first line and their separator; none if it is not a header.

    Args:
        stated: the only separator, if the file states it.
    """
    first = text.lstrip().split("\n", 1)[0]
    for delimiter in stated or "\t;,":
        fields = [column_name(field.strip(' "')) for field in first.split(delimiter)]
        if set(PATH_COLUMNS).intersection(fields) or KINETICS_COLUMNS.issubset(fields):
            return fields, delimiter
    words = [column_name(word) for word in first.split()]
    is_header = len(words) > 1 and words[0] in PATH_COLUMNS and KNOWN_COLUMNS.issuperset(words)
    return (words, " ") if is_header and stated in ("", " ") else ([], "")


def _line_entries(
    file: Path, text: str, root: str, header: list[str], separators: str
) -> list[Entry]:
    """Entries of lines `path label` or `path`, or of mmaction2's `path number-of-frames label`."""
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = [(number, line) for number, line in stripped if line]
    first = lines.pop(0)[1].lower() if header else None
    for number, line in lines:
        if line.startswith("#"):
            check_comment(f"{file}:{number}", line, root)
        if first and line.lower() == first:
            raise AnnotationError(f"{file}:{number}: {HEADER_AGAIN}")
    matches = [FRAMES_LINE.fullmatch(line) for _, line in lines]
    found = [match.groupdict() for match in matches if match and not is_media(match["path"])]
    if lines and len(found) == len(lines) and _are_of_folders(found, f"{file}:{lines[0][0]}", root):
        return [
            (f"{file}:{number}", {**fields, "start_frame": 0})
            for (number, _), fields in zip(lines, found, strict=True)
        ]
    split = [
        (f"{file}:{number}", *_split_line(file, number, line, separators)) for number, line in lines
    ]
    if split and not is_media(split[0][1]) and any(is_media(name) for _, name, _ in split):
        check_name(*split[0][:2], root)
        raise AnnotationError(f"{split[0][0]}: {split[0][1]!r} is not a video; {HEADER_ADVICE}")
    return [(where, {"path": name, "label": label}) for where, name, label in split]


def _are_of_folders(found: list[dict[str, str]], where: str, root: str) -> bool:
    """Whether lines `path 163 5` name folders, and not files `path 163`."""
    first = found[:NUM_FILES_CHECKED]
    if any(os.path.isdir(below(root, fields["path"])) for fields in first):
        return True
    if any(os.path.exists(below(root, f"{f['path']} {f['end_frame']}")) for f in first):
        return False
    path, *numbers = first[0].values()
    raise AnnotationError(
        f"{where}: {path!r}, followed by {' and '.join(numbers)}, is not a folder of frames; "
        f"{NUMBERS_ADVICE}"
    )


def _split_line(file: Path, number: int, line: str, separators: str) -> tuple[str, str]:
    """Splits line `number` into (path, label), each of which may be quoted; label is "" if missing.

    The separator is chosen such that a video's name precedes it, so that paths may contain spaces
    and commas.
    """
    if is_media(line.strip('"')):
        return line.strip('"'), ""
    candidates = []
    for delimiter in separators:
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
        label = rest.strip("\"'`\u2018\u2019\u201c\u201d")
        marks = re.match(r"[^\w\s\"'(\[<&+.-]+|->?|=>", rest)
        if " #" in f" {rest}":
            advice = f"lists have no comments; remove {rest[rest.index('#') :]!r}"
        elif marks and re.match(r"\s*\w", rest[marks.end() :]):
            advice = f"remove {marks[0]!r} between path and label"
        elif re.search(r"[\t;,]$", rest):
            advice = f"remove {rest[-1]!r} from the end of the line"
        elif line.startswith('"') and line.endswith('"') and line.count('"') == 2:
            advice = f'the quotes hold both: write "{path}" "{label}"'
        elif all(re.fullmatch(r"[0-9.]+", field) for field in fields):
            advice = NUMBERS_ADVICE
        elif re.search('[\t;,"]', rest):
            advice = "more than a path and a label need a header, such as path,label,start,end"
        else:
            advice = f'quote a label of several words, {path} "{label}", or separate it by a tab'
        raise AnnotationError(
            f"{file}:{number}: {path!r} is followed by {counted(len(fields), 'field')}, {rest!r}; "
            f"{advice}"
        )
    return candidates[0] if candidates else (line, "")


# ---- tables with named columns


def _csv_entries(file: Path, text: str, delimiter: str, root: str) -> Iterator[Entry]:
    rows = csv_rows(file, text, delimiter=delimiter, skipinitialspace=True, strict=True)
    columns, header = list[str](), list[str]()
    for line, fields in rows:
        if not any(field.strip() for field in fields):
            continue
        if not columns:
            header = [field.strip().lower() for field in fields]
            columns = [column_name(field) for field in fields]
            repeated = [name for name, n in Counter(columns).items() if name and n > 1]
            if repeated:
                raise AnnotationError(
                    f"{file}:{line}: more than one column is called {listing(repeated)}"
                )
            continue
        where = f"{file}:{line}"
        if [field.strip().lower() for field in fields] == header:
            raise AnnotationError(f"{where}: {HEADER_AGAIN}")
        if len(fields) != len(columns):
            if fields[0].startswith("#"):
                check_comment(where, delimiter.join(fields), root)
            advice = f"quote a field that contains {delimiter!r}"
            if not any(fields[len(columns) :]) and len(fields) > len(columns):
                advice = f"remove {delimiter!r} from the end of the line"
            raise AnnotationError(
                f"{where}: {counted(len(fields), 'field')}, but the header has {len(columns)} "
                f"({', '.join(columns)}); {advice}"
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
            f"{file}: a JSON object with the keys {listing(list(entries))}; expected a list such "
            f"as [{EXAMPLE}, ...]: {object_advice(entries)}"
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
            present = (name for name in spellings if os.path.isdir(below(root, name)))
            folders[label] = next(present, "")
        name = f"{fields.get('youtube_id')}_{start:06d}_{end:06d}.mp4"
        path = below(root, os.path.join(folders[label], name))
        yield Row(where, name, path, (label,) if label else ())


def _ssv2_rows(table: list[Entry], root: str) -> Iterator[Row]:
    """Rows of an official SSv2 list, whose classes are the templates without brackets."""
    present = frozenset(os.listdir(root))
    for where, fields in table:
        name, template = str(fields.get("id") or ""), fields.get("template") or ""
        if not name or not isinstance(template, str):
            raise AnnotationError(f"{where}: expected an id and a template, which is a string")
        is_mp4 = f"{name}.mp4" in present and f"{name}.webm" not in present
        path = below(root, name + (".mp4" if is_mp4 else ".webm"))
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
            try:
                value = parse_json(text)
            except ValueError:
                raise AnnotationError(
                    f'{where}: label {text} is not JSON, such as ["run", "jump"]; labels may also '
                    "be separated by ;"
                ) from None
        else:
            value = [part.strip() for part in re.split(r"[;|]", text) if part.strip()]
    labels = value if isinstance(value, list) else [] if value is None else [value]
    # pandas writes ids as 3.0 if the column has an empty field.
    labels = [int(x) if isinstance(x, float) and x.is_integer() else x for x in labels]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise AnnotationError(f"{where}: label {label!r} must be a class id or a class name")
        if label not in known and isinstance(label, str) and QUOTED.fullmatch(label):
            raise AnnotationError(
                f"{where}: the quotes in {label} are read as a part of the class name; write "
                f'{label[1:-1]} without quotes, or "{label[1:-1]}"'
            )
    return tuple(dict.fromkeys(labels))
