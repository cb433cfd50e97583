"""`hiera-video detect score`: computes frame mAP of action detections from csv files."""

import math
from collections import Counter
from typing import Any

from hiera_video.data.boxes.files import read_boxes, read_keyframes
from hiera_video.data.boxes.table import BoxTable, read_label_map
from hiera_video.errors import UserError, counted, did_you_mean
from hiera_video.evaluation import ava_report
from hiera_video.evaluation.ava import PROTOCOLS, frame_aps
from hiera_video.runtime.results import print_json, print_result
from hiera_video.settings.evaluation import DetectScoreSettings


def run(config: DetectScoreSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Computes and prints frame mAP; a UserError if it is not defined."""
    labels = read_label_map(config.label_map)
    truth = read_boxes("ground truth", config.ground_truth, labels, strict=False)
    detections = read_boxes("detections", config.detections, labels)
    excluded = [] if config.excluded is None else read_keyframes(config.excluded)
    keyframes = None if config.keyframes is None else read_keyframes(config.keyframes)
    if dry_run:
        print_json({"ground_truth_rows": len(truth), "detection_rows": len(detections)})
        return 0
    protocols = PROTOCOLS if config.protocol == "both" else [config.protocol]
    scored = frame_aps(
        truth, detections, labels, protocols=protocols, excluded=excluded, keyframes=keyframes
    )
    unknown = sorted(set(detections.videos) - set(truth.videos))
    report: dict[str, Any] = {
        "ground_truth": describe(truth),
        "detections": {"videos_without_ground_truth": unknown, **describe(detections)},
        "excluded_keyframes": len(excluded),
        "protocols": {k: ava_report.as_dict(ap, labels.names) for k, ap in scored.items()},
    }
    print_result(report, format_report(report, truth), as_json=as_json)
    if all(math.isnan(result.mean_ap) for result in scored.values()):
        raise UserError(
            f"{truth.source}: no box of an evaluated class at a key frame that counts, so there is "
            "no mAP"
        )
    return 0


def describe(table: BoxTable) -> dict[str, Any]:
    """File and number of rows, and numbers of problems by kind."""
    kinds = Counter[str](problem.kind for problem in table.problems)
    return {"file": table.source, "rows": len(table), **kinds}


def format_report(report: dict[str, Any], truth: BoxTable) -> list[str]:
    """The report as text."""
    lines = []
    for name in ("ground_truth", "detections"):
        part = report[name]
        lines.append(f"{name.replace('_', ' ')}: {counted(part['rows'], 'row')} of {part['file']}")
        for kind, text in (
            ("box", "with a box outside 0..1 or without area"),
            ("duplicate", "repeating an earlier row; all rows count"),
        ):
            if part.get(kind):
                lines.append(f"  {counted(part[kind], 'row')} {text}")
    unknown = report["detections"]["videos_without_ground_truth"]
    if unknown:
        hint = did_you_mean(unknown[0], truth.videos)
        videos = counted(len(unknown), "video")
        lines.append(f"  {videos} without ground truth, such as {unknown[0]!r}{hint}")
    lines += ava_report.format_results(
        report["protocols"], num_excluded=report["excluded_keyframes"]
    )
    return lines
