"""Results of `frame_ap` as plain data and as text."""

from collections.abc import Mapping
from typing import Any

from hiera_video.errors import counted
from hiera_video.evaluation.ava import MATCHING_IOU, PROTOCOLS, FrameAP
from hiera_video.files import finite_or_none

COUNTS = {
    "ground_truth_of_other_classes": "ground-truth rows of classes that are not evaluated",
    "ground_truth_excluded": "ground-truth rows at excluded key frames",
    "ground_truth_beyond_keyframes": "ground-truth rows at key frames that are not evaluated",
    "detections_of_other_classes": "detections of classes that are not evaluated",
    "detections_excluded": "detections at excluded key frames",
    "detections_beyond_keyframes": "detections at key frames that are not evaluated",
    "detections_beyond_the_best": "detections beyond the 50 best of their key frame",
    "detections_with_invalid_boxes": "detections whose boxes have no area",
}


def as_dict(result: FrameAP, names: Mapping[int, str]) -> dict[str, Any]:
    """A result as JSON data, with None for NaN.

    Args:
        names: names of the class ids.
    """
    columns = (result.classes, result.ap, result.num_ground_truth, result.num_detections)
    return {
        "mean_ap": finite_or_none(result.mean_ap),
        "iou": MATCHING_IOU,
        "mean_ap_over_orders_of_equal_scores": [finite_or_none(ap) for ap in result.tie_range],
        "groups": {name: finite_or_none(ap) for name, ap in result.groups.items()},
        "classes": [
            {
                "id": class_id,
                "name": names[class_id],
                "ap": finite_or_none(ap),
                "ground_truth": num_truth,
                "detections": num_detections,
            }
            for class_id, ap, num_truth, num_detections in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ],
        "without_ground_truth": [names[c] for c in result.without_ground_truth],
        "counts": result.counts,
    }


def format_results(results: Mapping[str, Any], *, num_excluded: int) -> list[str]:
    """Lines of text that describe the results of `as_dict` by protocol.

    Args:
        num_excluded: number of excluded key frames, which only one protocol uses.
    """
    lines = []
    for protocol, result in results.items():
        low, high = result["mean_ap_over_orders_of_equal_scores"]
        counts = result["counts"]
        lines += ["", f"protocol {protocol}: frame mAP at IoU {result['iou']}"]
        lines.append(f"  mAP {format_percent(result['mean_ap'])}")
        if low != high:
            extremes = f"{format_percent(low, 3)} to {format_percent(high, 3)}"
            lines.append(f"    {extremes}, depending on the order of equal scores")
        lines += [f"  {name}: {format_percent(value)}" for name, value in result["groups"].items()]
        lines.append(
            f"  key frames: {counts['keyframes_with_ground_truth']} with ground truth, "
            f"{counts['keyframes_with_detections']} with detections, "
            f"{counts['keyframes_beyond']} of these not among the evaluated ones"
        )
        if num_excluded and not PROTOCOLS[protocol].uses_exclusions:
            lines.append("  excluded time stamps are not used by this protocol")
        lines += [f"  left out: {counts[k]} {text}" for k, text in COUNTS.items() if counts.get(k)]
        wrong = counts["detections_beyond_counted_as_wrong"]
        if wrong:
            lines.append(
                f"  counted as wrong: {counted(wrong, 'detection')} at key frames without ground "
                "truth"
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
        values = " ".join(f"{format_percent(row['ap']):>8s}" for row in rows)
        truth = max(row["ground_truth"] for row in rows)
        lines.append(f"{values}  {rows[0]['id']:3d} {rows[0]['name']} ({counted(truth, 'box')})")
    return lines


def format_percent(value: float | None, digits: int = 2) -> str:
    """A fraction in percent, or a dash for None."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"
