"""`hiera-video detect score`: frame mAP of action detections, from csv files alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from hiera_video.config import DetectScoreConfig
from hiera_video.data.boxes import (
    LabelMap,
    find_problems,
    nearest_name,
    read_detections,
    read_ground_truth,
    read_keyframes,
    read_label_map,
)
from hiera_video.evaluation.ava import MATCHING_IOU, PROTOCOLS, FrameAP, frame_ap
from hiera_video.training.reporting import setup_logging

COUNTS = {
    "ground_truth_of_other_classes": "ground-truth rows of classes that are not evaluated",
    "ground_truth_excluded": "ground-truth rows at excluded key frames",
    "ground_truth_beyond_keyframes": "ground-truth rows at key frames that are not to be evaluated",
    "detections_of_other_classes": "detections of classes that are not evaluated",
    "detections_excluded": "detections at excluded key frames",
    "detections_beyond_keyframes": "detections at key frames that do not count here",
    "detections_beyond_the_best": "detections beyond the 50 best of their key frame",
    "detections_with_invalid_boxes": "detections whose boxes have no area",
}


def run(config: DetectScoreConfig, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Scores and prints; returns the exit code."""
    assert config.ground_truth is not None  # config.check() saw to it
    assert config.detections is not None
    assert config.label_map is not None
    setup_logging()
    labels = read_label_map(config.label_map)
    truth = read_ground_truth(config.ground_truth, labels, strict=False)
    detections = read_detections(config.detections, labels)
    excluded = [] if config.excluded is None else read_keyframes(config.excluded)
    keyframes = None if config.keyframes is None else read_keyframes(config.keyframes)
    if dry_run:
        print(json.dumps({"ground_truth_rows": len(truth), "detection_rows": len(detections)}))
        return 0
    protocols = list(PROTOCOLS) if config.protocol == "both" else [config.protocol]
    results = [
        frame_ap(
            truth,
            detections,
            classes=list(labels.names),
            protocol=protocol,
            excluded=excluded,
            keyframes=keyframes,
            groups=labels.groups,
        )
        for protocol in protocols
    ]
    unknown = sorted(set(detections.videos) - set(truth.videos))
    oddities = {
        table.source: Counter(problem.kind for problem in find_problems(table, labels))
        for table in (truth, detections)
    }
    report: dict[str, Any] = {
        "ground_truth": {"file": truth.source, "rows": len(truth), **oddities[truth.source]},
        "detections": {
            "file": detections.source,
            "rows": len(detections),
            "videos_without_ground_truth": unknown,
            **oddities[detections.source],
        },
        "excluded_keyframes": len(excluded),
        "protocols": {result.protocol: as_dict(result, labels) for result in results},
    }
    print(json.dumps(report, ensure_ascii=False) if as_json else tell(report, truth.videos))
    return 0


def as_dict(result: FrameAP, labels: LabelMap) -> dict[str, Any]:
    """A result as plain data; what is not defined is null."""
    return {
        "mean_ap": _known(result.mean_ap),
        "iou": MATCHING_IOU,
        "mean_ap_over_orders_of_equal_scores": [_known(value) for value in result.tie_range],
        "groups": {name: _known(value) for name, value in result.groups.items()},
        "classes": [
            {
                "id": class_id,
                "name": labels.names[class_id],
                "ap": _known(ap),
                "ground_truth": num_truth,
                "detections": num_detections,
            }
            for class_id, ap, num_truth, num_detections in zip(
                result.classes.tolist(),
                result.ap.tolist(),
                result.num_ground_truth.tolist(),
                result.num_detections.tolist(),
                strict=True,
            )
        ],
        "without_ground_truth": [labels.names[c] for c in result.without_ground_truth],
        "exclusions_applied": PROTOCOLS[result.protocol].uses_exclusions,
        "counts": result.counts,
    }


def tell(report: dict[str, Any], videos: tuple[str, ...]) -> str:
    """The report for a person."""
    lines = []
    for name in ("ground_truth", "detections"):
        part = report[name]
        lines.append(f"{name.replace('_', ' ')}: {part['rows']} rows of {part['file']}")
        for kind, text in (
            ("box", "rows with a box outside 0..1 or without area"),
            ("action", "rows with an action beyond the label map"),
            ("duplicate", "rows that stand there twice, and count twice"),
        ):
            if part.get(kind):
                lines.append(f"  {part[kind]} {text}")
    unknown = report["detections"]["videos_without_ground_truth"]
    if unknown:
        near = nearest_name(unknown[0], videos)
        lines.append(f"  {len(unknown)} videos without ground truth, such as {unknown[0]!r}{near}")
    results = report["protocols"]
    for protocol, result in results.items():
        low, high = result["mean_ap_over_orders_of_equal_scores"]
        counts = result["counts"]
        lines += ["", f"protocol {protocol}: frame mAP at IoU {result['iou']}"]
        lines.append(f"  mAP {_percent(result['mean_ap'])}")
        if low != high:
            lines.append(
                f"    {_percent(low, 3)} to {_percent(high, 3)}, as equal scores are ranked"
            )
        lines += [f"  {name}: {_percent(value)}" for name, value in result["groups"].items()]
        lines.append(
            f"  key frames: {counts['keyframes_with_ground_truth']} with ground truth, "
            f"{counts['keyframes_with_detections']} with detections, "
            f"{counts['keyframes_beyond']} of these not named by what is evaluated"
        )
        if report["excluded_keyframes"] and not result["exclusions_applied"]:
            lines.append(
                "  the excluded time stamps are not applied: this protocol has no such list"
            )
        lines += [f"  left out: {counts[k]} {text}" for k, text in COUNTS.items() if counts.get(k)]
        wrong = counts["detections_beyond_counted_as_wrong"]
        if wrong:
            lines.append(
                f"  counted as wrong: {wrong} detections at key frames without ground truth"
            )
        if result["without_ground_truth"]:
            names = ", ".join(result["without_ground_truth"])
            lines.append(f"  not in the mean, without ground truth: {names}")
        if counts["detections_evaluated"] == 0:
            lines.append(
                "  no detection was evaluated: compare video names, seconds and action ids"
            )
    lines += ["", "AP of each class: " + ", ".join(results)]
    for rows in zip(*(result["classes"] for result in results.values()), strict=True):
        values = " ".join(f"{_percent(row['ap']):>8s}" for row in rows)
        truth = max(row["ground_truth"] for row in rows)
        lines.append(f"{values}  {rows[0]['id']:3d} {rows[0]['name']} ({truth} boxes)")
    return "\n".join(lines)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
