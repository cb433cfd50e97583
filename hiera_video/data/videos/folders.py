"""Finds videos in folders: those of classes, or those of given names."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from hiera_video.errors import AnnotationError, listing
from hiera_video.files import user_path
from hiera_video.video.content import frame_number, is_frame_folder
from hiera_video.video.parts import Part
from hiera_video.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
SUFFIX_PATTERN = "|".join(re.escape(suffix) for suffix in sorted(MEDIA_SUFFIXES))


@dataclass(frozen=True)
class Row:
    """One listed video."""

    where: str  # "FILE:LINE", for messages
    name: str  # as in the list
    path: str
    labels: tuple[str | int, ...]
    part: Part | None = None
    frames_fps: float | None = None  # of a folder of frames or TIFF pages, if the list states it


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


def files_among(inputs: Sequence[str], *, has_frames: bool = False) -> list[str]:
    """The files among the inputs, and the videos and images below the folders among them.

    Args:
        has_frames: folders of numbered pictures are videos.
    """
    found: list[str] = []
    for name in inputs:
        if os.path.isdir(name):
            rows, _ = read_folder(Path(name), labelled=False, has_frames=has_frames)
            is_video = rows[0].path == os.path.abspath(name)
            found += [name if is_video else os.path.join(name, row.name) for row in rows]
        else:
            found.append(name)
    return found


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


def below(root: str, name: str) -> str:
    """The path of a name in a list."""
    return os.path.normpath(os.path.join(root, os.path.expanduser(name)))


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
