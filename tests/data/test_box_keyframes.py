"""Key frames from tables of boxes: grouping, exclusions, proposals and warnings."""

import re

import numpy as np
import pytest

from hiera_video.data.boxes.files import read_boxes
from hiera_video.data.boxes.keyframes import (
    KeyframeRecord,
    TrainingKeyframeList,
    detections_of,
    keyframe_records,
    named_keyframes,
    num_boxes,
    num_reached,
    read_evaluation,
    read_training,
    with_proposals,
)
from hiera_video.data.boxes.table import LabelMap, write_detections
from hiera_video.errors import AnnotationError
from hiera_video.settings.training import DetectionData, KeyframeData

LABELS = LabelMap({1: "stand", 2: "sit", 4: "wave"}, {})
LEFT, RIGHT = "0.1,0.2,0.4,0.8", "0.5,0.2,0.9,0.8"
TRUTH = f"""b,3,{LEFT},2,7
a,10,{RIGHT},4,1
a,2,{LEFT},2,0
b,3,{LEFT},1,7
a,2,{RIGHT},1,1
a,2,{LEFT},1,0
a,4
"""
PROPOSALS = f"a,2,{LEFT},,0.95\na,2,{RIGHT},,0.7\nb,5,{LEFT},,0.8\nc,1,{LEFT},,0.99\n"


@pytest.fixture
def files(tmp_path):
    """Lists, beside stand-ins for the videos a, b and c."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "proposals.csv").write_text(PROPOSALS)
    (tmp_path / "excluded.csv").write_text("a,0002\n")
    return tmp_path


def corners(text):
    return [float(corner) for corner in text.split(",")]


def contents(records):
    return [(r.video, r.second, r.boxes.tolist(), r.actions) for r in records]


def record(second, *boxes, actions=None, video="a"):
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return KeyframeRecord("p", video, second, boxes, tuple(actions or [()] * len(boxes)))


# ---- records


def test_rows_are_grouped_by_key_frame_and_rows_of_one_box_joined(files):
    table = read_boxes("ground truth", files / "truth.csv")
    records = keyframe_records(table, {"a": "A.mp4", "b": "B.mp4"})
    # Videos as the list first names them; times in order, 10 after 2.
    assert contents(records) == [
        ("b", 3.0, [corners(LEFT)], ((1, 2),)),
        ("a", 2.0, [corners(LEFT), corners(RIGHT)], ((1, 2), (1,))),
        ("a", 10.0, [corners(RIGHT)], ((4,),)),
    ]
    assert [r.path for r in records] == ["B.mp4", "A.mp4", "A.mp4"]
    assert [r.name for r in records] == ["b,3", "a,2", "a,10"]


def test_names_tell_any_two_times_apart():
    assert record(1234.125).name != record(1234.1254).name
    assert record(902.0).name == "a,902"


def test_which_key_frames_are_taken(files):
    table, paths = read_boxes("ground truth", files / "truth.csv"), {"a": "", "b": ""}
    excluded = keyframe_records(table, paths, excluded=[("a", 2.0), ("b", 10.0)])
    assert [r.name for r in excluded] == ["b,3", "a,10"]
    only = keyframe_records(table, paths, keyframes=[("a", 2.0), ("b", 3.0)], excluded=[("b", 3.0)])
    assert [r.name for r in only] == ["a,2"]
    assert keyframe_records(table, paths, keyframes=[]) == []


def test_scores_below_the_least_are_left_out(files):
    table = read_boxes("proposals", files / "proposals.csv")
    paths = dict.fromkeys("abc", "")
    taken = keyframe_records(table, paths, min_score=0.8)
    assert contents(taken) == [
        ("a", 2.0, [corners(LEFT)], ((),)),
        ("b", 5.0, [corners(LEFT)], ((),)),  # 0.8 is not below 0.8
        ("c", 1.0, [corners(LEFT)], ((),)),
    ]
    assert len(keyframe_records(table, paths)[0].boxes) == 2
    truth = read_boxes("ground truth", files / "truth.csv")  # without scores: all of them
    assert len(keyframe_records(truth, paths, min_score=0.8)) == 3


@pytest.mark.parametrize("text", ["", "a,4\nb,1\n"])
def test_a_table_without_boxes_has_no_records(tmp_path, text):
    (tmp_path / "truth.csv").write_text(text)
    table = read_boxes("ground truth", tmp_path / "truth.csv")
    assert keyframe_records(table, {"a": "", "b": ""}) == []
    assert len(named_keyframes(table)) == len(text.split())


# ---- proposals


def test_proposals_take_the_actions_of_the_box_they_meet_best():
    boxes = [[0.0, 0.0, 0.4, 0.5], [0.0, 0.0, 0.4, 0.6]]
    truth = [record(1, *boxes, actions=[(1,), (2, 4)]), record(2, boxes[0], actions=[(4,)])]
    near_second = [0.0, 0.0, 0.4, 0.59]  # IoU 0.59 / 0.6 with the second, 0.5 / 0.59 with the first
    far = [0.2, 0.0, 0.4, 0.5]
    proposed = [record(1, far, near_second), record(1, boxes[0], video="b"), record(7, boxes[0])]
    first, second = with_proposals(truth, proposed, min_iou=0.9)
    assert first.boxes.tolist() == [*boxes, near_second]
    assert first.actions == ((1,), (2, 4), (2, 4))
    assert contents([second]) == contents([truth[1]])  # no proposal for it


@pytest.mark.parametrize(("min_iou", "taken"), [(0.49, True), (0.51, False)])
def test_the_least_overlap(min_iou, taken):
    truth = [record(1, [0, 0, 1, 1], actions=[(1,)])]
    (result,) = with_proposals(truth, [record(1, [0, 0, 0.5, 1])], min_iou)
    assert len(result.boxes) == 1 + taken


def test_boxes_that_proposals_reach(files):
    """A box of several actions counts once."""
    truth = keyframe_records(read_boxes("ground truth", files / "truth.csv"), {"a": "", "b": ""})
    assert num_boxes(truth) == 4
    part = [0.1, 0.2, 0.4, 0.56]  # 0.6 of the left box of a at second 2
    for proposed, min_iou, reached in (
        ([record(2, part)], 0.59, 1),
        ([record(2, part)], 0.61, 0),
        ([record(2, part, corners(RIGHT)), record(3, corners(LEFT), video="b")], 0.5, 3),
        ([record(2, part, video="b")], 0.5, 0),
        ([], 0.5, 0),
    ):
        assert num_reached(truth, proposed, min_iou) == reached


# ---- lists for training


def training(files, **changes):
    data = DetectionData(train=str(files / "truth.csv"), label_map="-", **changes)
    return read_training(data, LABELS)


def test_read_training(files):
    train = training(files)
    assert [r.name for r in train.records] == ["b,3", "a,2", "a,10"]
    assert train.records[1].path == str(files / "a.mp4")
    excluded = training(files, train_excluded=str(files / "excluded.csv"))
    assert [r.name for r in excluded.records] == ["b,3", "a,10"]
    more = training(files, train_proposals=str(files / "proposals.csv"))
    assert [len(r.boxes) for r in more.records] == [1, 3, 1]  # the one of 0.95 meets one
    assert more.records[1].actions == ((1, 2), (1,), (1, 2))
    low = training(files, train_proposals=str(files / "proposals.csv"), proposal_score=0.5)
    assert [len(r.boxes) for r in low.records] == [1, 4, 1]


def test_nothing_to_train_on_is_an_error(files):
    (files / "truth.csv").write_text(f"a,2,{LEFT},1,0\n")
    with pytest.raises(AnnotationError, match=r"truth\.csv: no key frame with a box"):
        training(files, train_excluded=str(files / "excluded.csv"))
    (files / "truth.csv").write_text("")
    with pytest.raises(AnnotationError, match=r"truth\.csv: no key frame with a box"):
        training(files)
    (files / "truth.csv").write_text(f"a,2,{LEFT},,0\n")
    with pytest.raises(AnnotationError, match=r"truth\.csv: no box has an action, in the seventh"):
        training(files)


def test_missing_videos_are_kept(files):
    (files / "b.mp4").unlink()
    train = training(files)
    assert train.records[0].path == str(files / "b")
    (files / "a.mp4").unlink()
    with pytest.raises(AnnotationError, match=r"none of its 2 videos is in .*, for example b; set"):
        training(files)
    (files / "deep").mkdir()
    (files / "deep/a.mkv").touch()
    place = re.escape(f"; 'a' is in {files / 'deep'}: set root (data.root={files / 'deep'})")
    with pytest.raises(AnnotationError, match=place):
        training(files)


def test_mistakes_are_named_by_line(files):
    with open(files / "truth.csv", "a") as file:
        file.write(f"a,5,{LEFT},9,0\n")
    with pytest.raises(AnnotationError, match=r"truth\.csv:8: action 9 is not in the label map"):
        training(files)
    with pytest.raises(AnnotationError, match=r"truth\.csv:8: action 9 is not in the label map"):
        evaluation(files)


def test_the_fingerprint_changes_with_whatever_is_learnt(files):
    def fingerprint(*records):
        return TrainingKeyframeList("x", list(records)).fingerprint

    box, other = corners(LEFT), corners(RIGHT)
    base = [record(1, box, actions=[(1,)]), record(2, box, actions=[(2,)])]
    same = [record(1, box, actions=[(1,)]), record(2, box, actions=[(2,)])]
    changed = [
        base[::-1],
        base[:1],
        [base[0], record(2, other, actions=[(2,)])],
        [base[0], record(2, box, actions=[(1,)])],
        [base[0], record(3, box, actions=[(2,)])],
        [base[0], record(2, box, actions=[(2,)], video="b")],
        [base[0], record(2, box, box, actions=[(2,), (2,)])],
    ]
    prints = [fingerprint(*records) for records in (base, *changed)]
    assert fingerprint(*same) == prints[0]
    assert len(set(prints)) == len(prints)
    with_more = training(files, train_proposals=str(files / "proposals.csv"))
    assert training(files).fingerprint != with_more.fingerprint


# ---- lists for evaluation


def evaluation(files, **changes):
    return read_evaluation(KeyframeData(val=str(files / "truth.csv"), **changes), LABELS)


def test_the_boxes_of_the_ground_truth(files):
    val = evaluation(files)
    assert val.boxes == "ground truth"
    assert [r.name for r in val.records] == ["b,3", "a,2", "a,10"]
    assert val.keyframes == [("a", 2.0), ("a", 4.0), ("a", 10.0), ("b", 3.0)]  # the empty one too
    assert val.excluded == []
    val = evaluation(files, val_excluded=str(files / "excluded.csv"))
    assert [r.name for r in val.records] == ["b,3", "a,10"]
    assert val.keyframes == [("a", 4.0), ("a", 10.0), ("b", 3.0)]
    assert val.excluded == [("a", 2.0)]


def test_proposals_are_scored_at_the_key_frames_that_count(files):
    proposals = str(files / "proposals.csv")
    val = evaluation(files, val_proposals=proposals)
    assert val.boxes == "proposals"
    assert [r.name for r in val.records] == ["a,2", "b,5", "c,1"]
    assert val.records[0].boxes.tolist() == [corners(LEFT)]  # the other one has a score of 0.7
    assert set(val.keyframes) == named_keyframes(val.ground_truth) | {("b", 5.0), ("c", 1.0)}
    val = evaluation(files, val_proposals=proposals, keyframe_range_sec=(1, 2))
    assert [r.name for r in val.records] == ["a,2", "c,1"]
    assert val.keyframes == [(video, s) for video in "abc" for s in (1.0, 2.0)]
    (files / "keyframes.csv").write_text("b,5\nc,1\na,2\n")
    only = dict(
        val_keyframes=str(files / "keyframes.csv"), val_excluded=str(files / "excluded.csv")
    )
    val = evaluation(files, val_proposals=proposals, **only)
    assert [r.name for r in val.records] == ["b,5", "c,1"]
    assert val.keyframes == [("b", 5.0), ("c", 1.0)]


def test_nothing_to_score_is_an_error(files):
    for changes in (
        dict(keyframe_range_sec=(20, 30)),
        dict(val_proposals=str(files / "proposals.csv")),
    ):
        with pytest.raises(AnnotationError, match=r"no box in any of the \d+ evaluated key frames"):
            evaluation(files, **(dict(proposal_score=0.999) | changes))
    (files / "proposals.csv").write_text("")
    with pytest.raises(AnnotationError, match=r"proposals\.csv: no box in any of the 4 evaluated"):
        evaluation(files, val_proposals=str(files / "proposals.csv"))
    (files / "truth.csv").write_text("")
    with pytest.raises(AnnotationError, match=r"truth\.csv: no box in any of the 0 evaluated"):
        evaluation(files)


def test_names_of_actions(files):
    """Files may name actions, as for training."""
    header = "video,second,x1,y1,x2,y2,action"
    (files / "truth.csv").write_text(f"{header}\na,2,{LEFT},wave\na,2,{LEFT},sit\n")
    assert evaluation(files).records[0].actions == training(files).records[0].actions == ((2, 4),)


# ---- detections


def test_detections_have_a_row_for_each_box_and_action(tmp_path):
    records = [
        record(2.5, corners(LEFT), corners(RIGHT)),
        record(3, corners(LEFT), video="lost"),
        record(1, corners(RIGHT), video="b"),
    ]
    scores = np.arange(12, dtype=np.float32).reshape(3, 4) / 16  # columns of ids 1, 2, 3, 4
    table = detections_of(records, {2: scores[2:], 0: scores[:2]}, LABELS)
    write_detections(tmp_path / "d.csv", table)
    for result in (table, read_boxes("detections", tmp_path / "d.csv")):
        videos = [result.videos[v] for v in result.video]
        assert videos == ["a"] * 6 + ["b"] * 3
        assert result.second.tolist() == [2.5] * 6 + [1.0] * 3
        assert result.action.tolist() == [1, 2, 4] * 3  # id 3 is not in the label map
        assert result.score.tolist() == (np.array([0, 1, 3, 4, 5, 7, 8, 9, 11]) / 16).tolist()
        expected = [corners(LEFT)] * 3 + [corners(RIGHT)] * 6
        assert result.boxes.tolist() == expected


def test_no_detections(tmp_path):
    for records in ([], [record(1, corners(LEFT))]):
        table = detections_of(records, {}, LABELS)
        assert len(table) == 0
        assert table.boxes.shape == (0, 4)
        write_detections(tmp_path / "d.csv", table)
        assert (tmp_path / "d.csv").read_text() == ""
