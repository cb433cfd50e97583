"""Frame mAP of action detection at IoU 0.5, in the two protocols that published figures come from.

Both go through the key frames and, in each, through the detections of a class in turn. A detection
is compared with the one ground-truth box of that class which it overlaps most (the first, where
several are equal): it is right where their IoU is at least 0.5 and no earlier detection took that
box. AP is the area below precision over recall, precision made non-increasing, all points (PASCAL
VOC 2010). The mean runs over the classes that have ground truth. A class with ground truth and
without detections has AP 0.

`PROTOCOLS` says in which four points they differ.

Ties. Detections of one class with equal scores are ranked by `np.argsort(scores)[::-1]`, as both
official programs do, over the key frames in the order in which the detections first name them.
That sort is not stable and its treatment of ties differs between processors (numpy has one for
AVX-512, one for AVX2, one for the rest), so the official figures themselves differ in the third
digit where scores have three decimals. The same call is made here, because only so the figures are
those of the official program on the same machine; `FrameAP.tie_range` is the span of mAP over all
orders of equal scores, the same everywhere. Within a key frame, equal scores stay in the order of
the file (`activitynet` has the order of a heap there, which only matters where two boxes of one
class with the same score compete for one person).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hiera_video.data.boxes.table import BoxTable

MATCHING_IOU = 0.5


@dataclass(frozen=True)
class Protocol:
    """What the two protocols do differently."""

    most_per_keyframe: int | None
    """Detections kept in a key frame, the best of all classes together. None: all."""
    best_first: bool
    """Whether detections of a key frame take their boxes by descending score, or as listed."""
    beyond_ground_truth: bool
    """Whether detections count (as wrong) in key frames that the ground truth does not name."""
    uses_exclusions: bool
    """Whether excluded key frames are left out, of ground truth and detections."""


PROTOCOLS = {
    # The challenge's scorer (activitynet/ActivityNet, get_ava_performance.py).
    "activitynet": Protocol(
        most_per_keyframe=50, best_first=True, beyond_ground_truth=False, uses_exclusions=False
    ),
    # SlowFast's driver of the same AP code, behind most figures in papers.
    "slowfast": Protocol(
        most_per_keyframe=None, best_first=False, beyond_ground_truth=True, uses_exclusions=True
    ),
}


@dataclass(frozen=True)
class FrameAP:
    """AP of each class, and what it was made from."""

    protocol: str
    classes: np.ndarray  # int64 [C], ids, ascending
    ap: np.ndarray  # float64 [C], NaN for a class without ground truth
    num_ground_truth: np.ndarray  # int64 [C], boxes
    num_detections: np.ndarray  # int64 [C], those that counted
    mean_ap: float  # over the classes with ground truth; NaN where there is none
    tie_range: tuple[float, float]  # mean_ap with equal scores ranked worst, and best
    groups: dict[str, float]  # mean of each group; one without ground truth is NaN
    counts: dict[str, int]  # key frames, and rows left out, by reason

    @property
    def without_ground_truth(self) -> list[int]:
        """Ids of the classes that the mean leaves out."""
        return [int(c) for c in self.classes[np.isnan(self.ap)]]


def frame_ap(
    ground_truth: BoxTable,
    detections: BoxTable,
    *,
    classes: Sequence[int],
    protocol: str,
    excluded: Sequence[tuple[str, float]] = (),
    keyframes: Sequence[tuple[str, float]] | None = None,
    groups: Mapping[int, str] | None = None,
) -> FrameAP:
    """Frame mAP at IoU 0.5.

    Args:
        ground_truth: rows with NaN boxes mark key frames that were looked at and are empty.
        detections: rows with NaN boxes are none.
        classes: ids that are evaluated; rows of others are left out and counted.
        protocol: "activitynet" or "slowfast".
        excluded: (video, second) of key frames to leave out; "activitynet" has no such list.
        keyframes: (video, second) of all that should be evaluated. Rows elsewhere are left out and
            counted, and detections at these count in both protocols, ground truth or not. None:
            as the protocol has it.
        groups: name of the group of a class id.

    Raises:
        ValueError: an unknown protocol, no classes, or detections whose scores miss or are NaN.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: known are {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    class_ids = np.unique(np.asarray(classes, dtype=np.int64))
    if not len(class_ids):
        raise ValueError("classes: none given; needed are the ids to evaluate")
    is_detection = ~np.isnan(detections.boxes).any(axis=1)
    if detections.score is None or np.isnan(detections.score[is_detection]).any():
        raise ValueError("detections: every box needs a score that is a number")
    score = detections.score
    codes = _VideoCodes()
    truth_frame = codes.keyframes(ground_truth.videos, ground_truth.video, ground_truth.second)
    frame = codes.keyframes(detections.videos, detections.video, detections.second)
    named = truth_frame if keyframes is None else codes.pairs(keyframes)
    dropped = codes.pairs(excluded if rules.uses_exclusions else ())

    # ---- which rows count
    counts: dict[str, int] = {}
    truth_kept = np.ones(len(truth_frame), dtype=bool)
    kept = is_detection.copy()

    def leave_out(rows: np.ndarray, where: np.ndarray, reason: str) -> None:
        counts[reason] = int((rows & where).sum())
        rows &= ~where

    truth_kept &= ~np.isnan(ground_truth.boxes).any(axis=1)
    truth_class = _positions(class_ids, ground_truth.action)
    class_index = _positions(class_ids, detections.action)
    leave_out(truth_kept, truth_class < 0, "ground_truth_of_other_classes")
    leave_out(truth_kept, np.isin(truth_frame, dropped), "ground_truth_excluded")
    leave_out(kept, class_index < 0, "detections_of_other_classes")
    leave_out(kept, np.isin(frame, dropped), "detections_excluded")
    if keyframes is not None:
        leave_out(truth_kept, ~np.isin(truth_frame, named), "ground_truth_beyond_keyframes")
    in_named = np.isin(frame, named)
    counts["keyframes_with_ground_truth"] = len(np.unique(truth_frame[truth_kept]))
    counts["keyframes_with_detections"] = len(np.unique(frame[kept]))
    beyond = kept & ~in_named
    counts["keyframes_beyond"] = len(np.unique(frame[beyond]))
    if keyframes is not None or not rules.beyond_ground_truth:
        leave_out(kept, ~in_named, "detections_beyond_keyframes")
        counts["detections_beyond_counted_as_wrong"] = 0
    else:
        counts["detections_beyond_keyframes"] = 0
        counts["detections_beyond_counted_as_wrong"] = int(beyond.sum())

    # ---- in which order
    rows = np.flatnonzero(kept)
    rows = rows[_order(frame[rows], score[rows], best_first=rules.best_first)]
    over = np.zeros(len(rows), dtype=bool)
    if rules.most_per_keyframe is not None:
        over = _beyond_the_best(
            frame[rows],
            score[rows],
            np.column_stack([detections.action, detections.boxes[:, [1, 0, 3, 2]]])[rows],
            file_order=rows,
            most=rules.most_per_keyframe,
        )
    counts["detections_beyond_the_best"] = int(over.sum())
    rows = rows[~over]
    boxes = detections.boxes[rows]
    valid = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    counts["detections_with_invalid_boxes"] = int((~valid).sum())
    rows, boxes = rows[valid], boxes[valid]

    # ---- which are right
    num_classes = len(class_ids)
    truth_rows = np.flatnonzero(truth_kept)
    right = _match(
        *_joint_keys(
            truth_frame[truth_rows], truth_class[truth_rows], frame[rows], class_index[rows]
        ),
        ground_truth.boxes[truth_rows],
        boxes,
    )
    counts["detections_evaluated"] = len(rows)
    counts["detections_right"] = int(right.sum())

    # ---- AP
    num_truth = np.bincount(truth_class[truth_rows], minlength=num_classes)
    by_class = np.argsort(class_index[rows], kind="stable")
    sizes = np.bincount(class_index[rows], minlength=num_classes)
    ap = np.full((3, num_classes), np.nan)
    for c, members in enumerate(np.split(by_class, np.cumsum(sizes)[:-1])):
        if num_truth[c]:
            ranked, hits = score[rows[members]], right[members]
            orders = (
                np.argsort(ranked)[::-1],
                np.lexsort((hits, -ranked)),
                np.lexsort((~hits, -ranked)),
            )
            ap[:, c] = [average_precision(hits[order], num_truth[c]) for order in orders]
    mean, worst, best = (_mean(row) for row in ap)
    names = {} if groups is None else groups
    member_of = np.array([names.get(int(c), "") for c in class_ids])
    return FrameAP(
        protocol=protocol,
        classes=class_ids,
        ap=ap[0],
        num_ground_truth=num_truth,
        num_detections=sizes,
        mean_ap=mean,
        tie_range=(worst, best),
        groups={g: _mean(ap[0, member_of == g]) for g in dict.fromkeys(member_of.tolist()) if g},
        counts=counts,
    )


def average_precision(hits: np.ndarray, num_ground_truth: int) -> float:
    """Area below the monotone precision-recall curve of ranked detections, bool [N]."""
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[hits].sum() / num_ground_truth)


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU float64 [N] of boxes [N, 4] with boxes [N, 4]; NaN where both have no area.

    Sums and products in the order of the official scorers, since with three decimals an IoU of
    exactly 0.5 does occur.
    """
    high, low = np.minimum(a[:, 2:], b[:, 2:]), np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(high - low, 0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / union


class _VideoCodes:
    """Key frames as int64: the number of the video in the upper bits, microseconds in the lower."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def _codes(self, videos: Sequence[str]) -> np.ndarray:
        numbers = [self._number.setdefault(name, len(self._number)) for name in videos]
        return np.array(numbers, dtype=np.int64)

    def keyframes(self, videos: Sequence[str], video: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (self._codes(videos)[video] << 40) + np.rint(second * 1e6).astype(np.int64)

    def pairs(self, pairs: Sequence[tuple[str, float]]) -> np.ndarray:
        names = [name for name, _ in pairs]
        seconds = np.array([second for _, second in pairs], dtype=np.float64)
        return self.keyframes(names, np.arange(len(names)), seconds)


def _positions(class_ids: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Position of each action among the ids [C], ascending; -1 where it is not among them."""
    place = np.minimum(np.searchsorted(class_ids, action), len(class_ids) - 1)
    return np.where(class_ids[place] == action, place, -1)


def _order(frame: np.ndarray, score: np.ndarray, *, best_first: bool) -> np.ndarray:
    """Key frame by key frame as first met; within each as listed, or by descending score."""
    _, first, group = np.unique(frame, return_index=True, return_inverse=True)
    met = first[group]
    return np.lexsort((-score, met)) if best_first else np.argsort(met, kind="stable")


def _beyond_the_best(
    frame: np.ndarray, score: np.ndarray, values: np.ndarray, file_order: np.ndarray, most: int
) -> np.ndarray:
    """Bool [N]: rows, grouped by frame and best first, that are not among the `most` of theirs.

    Equal scores at the cut, as in the official scorer: those come into question that are among
    the first `most` rows in the file of at least that score, and of these the ones with the
    greatest `values` (action, y1, x1, y2, x2) stay.
    """
    starts = np.flatnonzero(np.diff(frame, prepend=-1))
    sizes = np.diff(np.append(starts, len(frame)))
    over = np.arange(len(frame)) - np.repeat(starts, sizes) >= most
    for start, size in zip(starts[sizes > most], sizes[sizes > most], strict=True):
        cut = score[start + most - 1]
        if score[start + most] != cut:
            continue
        members = np.arange(start, start + size)
        reaching = members[score[members] >= cut]
        candidates = reaching[np.argsort(file_order[reaching])][:most]
        candidates = candidates[score[candidates] == cut]
        greatest = candidates[np.lexsort(values[candidates].T[::-1])][::-1]
        num_above = int((score[members] > cut).sum())
        over[reaching[num_above:]] = True
        over[greatest[: most - num_above]] = False
    return over


def _joint_keys(
    truth_frame: np.ndarray, truth_class: np.ndarray, frame: np.ndarray, class_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One number for each pair of key frame and class, of ground truth [G] and detections [N]."""
    frames = np.unique(truth_frame)
    num_classes = max(truth_class.max(initial=0), class_index.max(initial=0)) + 1
    truth = np.searchsorted(frames, truth_frame) * num_classes + truth_class
    if not len(frames):
        return truth, np.full(len(frame), -1)
    place = np.minimum(np.searchsorted(frames, frame), len(frames) - 1)
    return truth, np.where(frames[place] == frame, place * num_classes + class_index, -1)


def _match(
    truth_key: np.ndarray, key: np.ndarray, truth_boxes: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """Bool [N]: the detections that are right, taking ground truth of the same key in turn."""
    order = np.argsort(truth_key, kind="stable")
    sorted_key = truth_key[order]
    first = np.searchsorted(sorted_key, key)
    num_rivals = np.searchsorted(sorted_key, key, side="right") - first
    right = np.zeros(len(key), dtype=bool)
    rows = np.flatnonzero(num_rivals)
    if not len(rows):
        return right
    # One pair for each detection and each ground-truth box of its key.
    num_pairs = num_rivals[rows]
    starts = np.cumsum(num_pairs) - num_pairs
    rival = np.arange(num_pairs.sum()) + np.repeat(first[rows] - starts, num_pairs)
    iou = paired_iou(np.repeat(boxes[rows], num_pairs, axis=0), truth_boxes[order[rival]])
    most = np.maximum.reduceat(iou, starts)
    place = np.where(iou == np.repeat(most, num_pairs), np.arange(len(iou)), len(iou))
    chosen = np.minimum.reduceat(place, starts)  # the first of the most overlapping
    reaching = most >= MATCHING_IOU
    rows, taken = rows[reaching], rival[chosen[reaching]]
    _, winners = np.unique(taken, return_index=True)  # the first detection of each
    right[rows[winners]] = True
    return right


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
