"""`hiera-video data check-ava`: finds mistakes in annotations and videos before a run."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.boxes.files import inspect_boxes, read_keyframes
from hiera_video.data.boxes.keyframes import keyframe_records, num_boxes, num_reached
from hiera_video.data.boxes.table import BoxTable, read_label_map
from hiera_video.data.videos.folders import locate_videos
from hiera_video.errors import ConfigError, counted, did_you_mean, listing
from hiera_video.evaluation.ava_report import format_percent
from hiera_video.runtime.progress import Progress
from hiera_video.runtime.results import print_result
from hiera_video.settings.evaluation import CheckAvaSettings
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError

MAX_PRINTED = 20  # problems of each file; --json lists all
FPS_TOLERANCE = 0.001  # distinguishes 29.97 from 30


def run(config: CheckAvaSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Checks the files and prints a report; returns 3 if there are problems."""
    labels = None if config.label_map is None else read_label_map(config.label_map)
    excluded = [] if config.excluded is None else read_keyframes(config.excluded)
    if dry_run:
        return 0
    truth = inspect_boxes("ground truth", config.ground_truth, labels)
    problems = problems_of(truth)
    if not len(truth):
        problems.append(f"{truth.source}: no rows that can be read; expected boxes with actions")
    report: dict[str, Any] = {
        "ground_truth": {"file": truth.source, **describe(truth)},
        "excluded_keyframes": len(excluded),
    }
    if config.proposals is not None:
        proposals = inspect_boxes("proposals", config.proposals, None)
        problems += problems_of(proposals) + problems_of_videos(proposals, truth)
        paths = dict.fromkeys((*truth.videos, *proposals.videos), "")
        boxes = keyframe_records(truth, paths, excluded=excluded)
        total = num_boxes(boxes)
        reached, used = (
            num_reached(boxes, keyframe_records(proposals, paths, min_score=score), min_iou=0.5)
            for score in (None, config.proposal_score)
        )
        report["proposals"] = {
            "file": proposals.source,
            **describe(proposals),
            "ground_truth_boxes": total,
            "reached_at_iou_0.5": reached,
            "share": reached / total if total else None,
            "proposal_score": config.proposal_score,
            "reached_with_proposal_score": used,
            "share_with_proposal_score": used / total if total else None,
        }
    if config.videos is not None:
        found, missing = locate_videos(truth.videos, config.videos)
        problems += [f"{config.videos}: video {name!r} is missing" for name in missing]
        for number, name in enumerate(Progress(truth.videos, unit="video")):
            if name in found:
                problems += check_video(found[name], truth.second[truth.video == number], config)
        report["videos"] = {"expected": len(truth.videos), "found": len(found)}
    report["problems"] = problems
    print_result(report, format_report(report), as_json=as_json)
    return 3 if problems else 0


def problems_of(table: BoxTable) -> list[str]:
    """The problems of a file, as `FILE:LINE: TEXT`."""
    return [f"{table.source}:{problem.line}: {problem.text}" for problem in table.problems]


def problems_of_videos(proposals: BoxTable, truth: BoxTable) -> list[str]:
    """A message if proposals name videos without ground truth."""
    unknown = sorted(set(proposals.videos) - set(truth.videos))
    if not unknown:
        return []
    return [
        f"{proposals.source}: {len(unknown)} of {len(proposals.videos)} videos are not in the "
        f"ground truth: {listing(unknown)}{did_you_mean(unknown[0], truth.videos)}"
    ]


def describe(table: BoxTable) -> dict[str, Any]:
    """Numbers of rows, videos and key frames of a table, and the range of its time stamps."""
    stamps = np.unique(np.column_stack([table.video, table.second]), axis=0)
    return {
        "rows": len(table),
        "videos": len(table.videos),
        "keyframes": len(stamps),
        "empty_keyframes": int((~table.is_box).sum()),
        "seconds": [float(table.second.min()), float(table.second.max())] if len(table) else None,
    }


def check_video(path: Path, seconds: np.ndarray, config: CheckAvaSettings) -> list[str]:
    """Problems of one video with key frames at `seconds` [n] of the annotations.

    Raises:
        ConfigError: the video is a folder of frames, and nothing states its rate.
    """
    frames_fps = config.data.frames_fps or config.expected_fps
    if path.is_dir() and frames_fps is None:
        raise ConfigError(
            f"data.frames_fps is null: set it to the frames per second of the folder {path}"
        )
    decoding = config.data.model_copy(update={"frames_fps": frames_fps})
    try:
        with opener(decoding)(str(path)) as reader:
            num_frames, fps = len(reader), reader.fps
            length = reader.end_sec - float(reader.frame_times_sec[0])
    except VideoError as error:
        return [str(error)]
    found = []
    first, last = config.start_sec, config.start_sec + length
    beyond = np.unique(seconds[(seconds < first) | (seconds >= last)])
    if len(beyond):
        found.append(
            f"{path}: {counted(len(beyond), 'key frame')} outside, for example at {beyond[0]:g} s; "
            f"the video covers {first:g} to {last:.2f} s (start_sec is the second at which files "
            "begin)"
        )
    if config.expected_fps is not None and abs(fps / config.expected_fps - 1) > FPS_TOLERANCE:
        found.append(f"{path}: {fps:.3f} frames per second instead of {config.expected_fps:g}")
    if config.expected_duration_sec is not None:
        expected = config.expected_duration_sec * (config.expected_fps or fps)
        if abs(num_frames - expected) >= (config.expected_fps or fps):  # one second
            found.append(f"{path}: {counted(num_frames, 'frame')} instead of {expected:.0f}")
    return found


def format_report(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    lines = []
    for name in ("ground_truth", "proposals"):
        if name in report:
            part = report[name]
            seconds = part["seconds"]
            span = "" if seconds is None else f" from {seconds[0]:g} to {seconds[1]:g} s"
            lines.append(
                f"{name.replace('_', ' ')}: {counted(part['rows'], 'row')}, "
                f"{counted(part['videos'], 'video')}, "
                f"{counted(part['keyframes'], 'key frame')}{span} ({part['file']})"
            )
    if "proposals" in report:
        part = report["proposals"]
        all_frac, used_frac = map(
            format_percent, (part["share"], part["share_with_proposal_score"])
        )
        lines += [
            f"proposals reach {part['reached_at_iou_0.5']} of {part['ground_truth_boxes']} "
            f"ground-truth boxes at IoU 0.5: {all_frac}",
            f"  those with a score of {part['proposal_score']:g} or more reach "
            f"{part['reached_with_proposal_score']}: {used_frac}, an upper bound of the recall in "
            "evaluation, and so of the mAP",
        ]
    if "videos" in report:
        lines.append("videos: {found} of {expected} found".format(**report["videos"]))
    problems = report["problems"]
    for source, group in groupby(problems, lambda problem: problem.partition(":")[0]):
        texts = list(group)
        lines += texts[:MAX_PRINTED]
        if len(texts) > MAX_PRINTED:
            lines.append(f"{source}: and {len(texts) - MAX_PRINTED} more; --json lists all")
    lines.append(counted(len(problems), "problem") if problems else "no problems found")
    return lines
