"""Sections about a detector: curves, people over time, and the times of clips."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from hiera_video.data.boxes.files import read_boxes
from hiera_video.data.boxes.table import LabelMap
from hiera_video.evaluation.ava import PROTOCOLS, frame_aps
from hiera_video.evaluation.ava_report import as_dict
from hiera_video.report.blocks import Gallery, Notice, Plot, Table
from hiera_video.report.detection import (
    STRETCH,
    DetectedPerson,
    by_keyframe,
    detection_sections,
    hardest_stretch,
    linked,
    recognised,
    rows_by_video,
    timeline,
)
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import read_run
from tests.report.synthetic import write_clip, write_json

LABELS = LabelMap({1: "walk", 2: "sit", 3: "fly"}, {})
LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0)
FEW = (0.0, 0.0, 0.4, 0.4)  # overlaps LEFT by 0.4


def person(box, **scores):
    ids = {name: id for id, name in LABELS.names.items()}
    return DetectedPerson(box, {ids[name]: score for name, score in scores.items()})


# ---- people


def test_recognised_is_the_mean_score_of_annotated_actions():
    truth = [person(LEFT, walk=1.0, sit=1.0), person(RIGHT, fly=1.0)]
    found = [person(LEFT, walk=0.8), person(RIGHT, fly=0.1), person(RIGHT, fly=0.4)]
    assert recognised(truth, found) == pytest.approx((0.8 + 0.0 + 0.4) / 3)
    assert recognised(truth, [person(FEW, walk=1.0, sit=1.0)]) == 0.0  # IoU below a half
    assert recognised(truth, []) == 0.0


@pytest.mark.parametrize("found", [[], [person(LEFT, walk=0.9)]])
def test_people_without_annotated_actions_are_no_mistake(found):
    assert recognised([person(LEFT)], found) == 1.0


def test_people_are_linked_by_the_overlap_of_their_boxes():
    moved = (0.05, 0.0, 0.45, 1.0)
    shown = {
        1.0: [person(LEFT, walk=0.1), person(RIGHT, walk=0.2)],
        2.0: [person(RIGHT, walk=0.3), person(moved, walk=0.4)],
        3.0: [],
        4.0: [person(moved, walk=0.5), person((0.45, 0.0, 0.55, 0.1), walk=0.6)],
    }
    scores = [{s: p.scores[1] for s, p in track.items()} for track in linked(shown)]
    assert scores == [{1.0: 0.1, 2.0: 0.4, 4.0: 0.5}, {1.0: 0.2, 2.0: 0.3}, {4.0: 0.6}]


def test_a_box_continues_one_person_only():
    shown = {1.0: [person(LEFT)], 2.0: [person(LEFT), person(LEFT)]}
    assert [list(track) for track in linked(shown)] == [[1.0, 2.0], [2.0]]


def test_the_hardest_stretch_has_the_lowest_mean():
    scores = {900.0 + n: 1.0 for n in range(40)}
    scores |= {910.0: 0.0, 915.0: 0.0, 930.0: 0.0}
    found = hardest_stretch(scores)
    assert len(found) == STRETCH
    assert np.diff(found).tolist() == [1.0] * (STRETCH - 1)
    assert {910.0, 915.0} <= set(found)
    assert hardest_stretch({3.0: 0.5, 4.0: 0.2}) == [3.0, 4.0]


def test_key_frames_that_lie_far_apart_make_no_long_clip():
    scores = {0.0: 0.1, 20.0: 0.9, 40.0: 0.5, 300.0: 0.0, 900.0: 0.0}
    assert hardest_stretch(scores) == [0.0, 20.0]  # two within 30 s, of the lower mean
    assert hardest_stretch({0.0: 0.5, 300.0: 0.2}) == [300.0]


def test_a_timeline_counts_seconds_from_the_start_of_its_clip():
    tracks = [{902.0: person(LEFT, walk=0.9, sit=0.2), 903.0: person(LEFT, walk=0.7)}]
    plot = timeline("v", tracks, [902.0, 903.0], 901.5, LABELS, "media/0000.mp4")
    (data,) = plot.data
    assert data["x"] == [0.5, 1.5]
    assert data["z"] == [[0.9, 0.7], [0.2, None]]
    assert data["text"] == [
        ["person 1: walk, 0.5 s: 0.90", "person 1: walk, 1.5 s: 0.70"],
        ["person 1: sit, 0.5 s: 0.20", ""],
    ]
    assert plot.layout["yaxis"]["ticktext"] == ["person 1: walk", "person 1: sit"]
    assert plot.seeks == "media/0000.mp4"


# ---- an evaluation


def evaluation(folder, start_sec=0.0, seconds=(1.0, 2.0, 3.0), evaluated=LABELS):
    """Two videos of 5 seconds, in which a walk is found late and a sitting person is missed."""
    truth, found = [], []
    for video in ("easy", "hard"):
        write_clip(folder / f"{video}.mp4", num_frames=50)
        for second in seconds:
            stamp = start_sec + second
            truth += [(video, stamp, *LEFT, 1, 0), (video, stamp, *RIGHT, 2, 1)]
            sure = 0.9 if video == "easy" else 0.3
            found += [
                (video, stamp, *LEFT, 1, sure),
                (video, stamp, *LEFT, 3, 0.35),
                (video, stamp, *RIGHT, 2, sure - second / 100),
                (video, stamp, *FEW, 2, 0.5),
            ]
    for name, rows in (("val.csv", truth), ("detections.csv", found)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    tables = [read_boxes("ground truth", folder / "val.csv", LABELS)]
    tables.append(read_boxes("detections", folder / "detections.csv", LABELS))
    protocols = frame_aps(*tables, evaluated)
    report = {
        "data": str(folder / "val.csv"),
        "expected": 6,
        "decoded": 6,
        "boxes": "proposals",
        "actions": [{"id": id, "name": name} for id, name in LABELS.names.items()],
        "protocols": {name: as_dict(ap, evaluated.names) for name, ap in protocols.items()},
        "settings": {"data": {"val": str(folder / "val.csv"), "start_sec": start_sec}},
    }
    write_json(folder / "report.json", report)
    return report


def sections_of(folder, num_videos=8):
    run = read_run(folder)
    found = detection_sections(run, MediaFolder(folder / "page"), num_videos)
    return {section.title.partition(":")[0]: section for section in found}


def blocks(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def test_figures_of_the_page_are_those_of_the_report(tmp_path):
    report = evaluation(tmp_path)
    figures, actions = blocks(sections_of(tmp_path)["Frame mAP"], Table)
    assert figures.rows == [[p, report["protocols"][p]["mean_ap"]] for p in PROTOCOLS]
    first, second = (report["protocols"][p]["classes"] for p in PROTOCOLS)
    assert actions.rows == [
        [a["name"], a["ground_truth"], a["ap"], b["ap"]] for a, b in zip(first, second, strict=True)
    ]


def test_lists_may_hold_actions_that_are_not_evaluated(tmp_path):
    evaluation(tmp_path, evaluated=LabelMap({2: "sit"}, {}))
    found = sections_of(tmp_path)
    (plot,) = blocks(found["Precision and recall"], Plot)
    assert [curve["name"].split()[0] for curve in plot.data] == ["sit"]
    cards = [card for gallery in blocks(found["Videos"], Gallery) for card in gallery.cards]
    scores = {card.title: dict(card.facts)["mean score of its annotated actions"] for card in cards}
    assert scores == {"hard": "0.280", "easy": "0.880"}  # sure - second / 100 at 1, 2 and 3 s
    timelines = blocks(found["Videos"], Plot)
    assert all("sit" in name for plot in timelines for name in plot.layout["yaxis"]["ticktext"])


def test_curves_have_the_average_precision_of_the_report(tmp_path):
    report = evaluation(tmp_path)
    (plot,) = blocks(sections_of(tmp_path)["Precision and recall"], Plot)
    known = {c["name"]: c["ap"] for c in report["protocols"]["activitynet"]["classes"]}
    assert len(plot.data) == 2  # there is no true flight
    for curve in plot.data:
        name, ap = curve["name"].rsplit(" (", 1)
        assert ap == f"{100 * known[name]:.1f} %)"
        # The area below the monotone curve, by steps of recall.
        recall, precision = np.array(curve["x"]), np.array(curve["y"])
        highest = np.maximum.accumulate(precision[::-1])[::-1]
        area = float((np.diff(recall, prepend=0) * highest).sum())
        assert area == pytest.approx(known[name], abs=1e-4)


@pytest.mark.parametrize("start_sec", [0.0, 900.0])
def test_videos_come_by_their_scores_with_clip_and_timeline(tmp_path, start_sec):
    evaluation(tmp_path, start_sec)
    section = sections_of(tmp_path)["Videos"]
    galleries, plots = blocks(section, Gallery), blocks(section, Plot)
    assert [gallery.caption for gallery in galleries] == ["hard", "easy"]
    card = galleries[0].cards[0]
    scores = [0.3, 0.3, 0.3, 0.29, 0.28, 0.27]
    facts = dict(card.facts)
    assert facts["mean score of its annotated actions"] == f"{np.mean(scores):.3f}"
    assert facts["key frames shown"] == ("901, 902, 903 s" if start_sec else "1, 2, 3 s")
    # Key frames are a second apart: the clip begins half a second before the first.
    assert plots[0].data[0]["x"] == [0.5, 1.5, 2.5]
    assert plots[0].seeks == card.media.video
    assert (tmp_path / "page" / card.media.video).is_file()


def test_a_clip_cannot_begin_before_its_video(tmp_path):
    evaluation(tmp_path, 900.0, seconds=(0.25, 1.25))
    assert blocks(sections_of(tmp_path)["Videos"], Plot)[0].data[0]["x"] == [0.25, 1.25]


def test_timelines_of_two_evaluations_belong_to_their_own_clips(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        evaluation(tmp_path / name)
    folder = MediaFolder(tmp_path / "page")
    found = detection_sections(read_run(tmp_path), folder, 8)
    clips = [plot.seeks for section in found for plot in blocks(section, Plot) if plot.seeks]
    assert len(clips) == len(set(clips)) == 4


def test_a_video_that_moved_away_says_so(tmp_path):
    evaluation(tmp_path)
    (tmp_path / "hard.mp4").unlink()
    section = sections_of(tmp_path)["Videos"]
    moved, present = (gallery.cards[0].media for gallery in blocks(section, Gallery))
    assert moved.note == f"{tmp_path / 'hard'}: no such file; check its path"
    assert present.video
    assert [plot.seeks for plot in blocks(section, Plot)] == [None, present.video]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "detections.csv").unlink(), "detections.csv"),
        (lambda folder: (folder / "detections.csv").write_text("a,b\n"), "detections.csv"),
        (lambda folder: (folder / "val.csv").unlink(), "val.csv"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, change, message):
    evaluation(tmp_path)
    change(tmp_path)
    section = sections_of(tmp_path)["Videos"]
    (notice,) = blocks(section, Notice)
    assert message in notice.text


@pytest.mark.parametrize("settings", [{}, {"data": {"start_sec": "early"}}])
def test_results_of_another_version_say_so(tmp_path, settings):
    report = evaluation(tmp_path)
    report |= {"settings": settings}
    write_json(tmp_path / "report.json", report)
    found = sections_of(tmp_path)
    assert blocks(found["Frame mAP"], Table)
    assert "of another version" in blocks(found["Videos"], Notice)[0].text


def test_a_key_frame_without_boxes_has_no_people(tmp_path):
    (tmp_path / "val.csv").write_text("v,1\nv,2,0,0,0.4,1,1,0\n")
    table = read_boxes("ground truth", tmp_path / "val.csv", LABELS)
    found = by_keyframe(table, rows_by_video(table)["v"], LABELS)
    assert found == {1.0: [], 2.0: [person(LEFT, walk=1.0)]}


def test_boxes_of_a_key_frame_are_people(tmp_path):
    evaluation(tmp_path)
    table = read_boxes("detections", tmp_path / "detections.csv", LABELS)
    rows = rows_by_video(table)
    assert {video: len(of_video) for video, of_video in rows.items()} == {"easy": 12, "hard": 12}
    people = by_keyframe(table, rows["hard"], LABELS)[1.0]
    assert {p.box: p.scores for p in people} == {
        LEFT: {1: 0.3, 3: 0.35},
        RIGHT: {2: pytest.approx(0.29)},
        FEW: {2: 0.5},
    }
