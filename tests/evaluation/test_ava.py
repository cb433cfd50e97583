"""Frame mAP against the official programs' numbers, and against a scorer that is only loops."""

import heapq
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.data.boxes.files import read_boxes, read_keyframes
from hiera_video.data.boxes.table import BoxTable, read_label_map
from hiera_video.evaluation.ava import (
    PROTOCOLS,
    frame_ap,
    interpolated_average_precision,
    paired_iou,
    precision_recall,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "ava"


def table(rows, scored=False):
    """Rows (video, second, box or None, action, person), or with a score at the end if scored."""
    names = tuple(dict.fromkeys(row[0] for row in rows))
    return BoxTable(
        source="rows",
        videos=names,
        video=np.array([names.index(row[0]) for row in rows], dtype=np.int32),
        second=np.array([row[1] for row in rows], dtype=np.float64),
        boxes=np.array([row[2] or [np.nan] * 4 for row in rows], dtype=np.float64).reshape(-1, 4),
        action=np.array([row[3] for row in rows], dtype=np.int32),
        person=np.array([-1 if scored or len(row) < 5 else row[4] for row in rows], dtype=np.int32),
        score=np.array([row[4] for row in rows], dtype=np.float64) if scored else None,
        lines=np.arange(1, len(rows) + 1),
    )


# ---- the official programs


@pytest.fixture(scope="module")
def golden():
    labels = read_label_map(GOLDEN / "ava_action_list.pbtxt")
    truth = read_boxes("ground truth", GOLDEN / "gt.csv", labels, strict=False)
    detections = read_boxes("detections", GOLDEN / "detections.csv", labels)
    return labels, truth, detections, read_keyframes(GOLDEN / "excluded.csv")


def sorts_like_the_reference():
    """Whether numpy ranks equal scores as on the machine of the golden numbers (AVX-512)."""
    found = np._core._multiarray_umath.__cpu_features__
    return any(found.get(name) for name in ("X86_V4", "AVX512_SKX"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_the_official_programs(golden, protocol):
    labels, truth, detections, excluded = golden
    expected = json.loads((GOLDEN / f"{protocol}.json").read_text())
    result = frame_ap(
        truth, detections, classes=list(labels.names), protocol=protocol, excluded=excluded
    )
    mean = expected.pop("PascalBoxes_Precision/mAP@0.5IOU")
    low, high = result.tie_range
    assert low - 1e-9 <= mean <= high + 1e-9
    assert low <= result.mean_ap <= high
    if not sorts_like_the_reference():
        pytest.skip("numpy ranks equal scores differently on this processor")
    assert result.mean_ap == pytest.approx(mean, abs=1e-9)
    ours = dict(zip((labels.names[c] for c in result.classes.tolist()), result.ap, strict=True))
    assert len(expected) == len(ours) == 60
    for key, value in expected.items():
        assert ours[key.split("/", 2)[2]] == pytest.approx(value, abs=1e-9), key


# ---- a scorer that is only loops


def loops(truth, detections, classes, protocol, excluded=(), keyframes=None):
    """AP by class as the two programs' texts have it, one detection after the other."""
    excluded = set(excluded) if protocol == "slowfast" else set()
    named = {row[:2] for row in truth} if keyframes is None else set(keyframes)
    truth = [r for r in truth if r[2] and r[3] in classes and r[:2] not in excluded]
    detections = [r for r in detections if r[3] in classes and r[:2] not in excluded]
    if keyframes is not None:
        truth = [r for r in truth if r[:2] in named]
    if keyframes is not None or protocol == "activitynet":
        detections = [r for r in detections if r[:2] in named]
    if protocol == "activitynet":
        truth = heaped([r if len(r) > 4 else (*r, 1.0) for r in truth])
        detections = heaped(detections, capacity=50)
    frames = defaultdict(list)
    for row in detections:
        frames[row[:2]].append(row)
    ranked = defaultdict(list)
    for frame, rows in frames.items():
        taken = set()
        for _, _, box, action, score in rows:
            if box[0] >= box[2] or box[1] >= box[3]:
                continue
            rivals = [i for i, r in enumerate(truth) if r[:2] == frame and r[3] == action]
            best = max(rivals, key=lambda i: iou_of(box, truth[i][2]), default=None)
            hit = best is not None and iou_of(box, truth[best][2]) >= 0.5 and best not in taken
            if hit:
                taken.add(best)
            ranked[action].append((score, hit))
    result = {}
    for action in classes:
        total = sum(row[3] == action for row in truth)
        scores = np.array([score for score, _ in ranked[action]], dtype=float)
        hits = [ranked[action][i][1] for i in np.argsort(scores)[::-1]]
        precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
        area = sum(max(precision[i:]) for i, hit in enumerate(hits) if hit)
        result[action] = area / total if total else float("nan")
    return result


def heaped(rows, capacity=None):
    """Rows with a score at the end, frame by frame as the official reader returns them.

    It holds those of a frame in a heap of (score, action, y1, x1, y2, x2).
    """
    heaps = defaultdict(list)
    for *frame, (x1, y1, x2, y2), action, score in rows:
        heap, entry = heaps[tuple(frame)], (score, action, y1, x1, y2, x2)
        if capacity is None or len(heap) < capacity:
            heapq.heappush(heap, entry)
        elif score > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [
        (*frame, (x1, y1, x2, y2), action, score)
        for frame, heap in heaps.items()
        for score, action, y1, x1, y2, x2 in sorted(heap, key=lambda entry: -entry[0])
    ]


def iou_of(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


FRAMES = st.tuples(st.sampled_from("ab"), st.sampled_from([902.0, 903.0, 903.5]))
CORNERS = st.sampled_from([(0.0, 0.4), (0.0, 0.5), (0.1, 0.5), (0.3, 0.9), (0.5, 1.0)])
BOXES = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), CORNERS, CORNERS)
ANY_BOXES = st.one_of(BOXES, BOXES.map(lambda b: (b[2], b[1], b[0], b[3])))
CLASSES = st.sampled_from([1, 3, 4, 80])
SCORES = st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])
TRUTHS = st.lists(
    st.one_of(
        st.builds(lambda f, b, c: (*f, b, c), FRAMES, BOXES, CLASSES),
        st.builds(lambda f, b, c, p: (*f, b, c, p), FRAMES, BOXES, CLASSES, st.integers(0, 3)),
        FRAMES.map(lambda f: (*f, None, 0)),
    ),
    max_size=12,
)
DETECTIONS = st.lists(
    st.builds(lambda f, b, c, s: (*f, b, c, s), FRAMES, ANY_BOXES, CLASSES, SCORES), max_size=25
)


@settings(max_examples=200, deadline=None)
@given(
    TRUTHS,
    DETECTIONS,
    st.sampled_from(list(PROTOCOLS)),
    st.lists(FRAMES, max_size=2),
    st.one_of(st.none(), st.lists(FRAMES, max_size=4)),
)
def test_equals_loops(truth, detections, protocol, excluded, keyframes):
    classes = [1, 3, 80]
    expected = loops(truth, detections, classes, protocol, excluded, keyframes)
    result = frame_ap(
        table(truth),
        table(detections, scored=True),
        classes=classes,
        protocol=protocol,
        excluded=excluded,
        keyframes=keyframes,
    )
    np.testing.assert_allclose(result.ap, [expected[c] for c in classes], atol=1e-12)
    low, high = result.tie_range
    if not math.isnan(result.mean_ap):
        assert low - 1e-12 <= result.mean_ap <= high + 1e-12
    counted = sum(v for k, v in result.counts.items() if k.startswith("detections_"))
    counted -= result.counts["detections_right"]
    counted -= result.counts["detections_beyond_counted_as_wrong"]
    assert counted == len(detections)  # every row is accounted for once


def test_many_equal_scores_equal_loops():
    """Few people, classes and scores: most key frames have ties, and more than 50 detections."""
    rng = np.random.default_rng(0)
    corners = [(0.0, 0.4), (0.0, 0.5), (0.1, 0.5), (0.3, 0.9)]

    def rows(count, last):
        drawn = rng.integers([2, 3, 4, 4], size=(count, 4)).tolist()
        boxes = [(corners[i][0], corners[j][0], corners[i][1], corners[j][1]) for *_, i, j in drawn]
        return [
            ("ab"[v], 902.0, box, (1, 3, 80)[c], last[int(rng.integers(len(last)))])
            for (v, c, *_), box in zip(drawn, boxes, strict=True)
        ]

    for _ in range(20):
        truth, detections = rows(10, range(3)), rows(150, [0.1, 0.5, 0.9])
        expected = loops(truth, detections, [1, 3, 80], "activitynet")
        result = frame_ap(
            table(truth), table(detections, scored=True), classes=[1, 3, 80], protocol="activitynet"
        )
        np.testing.assert_allclose(result.ap, list(expected.values()), atol=1e-12)


# ---- each rule by itself

BOX, FAR = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)


def test_the_protocols_differ_at_key_frames_beyond_the_ground_truth():
    truth = table([("a", 902, BOX, 1)])
    detections = table([("a", 903, BOX, 1, 0.9), ("a", 902, BOX, 1, 0.8)], scored=True)
    results = {p: frame_ap(truth, detections, classes=[1], protocol=p) for p in PROTOCOLS}
    assert results["activitynet"].mean_ap == 1.0
    assert results["activitynet"].counts["detections_beyond_keyframes"] == 1
    assert results["slowfast"].mean_ap == 0.5
    assert results["slowfast"].counts["detections_beyond_counted_as_wrong"] == 1


def test_an_empty_key_frame_row_makes_detections_there_wrong():
    truth = table([("a", 902, BOX, 1), ("a", 903, None, 0)])
    detections = table([("a", 903, BOX, 1, 0.9), ("a", 902, BOX, 1, 0.8)], scored=True)
    assert frame_ap(truth, detections, classes=[1], protocol="activitynet").mean_ap == 0.5


def test_exclusions_are_slowfasts_alone():
    truth = table([("a", 902, BOX, 1), ("a", 903, BOX, 1)])
    detections = table([("a", 902, BOX, 1, 0.9)], scored=True)
    for protocol, expected in (("activitynet", 0.5), ("slowfast", 1.0)):
        result = frame_ap(
            truth, detections, classes=[1], protocol=protocol, excluded=[("a", 903.0)]
        )
        assert result.mean_ap == expected


def test_the_fifty_best_of_a_key_frame_and_ties_at_the_cut():
    """Of equal scores at the cut, the greatest action stays, among the first 50 in the file."""
    truth = table([("a", 902, BOX, action) for action in (1, 2, 3)])
    rows = [("a", 902, FAR, 4, 0.9)] * 49
    tied = [("a", 902, BOX, action, 0.5) for action in (1, 2, 3)]
    by_order = {}
    for name, listed in (("last", rows + tied), ("first", tied + rows)):
        result = frame_ap(
            truth, table(listed, scored=True), classes=[1, 2, 3, 4], protocol="activitynet"
        )
        assert result.counts["detections_beyond_the_best"] == 2
        by_order[name] = result.ap[:3].tolist()
    # Last: one fits in, the first that comes. First: all three are in until better ones come.
    assert by_order == {"last": [1, 0, 0], "first": [0, 0, 1]}


def test_equal_scores_at_a_key_frame_have_the_order_of_a_heap():
    """The first in the file overlaps; the second does not, and is the least in the heap."""
    truth = table([("a", 902, FAR, 1)])
    detections = table([("a", 902, FAR, 1, 0.5), ("a", 902, BOX, 1, 0.5)], scored=True)
    last_first = np.argsort([0.5, 0.5])[::-1].tolist() == [1, 0]  # as this processor ranks them
    for protocol, is_right_first in (("activitynet", last_first), ("slowfast", not last_first)):
        result = frame_ap(truth, detections, classes=[1], protocol=protocol)
        assert result.mean_ap == (1.0 if is_right_first else 0.5)
        assert result.tie_range == (0.5, 1.0)


def test_of_boxes_that_overlap_equally_that_of_the_highest_person_is_taken():
    """The official reader takes the last column of ground truth for a score."""
    left, middle, right = (0, 0, 0.5, 1), (0.125, 0, 0.625, 1), (0.25, 0, 0.75, 1)
    truth = table([("a", 902, left, 1, 0), ("a", 902, right, 1, 1)])
    detections = table([("a", 902, middle, 1, 0.9), ("a", 902, right, 1, 0.8)], scored=True)
    found = {p: frame_ap(truth, detections, classes=[1], protocol=p).mean_ap for p in PROTOCOLS}
    assert found == {"activitynet": 0.5, "slowfast": 1.0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_empty_key_frames_in_detections_are_no_detections(protocol):
    truth = table([("a", 902, BOX, 1)])
    detections = [("a", 902, BOX, 1, 0.8)]
    empty = [("a", 902, None, 0, math.nan), ("a", 903, None, 1, math.nan)]
    expected, result = (
        frame_ap(truth, table(rows, scored=True), classes=[1], protocol=protocol)
        for rows in (detections, empty + detections)
    )
    assert result.mean_ap == 1.0
    assert result.counts == expected.counts


def test_means_groups_and_classes_without_ground_truth():
    truth = table([("a", 902, BOX, 1), ("a", 902, BOX, 20)])
    detections = table([("a", 902, BOX, 1, 0.9), ("a", 902, BOX, 64, 0.9)], scored=True)
    groups = {1: "pose", 20: "object", 64: "person"}
    result = frame_ap(truth, detections, classes=[1, 20, 64], protocol="slowfast", groups=groups)
    assert result.mean_ap == 0.5
    assert result.without_ground_truth == [64]
    assert result.groups["pose"] == 1.0
    assert result.groups["object"] == 0.0
    assert math.isnan(result.groups["person"])


def test_nothing_detected_and_nothing_to_detect():
    one, none = table([("a", 902, BOX, 1)]), table([])
    empty = replace(none, score=np.empty(0))
    assert frame_ap(one, empty, classes=[1], protocol="slowfast").mean_ap == 0
    scored = table([("a", 902, BOX, 1, 0.5)], scored=True)
    assert math.isnan(frame_ap(none, scored, classes=[1], protocol="slowfast").mean_ap)


def test_refuses():
    rows = table([("a", 902, BOX, 1)])
    scored = table([("a", 902, BOX, 1, math.nan)], scored=True)
    with pytest.raises(ValueError, match="known are activitynet, slowfast"):
        frame_ap(rows, scored, classes=[1], protocol="coco")
    infinite = table([("a", 902, BOX, 1, -math.inf)], scored=True)
    for detections in (rows, scored, infinite):
        with pytest.raises(ValueError, match="score that is a number"):
            frame_ap(rows, detections, classes=[1], protocol="slowfast")
    with pytest.raises(ValueError, match="classes"):
        frame_ap(rows, scored, classes=[], protocol="slowfast")


def test_average_precision_and_iou():
    assert interpolated_average_precision(np.array([True, False, True]), 4) == pytest.approx(
        (1 + 2 / 3) / 4
    )
    assert interpolated_average_precision(np.empty(0, dtype=bool), 4) == 0
    a, b = np.array([[0, 0, 0.4, 0.4]]), np.array([[0, 0, 0.4, 0.2]])
    assert paired_iou(a, b) == pytest.approx(0.5)


# ---- curves


def test_precision_and_recall_after_each_detection():
    precision, recall = precision_recall(np.array([True, False, True]), 4)
    assert precision.tolist() == [1, 1 / 2, 2 / 3]
    assert recall.tolist() == [1 / 4, 1 / 4, 2 / 4]
    precision, recall = precision_recall(np.array([], bool), 4)
    assert precision.tolist() == recall.tolist() == []


def test_ranked_detections_are_right_or_wrong_best_first():
    one, other = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
    truth = table([("v", 1.0, one, 1), ("v", 2.0, other, 1), ("v", 1.0, one, 2)])
    found = table(
        [
            ("v", 1.0, one, 1, 0.2),
            ("v", 1.0, (0.5, 0.0, 0.9, 0.4), 1, 0.9),  # nobody is there
            ("v", 2.0, other, 1, 0.95),
        ],
        scored=True,
    )
    result = frame_ap(truth, found, classes=[1, 2, 3], protocol="activitynet")
    assert [hits.tolist() for hits in result.ranked] == [[True, False, True], [], []]
    assert result.ap[0] == pytest.approx((1 + 2 / 3) / 2)
    for hits, number, ap in zip(result.ranked, result.num_ground_truth, result.ap, strict=True):
        if number:
            assert interpolated_average_precision(hits, number) == ap
