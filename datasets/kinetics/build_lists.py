"""Build a `path,label` list from an official Kinetics annotation file and the downloaded videos.

    python datasets/kinetics/build_lists.py ANNOTATIONS.csv LIST.csv VIDEO_FOLDER [VIDEO_FOLDER ...]

In an installed package it is `python -m hiera_video.datasets.kinetics.build_lists`.

ANNOTATIONS.csv has the columns label,youtube_id,time_start,time_end,split. The folders are searched
at any depth for videos named YOUTUBE-ID_START_END (seconds, six digits) or YOUTUBE-ID only. Of
several files the one in the folder given first is used, so a folder of replacements goes first.
Paths in the list are relative to it, labels are class names. Missing and empty videos are left out,
counted, and written to LIST.missing.txt.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi")
COLUMNS = ("youtube_id", "time_start", "time_end")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS.csv")
    parser.add_argument("list", type=Path, metavar="LIST.csv")
    parser.add_argument("folders", type=Path, nargs="+", metavar="VIDEO_FOLDER")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    if arguments.list.exists():
        parser.error(f"{arguments.list} exists; remove it or choose another name")

    with arguments.annotations.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        parser.error(f"{arguments.annotations} needs videos and a header with {', '.join(COLUMNS)}")
    videos = find_videos(arguments.folders)
    found, missing = [], []
    for row in rows:
        start, end = (int(float(row[column])) for column in COLUMNS[1:])
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        path = videos.get(name) or videos.get(row["youtube_id"])
        if path is None:
            missing.append((f"{name} missing", row))
        elif path.stat().st_size == 0:
            missing.append((f"{name} empty: {path}", row))
        else:
            found.append((os.path.relpath(path, arguments.list.parent), row.get("label")))
    if not found:
        parser.error(
            f"none of the {len(rows)} videos is in {', '.join(map(str, arguments.folders))}"
        )

    labelled = all(label for _, label in found)
    with arguments.list.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label") if labelled else ("path",))
        writer.writerows(found if labelled else ((path,) for path, _ in found))
    print(f"{arguments.list}: {len(found)} of {len(rows)} videos, {len(missing)} missing or empty")
    if labelled:
        absent = {row["label"] for _, row in missing} - {label for _, label in found}
        print(f"{len({label for _, label in found})} classes", end="")
        print(f", none left of: {', '.join(sorted(absent))}" if absent else "")
    if missing:
        report = arguments.list.with_suffix(".missing.txt")
        report.write_text("".join(f"{line}\n" for line, _ in missing), encoding="utf-8")
        print(f"{report}: what is missing")
    return 0


def find_videos(folders: list[Path]) -> dict[str, Path]:
    """Path of each video by its name without extension; earlier folders win."""
    videos: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in VIDEO_EXTENSIONS and not path.name.startswith("."):
                videos.setdefault(path.stem, path)
    return videos


if __name__ == "__main__":
    sys.exit(main())
