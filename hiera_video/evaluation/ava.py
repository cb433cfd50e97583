"""Frame mAP of action detection at IoU 0.5, in the two protocols of published figures.

docs/evaluation.md, section 7, defines the figures; `PROTOCOLS` lists the differences.

Ties. Detections of one class with equal scores are ranked by `np.argsort(scores)[::-1]`, as in both
official programs, over the key frames in the order in which the detections first name them. That
sort is not stable and orders ties differently on different processors (numpy has one for AVX-512,
one for AVX2, one for the rest). The same call is used here, because this is the only way to obtain
the figures of the official program on the same machine. Within a key frame, equal scores are in the
order of the file for `slowfast`, and in that of a heap for `activitynet`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hiera_video.data.boxes.table import BoxTable, LabelMap

MATCHING_IOU = 0.5


@dataclass(frozen=True)
class Protocol:
    """The differences between the two protocols."""

    most_per_keyframe: int | None  # detections that count, the best of all classes; None: all
    best_first: bool  # boxes are matched by descending score, not in the order of the file
    beyond_ground_truth: bool  # detections in key frames that it does not name count as wrong
    uses_exclusions: bool  # excluded key frames are left out of ground truth and detections


PROTOCOLS = {
    # The scorer of the challenge (activitynet/ActivityNet, get_ava_performance.py).
    "activitynet": Protocol(
        most_per_keyframe=50, best_first=True, beyond_ground_truth=False, uses_exclusions=False
    ),
    # SlowFast's use of the same AP code, behind most figures in papers.
    "slowfast": Protocol(
        most_per_keyframe=None, best_first=False, beyond_ground_truth=True, uses_exclusions=True
    ),
}


@dataclass(frozen=True)
class FrameAP:
    """AP of each class, and the numbers of rows behind it."""

    classes: np.ndarray  # int64 [C], ids, ascending
    ap: np.ndarray  # float64 [C], NaN for a class without ground truth
    num_ground_truth: np.ndarray  # int64 [C], boxes
    num_detections: np.ndarray  # int64 [C], evaluated detections
    mean_ap: float  # over the classes with ground truth; NaN if there are none
    tie_range: tuple[float, float]  # mean_ap with equal scores in the worst and the best order
    groups: dict[str, float]  # mean AP of each group; NaN without ground truth
    counts: dict[str, int]  # numbers of key frames, and of rows that are left out, by reason
    ranked: list[np.ndarray]  # bool [num_detections] of each class: which are right, best first

    @property
    def without_ground_truth(self) -> list[int]:
        """Ids of the classes that are not in the mean."""
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
        ground_truth: boxes with actions; rows without box mark annotated, empty key frames.
        detections: boxes with actions and scores; rows without box are ignored.
        classes: ids to evaluate; rows of other classes are left out and counted.
        protocol: "activitynet" or "slowfast".
        excluded: (video, second) of key frames to leave out; not used by "activitynet".
        keyframes: (video, second) of all key frames to evaluate. Rows elsewhere are left out and
            counted, and detections in these key frames count in both protocols, with or without
            ground truth. None: according to the protocol.
        groups: name of the group of a class id.

    Raises:
        ValueError: an unknown protocol, no classes, or detections without finite scores.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: known are {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    class_ids = np.unique(np.asarray(classes, dtype=np.int64))
    if not len(class_ids):
        raise ValueError("classes: none given; expected the ids to evaluate")
    score = detections.score
    if score is None or not np.isfinite(score[detections.is_box]).all():
        raise ValueError("detections: every box needs a score that is a number, and finite")
    truth_frame, found_frame, excluded_frames, listed_frames = _keyframe_numbers(
        (ground_truth.videos, ground_truth.video, ground_truth.second),
        (detections.videos, detections.video, detections.second),
        _columns(excluded if rules.uses_exclusions else ()),
        _columns(keyframes or ()),
    )
    named_frames = truth_frame if keyframes is None else listed_frames
    truth = _Rows.of(ground_truth, truth_frame, class_ids)
    found = _Rows.of(detections, found_frame, class_ids)
    counts = {
        "ground_truth_of_other_classes": truth.leave_out(truth.class_index < 0),
        "ground_truth_excluded": truth.leave_out(np.isin(truth_frame, excluded_frames)),
        "ground_truth_beyond_keyframes": truth.leave_out(~np.isin(truth_frame, named_frames)),
        "detections_of_other_classes": found.leave_out(found.class_index < 0),
        "detections_excluded": found.leave_out(np.isin(found_frame, excluded_frames)),
    }
    beyond = found.kept & ~np.isin(found_frame, named_frames)
    counts |= {
        "keyframes_with_ground_truth": len(np.unique(truth_frame[truth.kept])),
        "keyframes_with_detections": len(np.unique(found_frame[found.kept])),
        "keyframes_beyond": len(np.unique(found_frame[beyond])),
    }
    is_wrong_beyond = keyframes is None and rules.beyond_ground_truth
    counts["detections_beyond_counted_as_wrong"] = int(beyond.sum()) if is_wrong_beyond else 0
    counts["detections_beyond_keyframes"] = 0 if is_wrong_beyond else found.leave_out(beyond)

    # Detections in the order in which they match boxes, and boxes in that in which equally
    # overlapping ones are taken.
    rows, truth_rows = np.flatnonzero(found.kept), np.flatnonzero(truth.kept)
    num_found = len(rows)
    if rules.best_first:
        persons = ground_truth.person.astype(np.float64)  # the official reader's score of a box
        truth_rows = _best_first(truth_rows, truth_frame, persons, ground_truth, None)
        rows = _best_first(rows, found_frame, score, detections, rules.most_per_keyframe)
    else:
        rows = _by_keyframe(rows, found_frame, np.zeros_like(score))
    counts["detections_beyond_the_best"] = num_found - len(rows)
    has_area = (detections.boxes[rows, :2] < detections.boxes[rows, 2:]).all(axis=1)
    counts["detections_with_invalid_boxes"] = int((~has_area).sum())
    rows = rows[has_area]

    truth_key, key = (r.frame * len(class_ids) + r.class_index for r in (truth, found))
    right = _match(
        truth_key[truth_rows], key[rows], ground_truth.boxes[truth_rows], detections.boxes[rows]
    )
    counts["detections_evaluated"] = len(rows)
    counts["detections_right"] = int(right.sum())
    num_truth = np.bincount(truth.class_index[truth_rows], minlength=len(class_ids))
    num_detections = np.bincount(found.class_index[rows], minlength=len(class_ids))
    by_class = np.argsort(found.class_index[rows], kind="stable")
    members = np.split(by_class, np.cumsum(num_detections)[:-1])
    parts = [(score[rows[m]], right[m]) for m in members]
    ap = _ap_by_class(parts, num_truth)
    mean, worst, best = (mean_of_known(row) for row in ap)
    group_of = np.array([(groups or {}).get(int(c), "") for c in class_ids])
    return FrameAP(
        classes=class_ids,
        ap=ap[0],
        num_ground_truth=num_truth,
        num_detections=num_detections,
        mean_ap=mean,
        tie_range=(worst, best),
        groups={
            g: mean_of_known(ap[0, group_of == g]) for g in dict.fromkeys(group_of.tolist()) if g
        },
        counts=counts,
        ranked=[hits[np.argsort(scores)[::-1]] for scores, hits in parts],
    )


def frame_aps(
    ground_truth: BoxTable,
    detections: BoxTable,
    labels: LabelMap,
    *,
    protocols: Iterable[str] = PROTOCOLS,
    excluded: Sequence[tuple[str, float]] = (),
    keyframes: Sequence[tuple[str, float]] | None = None,
) -> dict[str, FrameAP]:
    """`frame_ap` of the actions of a label map, by protocol."""
    return {
        protocol: frame_ap(
            ground_truth,
            detections,
            classes=list(labels.names),
            protocol=protocol,
            excluded=excluded,
            keyframes=keyframes,
            groups=labels.groups,
        )
        for protocol in protocols
    }


@dataclass
class _Rows:
    """The rows of a table that are evaluated."""

    frame: np.ndarray  # int64 [R], number of the key frame
    class_index: np.ndarray  # int64 [R], position among the evaluated classes; -1: none
    kept: np.ndarray  # bool [R]

    @classmethod
    def of(cls, table: BoxTable, frame: np.ndarray, class_ids: np.ndarray) -> _Rows:
        """All boxes of a table."""
        place = np.minimum(np.searchsorted(class_ids, table.action), len(class_ids) - 1)
        return cls(frame, np.where(class_ids[place] == table.action, place, -1), table.is_box)

    def leave_out(self, rows: np.ndarray) -> int:
        """Removes rows, bool [R], and returns the number of those that were still kept."""
        removed = int((self.kept & rows).sum())
        self.kept &= ~rows
        return removed


def _ap_by_class(
    classes: Sequence[tuple[np.ndarray, np.ndarray]], num_truth: np.ndarray
) -> np.ndarray:
    """AP float64 [3, C]: with ties as in the official programs, in the worst, and the best order.

    NaN for classes without ground truth.

    Args:
        classes: of the detections of each class, scores [n] and whether they are right [n].
        num_truth: [C].
    """
    ap = np.full((3, len(num_truth)), np.nan)
    for c, (scores, hits) in enumerate(classes):
        if num_truth[c]:
            orders = (
                np.argsort(scores)[::-1],
                np.lexsort((hits, -scores)),
                np.lexsort((~hits, -scores)),
            )
            ap[:, c] = [interpolated_average_precision(hits[o], num_truth[c]) for o in orders]
    return ap


def precision_recall(hits: np.ndarray, num_ground_truth: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, float64 [N] each, after each of the ranked detections, bool [N]."""
    found = hits.cumsum()
    return found / np.arange(1, len(hits) + 1), found / num_ground_truth


def interpolated_average_precision(hits: np.ndarray, num_ground_truth: int) -> float:
    """Area below the monotone precision-recall curve of ranked detections, bool [N]; all points."""
    precision, _ = precision_recall(hits, num_ground_truth)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[hits].sum() / num_ground_truth)


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [N] of boxes [N, 4] with boxes [N, 4]; NaN where both have no area.

    Sums and products are in the order of the official scorers, because an IoU of exactly 0.5 occurs
    in coordinates of three decimals.
    """
    high, low = np.minimum(a[:, 2:], b[:, 2:]), np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(high - low, 0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / union


def _columns(
    pairs: Sequence[tuple[str, float]],
) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Key frames as names of videos [N], positions in them [N], and seconds [N]."""
    seconds = np.array([second for _, second in pairs], dtype=np.float64)
    return [name for name, _ in pairs], np.arange(len(pairs)), seconds


def _keyframe_numbers(*lists: tuple[Sequence[str], np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Numbers the key frames of all lists together; int64 [N] for each list as in `_columns`.

    Seconds are distinguished to the microsecond.
    """
    number: dict[str, int] = {}
    codes = []  # the number of the video above 40 bits of microseconds
    for names, video, second in lists:
        numbers = [number.setdefault(name, len(number)) for name in names]
        high = np.array(numbers, dtype=np.int64)[video] << 40
        codes.append(high + np.rint(second * 1e6).astype(np.int64))
    _, joint = np.unique(np.concatenate(codes), return_inverse=True)
    return np.split(joint, np.cumsum([len(code) for code in codes])[:-1])


def _by_keyframe(rows: np.ndarray, frame: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rows [N] by the first row of their key frame and by descending score; else as they are."""
    _, first, group = np.unique(frame[rows], return_index=True, return_inverse=True)
    return rows[np.lexsort((-score[rows], first[group]))]


def _best_first(
    rows: np.ndarray, frame: np.ndarray, score: np.ndarray, table: BoxTable, most: int | None
) -> np.ndarray:
    """The `most` best of `rows` at each key frame, in the order of the `activitynet` scorer.

    The scorer collects the rows of a key frame in a heap of (score, action, y1, x1, y2, x2). Once
    it is full, a row with a higher score than the least one replaces that. What is left is sorted
    by score, and equal scores stay in the order of the heap.
    """
    rows = _by_keyframe(rows, frame, score)
    is_next = frame[rows][1:] != frame[rows][:-1]
    is_tied = ~is_next & (score[rows][1:] == score[rows][:-1])
    parts = np.split(rows, np.flatnonzero(is_next) + 1)
    tied_frames = set(frame[rows][1:][is_tied].tolist())
    kept = []
    for part in parts:
        if not len(part) or int(frame[part[0]]) not in tied_frames:
            kept.append(part[:most])
            continue
        part = np.sort(part)  # as in the file
        columns = score[part], table.action[part], *table.boxes[part][:, [1, 0, 3, 2]].T
        entries = list(zip(*(column.tolist() for column in columns), strict=True))
        heap: list[tuple[float, ...]] = []
        for entry in entries:
            if most is None or len(heap) < most:
                heapq.heappush(heap, entry)
            elif entry[0] > heap[0][0]:
                heapq.heapreplace(heap, entry)
        row_of = dict(zip(entries, part.tolist(), strict=True))  # of equal rows, any
        kept.append(np.array([row_of[e] for e in sorted(heap, key=lambda e: -e[0])]))
    return np.concatenate(kept)


def _match(
    truth_key: np.ndarray, key: np.ndarray, truth_boxes: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """Bool [N]: detections that match ground truth of the same key, each of which matches once."""
    order = np.argsort(truth_key, kind="stable")
    sorted_key = truth_key[order]
    first = np.searchsorted(sorted_key, key)
    num_rivals = np.searchsorted(sorted_key, key, side="right") - first
    right = np.zeros(len(key), dtype=bool)
    rows = np.flatnonzero(num_rivals)
    if not len(rows):
        return right
    # Pairs of a detection and a ground-truth box of its key.
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


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
