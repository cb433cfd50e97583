"""What the columns of a list of videos mean."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hiera_video.errors import AnnotationError, counted, listing
from hiera_video.video.parts import Part
from hiera_video.video.reader import warn_once

PATH_COLUMNS = ("path", "video_path", "video", "filename", "file_name")
LABEL_COLUMNS = ("label", "labels", "class", "class_name")
START_COLUMNS = ("start", "start_time", "time_start", "start_sec", "start_frame")
END_COLUMNS = ("end", "end_time", "time_end", "end_sec", "end_frame")
RATE_COLUMNS = ("fps", "frame_rate", "frames_fps")
KINETICS_COLUMNS = frozenset(("youtube_id", "time_start", "time_end"))
SPLIT_KEY = "split=NAME (data.split=NAME; data.val_split=NAME for data.val of finetune)"
# Other names of columns that probably decide which videos, or which parts, are meant.
MEANINGFUL = re.compile(
    r"(^|_)(start|begin|onset|from|end|stop|until|to|offset|split|subset|set|partition|fold)(_|\d|$)"
    r"|(start|begin|end|stop)(time|sec|frame)|(time|sec|frame)(start|begin|end|stop)"
)

Entry = tuple[str, dict[str, Any]]  # "FILE:LINE", and the fields by column name


def argument(name: str, value: str = "") -> str:
    """An argument of `read_video_list` with the setting that is its name in commands."""
    return f"{name} (data.{name}{value and f'={value}'})"


def column_name(name: str) -> str:
    """The name of a column as it is known here: `File Name` is file_name."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def named_columns(table: list[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries by `column_name`, and these names in order."""
    given = dict.fromkeys(column for _, fields in table for column in fields)
    names = {column: column_name(column) for column in given}
    if any(column != name for column, name in names.items()):
        table = [(where, {names[c]: v for c, v in fields.items()}) for where, fields in table]
    return table, list(dict.fromkeys(names.values()))


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are used; "" where there is none."""

    path: str
    label: str
    start: str
    end: str
    rate: str

    @classmethod
    def of(cls, columns: Iterable[str], where: str) -> "Columns":
        """Chooses among the columns of a list.

        Raises:
            AnnotationError: there is no column of paths, or it is not clear which part is meant.
        """
        names = list(columns)
        path, label, rate = (
            next((name for name in known if name in names), "")
            for known in (PATH_COLUMNS, LABEL_COLUMNS, RATE_COLUMNS)
        )
        starts, ends = (
            [name for name in names if name in known] for known in (START_COLUMNS, END_COLUMNS)
        )
        if not path:
            known = listing(PATH_COLUMNS, len(PATH_COLUMNS))
            raise AnnotationError(
                f"{where}: no column of paths among {listing(names)}; call it one of {known}"
            )
        if path and frozenset(names) >= KINETICS_COLUMNS:
            raise AnnotationError(
                f"{where}: the columns youtube_id and {path} both name the file; remove {path} if "
                "the files are cut and named ID_START_END.mp4, or youtube_id if time_start and "
                f"time_end are a part of the file {path}"
            )
        for same in (starts, ends):
            if len(same) > 1:
                raise AnnotationError(
                    f"{where}: the columns {listing(same)} state the same; keep one"
                )
        start, end = "".join(starts), "".join(ends)
        if end and not start:
            raise AnnotationError(
                f"{where}: the column {end} without a start; add {end.replace('end', 'start')}, "
                "with 0 for the beginning of a video"
            )
        if end and (start == "start_frame") != (end == "end_frame"):
            raise AnnotationError(f"{where}: {start} and {end} are seconds and frames; take one")
        if start and not end and "duration" in names:
            raise AnnotationError(
                f"{where}: the column duration may be that of the part or of the video; state the "
                "column end instead, or remove duration"
            )
        return cls(path, label, start, end, rate)

    @property
    def used(self) -> set[str]:
        return {self.path, self.label, self.start, self.end, self.rate, "split"}

    def part(self, fields: dict[str, Any], where: str) -> Part | None:
        """The part of the video that a row stands for; None: all of it."""
        if not self.start:
            return None
        in_frames = self.start == "start_frame"
        needed = "the number of a frame, from 0" if in_frames else "seconds, such as 12.5"
        start = _number(fields.get(self.start), f"{where}: {self.start}", needed, in_frames) or 0
        end = _number(fields.get(self.end), f"{where}: {self.end}", needed, in_frames)
        if end is not None and start >= end:
            raise AnnotationError(
                f"{where}: {self.start} is {start:g} and {self.end} is {end:g}; the end must come "
                "after the start"
            )
        return Part(start, end, in_frames) if start or end is not None else None

    def frames_fps(self, fields: dict[str, Any], where: str) -> float | None:
        """The rate of a folder of frames or of TIFF pages; None: the list does not state it."""
        what, needed = f"{where}: {self.rate}", "frames per second, such as 29.97"
        rate = _number(fields.get(self.rate), what, needed)
        if rate == 0:
            raise AnnotationError(f"{what} is 0; expected {needed}")
        return rate


def report_unused(columns: Iterable[str], used: Iterable[str], source: str, hint: str = "") -> None:
    """Logs once which columns of a list are not used.

    Raises:
        AnnotationError: such a column probably decides which videos or parts are meant.
    """
    unused = [name for name in columns if name and name not in used]
    for name in unused:
        if MEANINGFUL.search(name):
            raise AnnotationError(
                f"{source}: the column {name!r} is not known, and may decide which videos or which "
                "parts of them are meant; call it start, end (seconds), start_frame, end_frame or "
                "split, or remove it"
            )
    if unused:
        warn_once(f"{source}: columns that are not used: {listing(unused, len(unused))}{hint}")


def selected(
    table: list[Entry], split: str | None, source: str, split_key: str = SPLIT_KEY
) -> list[Entry]:
    """The rows of a split, by the column `split`; all rows of a list of one split or without any.

    Args:
        split: None: the list must not hold several.
        split_key: how the user chooses one, for the message.

    Raises:
        AnnotationError: there is no such split, or none is chosen among several.
    """
    if not any("split" in fields for _, fields in table):
        if split is None:
            return table
        raise AnnotationError(
            f"{source}: the split {split!r} is asked for, but there is no column split"
        )
    splits = [
        str("" if fields.get("split") is None else fields["split"]).strip() for _, fields in table
    ]
    counts = Counter(splits)
    known = ", ".join(
        f"{name or '(empty)'} ({counted(count, 'row')})" for name, count in counts.items()
    )
    if split is None and len(counts) > 1:
        raise AnnotationError(
            f"{source}: the column split has {known}; choose one with {split_key}"
        )
    if split is not None and split not in counts:
        raise AnnotationError(f"{source}: no row is of the split {split!r}; there are {known}")
    return [
        entry for entry, name in zip(table, splits, strict=True) if split is None or name == split
    ]


def _number(value: Any, what: str, needed: str, is_whole: bool = False) -> float | None:
    """A number in a field that is not negative; None where nothing is given."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    if re.fullmatch(r"\d+,\d+", text):  # as spreadsheets write it in many languages
        text = text.replace(",", ".")
    try:
        number = float(text)
        if not (math.isfinite(number) and number >= 0) or (is_whole and not number.is_integer()):
            raise ValueError
    except ValueError:
        raise AnnotationError(f"{what} is {value!r}; expected {needed}") from None
    return number
