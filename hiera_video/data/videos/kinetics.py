"""Which videos of an official Kinetics list are there, and where."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hiera_video.data.videos.files import read_list
from hiera_video.data.videos.folders import Row, read_folder
from hiera_video.errors import AnnotationError
from hiera_video.video.reader import VIDEO_SUFFIXES

NAME = re.compile(r"(?P<stem>(?P<youtube_id>.+)_\d{6,}_\d{6,})\.mp4")


@dataclass
class Found:
    """The videos of an annotation file: those that are there, by path, and those that are not."""

    listed: list[tuple[str, Row]] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    empty: list[tuple[str, Row]] = field(default_factory=list)


def find_kinetics(annotations: Path, folders: Sequence[Path], split: str | None = None) -> Found:
    """Looks for the videos of an official csv in folders, at any depth.

    A video is called YOUTUBE-ID_START_END (seconds, six digits) or YOUTUBE-ID. Of several files,
    that of the folder which stands first is taken.

    Args:
        split: of the rows to look for. None: the csv has one split, or no column `split`.

    Raises:
        AnnotationError: another kind of file; a line that is wrong; a folder without videos.
    """
    videos: dict[str, str] = {}
    for folder in folders:
        for row in read_folder(folder, labelled=False)[0]:
            stem, suffix = os.path.splitext(os.path.basename(row.path))
            if suffix.lower() in VIDEO_SUFFIXES:
                videos.setdefault(stem, row.path)
    found = Found()
    rows, _ = read_list(annotations, os.fspath(folders[0]), frozenset(), split, "split=NAME")
    for row in rows:
        name = NAME.fullmatch(row.name)
        if name is None:
            raise AnnotationError(
                f"{row.where}: not of an official Kinetics file, which has the columns "
                "label,youtube_id,time_start,time_end,split"
            )
        path = videos.get(name["stem"]) or videos.get(name["youtube_id"])
        if path is None:
            found.missing.append(row)
        elif os.path.getsize(path) == 0:
            found.empty.append((path, row))
        else:
            found.listed.append((path, row))
    return found
