"""`hiera-video data check-ava`: mistakes in annotations and videos, before they cost a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hiera_video.data.boxes.table import (
    BoxTable,
    inspect_boxes,
    proposal_recall,
    read_keyframes,
    read_label_map,
)
from hiera_video.data.videos.files import locate_videos
from hiera_video.errors import ConfigError, did_you_mean, listing
from hiera_video.evaluation.ava_report import percent
from hiera_video.runtime.logging import setup_logging
from hiera_video.settings.evaluation import CheckAvaSettings
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError

MOST_TOLD = 20  # of each file, for a person; --json has all
FPS_TOLERANCE = 0.001  # 29.97 for 30 is noticed


def run(config: CheckAvaSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Checks and prints; 3 where something is wrong."""
    setup_logging()
    labels = None if config.label_map is None else read_label_map(config.label_map)
    excluded = [] if config.excluded is None else read_keyframes(config.excluded)
    if dry_run:
        return 0
    truth = inspect_boxes(config.ground_truth, "ground truth", labels)
    told = problems_of(truth)
    if not len(truth):
        told.append(f"{truth.source}: no rows that can be read; needed are boxes with actions")
    report: dict[str, Any] = {
        "ground_truth": {"file": truth.source, **describe(truth)},
        "excluded_keyframes": len(excluded),
    }
    if config.proposals is not None:
        proposals = inspect_boxes(config.proposals, "proposals", None)
        told += problems_of(proposals)
        unknown = sorted(set(proposals.videos) - set(truth.videos))
        if unknown:
            told.append(
                f"{proposals.source}: {len(unknown)} of {len(proposals.videos)} videos are not in "
                f"the ground truth: {listing(unknown)}{did_you_mean(unknown[0], truth.videos)}"
            )
        recall = proposal_recall(truth, proposals, excluded=excluded)
        used = proposal_recall(truth, proposals, min_score=config.proposal_score, excluded=excluded)
        report["proposals"] = {
            "file": proposals.source,
            **describe(proposals),
            "ground_truth_boxes": recall.total,
            "reached_at_iou_0.5": recall.reached,
            "share": recall.fraction if recall.total else None,
            "proposal_score": config.proposal_score,
            "reached_with_proposal_score": used.reached,
            "share_with_proposal_score": used.fraction if used.total else None,
        }
    if config.videos is not None:
        found, missing = locate_videos(truth.videos, config.videos)
        told += [f"{config.videos}: video {name!r} is missing" for name in missing]
        for number, name in enumerate(tqdm(truth.videos, "videos", disable=None)):
            if name in found:
                told += check_video(found[name], truth.second[truth.video == number], config)
        report["videos"] = {"expected": len(truth.videos), "found": len(found)}
    report["problems"] = told
    print(json.dumps(report, ensure_ascii=False) if as_json else tell(report))
    return 3 if told else 0


def problems_of(table: BoxTable) -> list[str]:
    return [f"{table.source}:{problem.line}: {problem.text}" for problem in table.problems]


def describe(table: BoxTable) -> dict[str, Any]:
    """Counts of a table."""
    stamps = np.unique(np.column_stack([table.video, table.second]), axis=0)
    return {
        "rows": len(table),
        "videos": len(table.videos),
        "keyframes": len(stamps),
        "empty_keyframes": int((~table.is_box).sum()),
        "seconds": [float(table.second.min()), float(table.second.max())] if len(table) else None,
    }


def check_video(path: Path, seconds: np.ndarray, config: CheckAvaSettings) -> list[str]:
    """What is wrong with one video whose key frames are at `seconds`."""
    if path.is_dir() and config.expected_fps is None:
        raise ConfigError(f"expected_fps is not set: needed is the rate of the frames in {path}")
    try:
        with opener(config.data, config.expected_fps)(str(path)) as reader:
            num_frames, fps = len(reader), reader.fps
            length = reader.end_sec - float(reader.frame_times_sec[0])
    except VideoError as error:
        return [str(error)]
    found = []
    first, last = config.start_sec, config.start_sec + length
    beyond = np.unique(seconds[(seconds < first) | (seconds >= last)])
    if len(beyond):
        found.append(
            f"{path}: {len(beyond)} key frames lie outside, {beyond[0]:g} s for one; it shows "
            f"{first:g} to {last:.2f} s (start_sec says where files begin)"
        )
    if config.expected_fps is not None and abs(fps / config.expected_fps - 1) > FPS_TOLERANCE:
        found.append(f"{path}: {fps:.3f} frames per second; expected is {config.expected_fps:g}")
    if config.expected_duration_sec is not None:
        expected = config.expected_duration_sec * (config.expected_fps or fps)
        if abs(num_frames - expected) >= (config.expected_fps or fps):  # a second's worth
            found.append(f"{path}: {num_frames} frames; expected are {expected:.0f}")
    return found


def tell(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = []
    for name in ("ground_truth", "proposals"):
        if name in report:
            part = report[name]
            span = (
                "" if part["seconds"] is None else " from {:g} to {:g} s".format(*part["seconds"])
            )
            lines.append(
                f"{name.replace('_', ' ')}: {part['rows']} rows, {part['videos']} videos, "
                f"{part['keyframes']} key frames{span} ({part['file']})"
            )
    if "proposals" in report:
        part = report["proposals"]
        lines += [
            f"proposals reach {part['reached_at_iou_0.5']} of {part['ground_truth_boxes']} "
            f"ground-truth boxes at IoU 0.5: {percent(part['share'])}",
            f"  those with a score of {part['proposal_score']:g} or more reach "
            f"{part['reached_with_proposal_score']}: {percent(part['share_with_proposal_score'])}, "
            "which bounds the recall of what is evaluated, and so the mAP",
        ]
    if "videos" in report:
        lines.append("videos: {found} of {expected} found".format(**report["videos"]))
    problems = report["problems"]
    for source, count in Counter(_source(problem) for problem in problems).items():
        of_source = [problem for problem in problems if _source(problem) == source]
        lines += of_source[:MOST_TOLD]
        if count > MOST_TOLD:
            lines.append(f"{source}: and {count - MOST_TOLD} more; --json lists all")
    lines.append(f"{len(problems)} problems" if problems else "no problems found")
    return "\n".join(lines)


def _source(problem: str) -> str:
    return problem.partition(":")[0]
