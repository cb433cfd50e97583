"""Sections about the evaluation of an action detector: precision and recall, and its videos."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hiera_video.analysis.overlay import Person, Rectangle, overlay_frames
from hiera_video.data.boxes.files import read_boxes
from hiera_video.data.boxes.keyframes import KeyframeEvaluation, read_evaluation, video_paths
from hiera_video.data.boxes.table import BoxTable, LabelMap, box_iou
from hiera_video.errors import UserError
from hiera_video.evaluation.ava import MATCHING_IOU, PROTOCOLS, frame_aps, precision_recall
from hiera_video.report.blocks import (
    Block,
    Card,
    Column,
    Gallery,
    Media,
    Notice,
    Plot,
    Section,
    Table,
)
from hiera_video.report.common import COLOURS, SHADES, averaged, shortened
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Evaluation, Run, evaluation_command
from hiera_video.settings.training import KeyframeData
from hiera_video.video.open import opener
from hiera_video.video.parts import Part, open_part
from hiera_video.video.reader import VideoError

MAX_VIDEOS = 8  # with overlays; each has a plot
STRETCH = 12  # most key frames of a video that are shown
STRETCH_SEC = 30.0  # most time from the first to the last: key frames may lie minutes apart
DRAWN_ACTIONS = 8  # curves that are visible at first
ACTIONS_OF_PERSON = 3
MIN_SCORE = 0.3  # of an action in the overlay, as in `detect predict`
LINKING_IOU = 0.3  # of the boxes of a person in successive key frames
MAX_SIDE = 480  # short side of overlays, pixels


@dataclass(frozen=True)
class DetectedPerson:
    """One box of a key frame with the scores of its actions by id."""

    box: Rectangle
    scores: dict[int, float]


Detected = dict[float, list[DetectedPerson]]  # of one video, by second


def detection_sections(run: Run, folder: MediaFolder, num_videos: int) -> list[Section]:
    """Sections about each evaluation of a detector."""
    sections = []
    for evaluation in run.evaluations:
        name = evaluation.folder.name
        sections.append(figures(evaluation))
        try:
            data = evaluation.data(KeyframeData)
            labels = labels_of(evaluation)
            val = read_evaluation(data, known_actions(evaluation))
            detections = read_boxes("detections", evaluation.folder / "detections.csv")
            drawn = curves(val, detections, labels)
            sections.append(Section(f"Precision and recall: {name}", drawn))
            blocks = videos(val, detections, labels, data, folder, min(num_videos, MAX_VIDEOS))
            sections.append(Section(f"Videos: {name}", blocks))
        except UserError as error:
            sections.append(Section(f"Videos: {name}", [Notice(str(error))]))
    if not run.evaluations:
        command = evaluation_command(run, "detect evaluate", "data.val=BOXES")
        text = "The run was not evaluated. Figures, curves and videos appear after:"
        sections.append(Section("Frame mAP", [Notice(text, command)]))
    return sections


def labels_of(evaluation: Evaluation) -> LabelMap:
    """The evaluated actions, as report.json names them."""
    for result in evaluation.report.get("protocols", {}).values():
        return LabelMap({c["id"]: c["name"] for c in result["classes"]}, {})
    raise UserError(f"{evaluation.folder / 'report.json'}: names no protocol; evaluate again")


def known_actions(evaluation: Evaluation) -> LabelMap:
    """The actions of the model, of which the evaluated ones may be a part; lists may hold all."""
    actions = {action["id"]: action["name"] for action in evaluation.report.get("actions", [])}
    return LabelMap(actions | labels_of(evaluation).names, {})


def figures(evaluation: Evaluation) -> Section:
    """The figures of report.json."""
    report = evaluation.report
    protocols = {p: report["protocols"][p] for p in PROTOCOLS if p in report.get("protocols", {})}
    groups = dict.fromkeys(group for result in protocols.values() for group in result["groups"])
    columns = [Column("protocol"), Column("mAP", "percent", 2)]
    columns += [Column(f"mAP of group {group}", "percent", 2) for group in groups]
    rows: list[list[Any]] = [
        [protocol, result["mean_ap"], *(result["groups"].get(group) for group in groups)]
        for protocol, result in protocols.items()
    ]
    blocks: list[Block] = [Table("Frame mAP of report.json, at IoU 0.5", columns, rows)]
    by_action: dict[str, list[Any]] = {}
    for result in protocols.values():
        for action in result["classes"]:
            row = by_action.setdefault(action["name"], [action["name"], action["ground_truth"]])
            row.append(action["ap"])
    columns = [Column("action"), Column("boxes", "number")]
    columns += [Column(f"AP, {protocol}", "percent") for protocol in protocols]
    blocks.append(Table("Actions", columns, list(by_action.values())))
    intro = (
        f"{evaluation.folder}: {report.get('decoded')} of {report.get('expected')} key frames of "
        f"{report.get('data')}, boxes from {report.get('boxes')}."
    )
    return Section(f"Frame mAP: {evaluation.folder.name}", blocks, intro)


def curves(val: KeyframeEvaluation, detections: BoxTable, labels: LabelMap) -> list[Block]:
    """Precision and recall of each action, by the first protocol."""
    protocol, *_ = PROTOCOLS
    result = frame_aps(
        val.ground_truth,
        detections,
        labels,
        protocols=[protocol],
        excluded=val.excluded,
        keyframes=val.keyframes,
    )[protocol]
    most_boxes = np.argsort(-result.num_ground_truth, kind="stable").tolist()
    data = []
    for place, c in enumerate(most_boxes):
        if not result.num_ground_truth[c]:
            continue
        precision, recall = precision_recall(result.ranked[c], result.num_ground_truth[c])
        x, y = averaged(recall, precision)
        name = f"{labels.names[int(result.classes[c])]} ({100 * result.ap[c]:.1f} %)"
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": y,
                "visible": True if place < DRAWN_ACTIONS else "legendonly",
                "line": {"color": COLOURS[place % len(COLOURS)]},
            }
        )
    share = {"range": [0, 1.02], "tickformat": ".0%"}
    layout = {
        "xaxis": {"title": {"text": "recall"}, **share},
        "yaxis": {"title": {"text": "precision"}, **share},
        "showlegend": True,
    }
    caption = (
        f"Precision and recall at IoU 0.5 by the protocol {protocol}, AP in brackets; click a name "
        "to show or hide its curve"
    )
    return [Plot(caption, data, layout, height_px=520)]


def videos(
    val: KeyframeEvaluation,
    detections: BoxTable,
    labels: LabelMap,
    data: KeyframeData,
    folder: MediaFolder,
    num_videos: int,
) -> list[Block]:
    """The videos whose annotated actions have the lowest scores, with a timeline of each person."""
    detected_rows = rows_by_video(detections)

    def detected_in(video: str) -> Detected:
        return by_keyframe(detections, detected_rows.get(video, np.empty(0, np.int64)), labels)

    excluded = set(val.excluded)
    found = {}
    for video, rows in rows_by_video(val.ground_truth).items():
        truth, detected = by_keyframe(val.ground_truth, rows, labels), detected_in(video)
        found[video] = {
            second: recognised(people, detected.get(second, []))
            for second, people in sorted(truth.items())
            if people and (video, second) not in excluded
        }
    means = {v: float(np.mean(list(of.values()))) for v, of in found.items() if of}
    paths = video_paths(val.ground_truth.videos, val.ground_truth.source, data.root)
    blocks: list[Block] = []
    for video, mean in sorted(means.items(), key=lambda item: item[1])[:num_videos]:
        seconds = hardest_stretch(found[video])
        step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0
        begin = max(0.0, seconds[0] - data.start_sec - step / 2)  # in the file
        detected = detected_in(video)
        shown = {s: detected.get(s, []) for s in seconds}
        tracks = linked(shown)
        media = overlay(paths[video], begin, seconds, shown, labels, data, step, folder)
        facts = [
            ("mean score of its annotated actions", f"{mean:.3f}"),
            ("key frames shown", f"{', '.join(f'{second:g}' for second in seconds)} s"),
        ]
        blocks.append(Gallery(video, [Card(video, media, facts)]))
        start_sec = begin + data.start_sec
        blocks.append(timeline(video, tracks, seconds, start_sec, labels, media.video))
    return blocks


def rows_by_video(table: BoxTable) -> dict[str, np.ndarray]:
    """The rows of each video."""
    order = np.argsort(table.video, kind="stable")
    ends = np.searchsorted(table.video[order], np.arange(len(table.videos)), side="right")
    return dict(zip(table.videos, np.split(order, ends)[:-1], strict=True))


def by_keyframe(table: BoxTable, rows: np.ndarray, labels: LabelMap) -> Detected:
    """People and the scores of their evaluated actions; the score of annotated actions is 1.

    Args:
        rows: of one video. A million rows become 350 MB of objects, and AVA has several millions.
    """
    keyframes: dict[float, dict[Rectangle, dict[int, float]]] = defaultdict(dict)
    scores = np.ones(len(rows)) if table.score is None else table.score[rows]
    columns = (table.second[rows], table.boxes[rows], table.action[rows], scores)
    for second, (x1, y1, x2, y2), action, score in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        people = keyframes[second]
        if not math.isnan(x1):  # which marks a key frame without boxes
            of_box = people.setdefault((x1, y1, x2, y2), {})
            if action in labels.names:
                of_box[action] = score
    return {
        second: [DetectedPerson(box, actions) for box, actions in people.items()]
        for second, people in keyframes.items()
    }


def recognised(truth: Sequence[DetectedPerson], found: Sequence[DetectedPerson]) -> float:
    """The mean score of annotated actions, each of the best box that overlaps; 0 if none does.

    It is 1 if no action is annotated.
    """
    scores = []
    boxes = np.array([person.box for person in found]).reshape(-1, 4)
    iou = box_iou(np.array([person.box for person in truth]), boxes)
    for person, overlaps in zip(truth, iou, strict=True):
        near = [found[n] for n in np.flatnonzero(overlaps >= MATCHING_IOU).tolist()]
        scores += [max((p.scores.get(a, 0.0) for p in near), default=0.0) for a in person.scores]
    return float(np.mean(scores)) if scores else 1.0


def hardest_stretch(scores: dict[float, float]) -> list[float]:
    """Successive key frames, as many as `STRETCH` and `STRETCH_SEC` allow; ascending seconds.

    Of the stretches with the most key frames, it is that of the lowest mean score.
    """
    seconds = np.array(list(scores))
    sums = np.append(0.0, np.cumsum(list(scores.values())))
    first = np.arange(len(seconds))
    end = np.searchsorted(seconds, seconds + STRETCH_SEC, side="right").clip(max=first + STRETCH)
    sizes = end - first
    means = (sums[end] - sums[first]) / sizes
    chosen = int(np.where(sizes == sizes.max(), means, np.inf).argmin())
    return seconds[chosen : end[chosen]].tolist()


def linked(shown: dict[float, list[DetectedPerson]]) -> list[dict[float, DetectedPerson]]:
    """People over time: each box continues the person whose last box it overlaps most.

    This is for display: the data has no identities, and no figure depends on it.
    """
    tracks: list[dict[float, DetectedPerson]] = []
    active: list[int] = []
    for second, people in shown.items():
        taken: dict[int, int] = {}  # person -> track
        if people and active:
            last = [list(tracks[t].values())[-1].box for t in active]
            iou = box_iou(np.array([p.box for p in people]), np.array(last))
            while iou.size and iou.max() >= LINKING_IOU:
                row, column = divmod(int(iou.argmax()), iou.shape[1])
                taken[row] = active[column]
                iou[row], iou[:, column] = 0, 0
        for number, person in enumerate(people):
            if number not in taken:
                taken[number] = len(tracks)
                tracks.append({})
            tracks[taken[number]][second] = person
        active = sorted(taken.values()) or active
    return tracks


def overlay(
    path: str,
    begin: float,
    seconds: Sequence[float],
    shown: dict[float, list[DetectedPerson]],
    labels: LabelMap,
    data: KeyframeData,
    step: float,
    folder: MediaFolder,
) -> Media:
    """The stretch of a video with boxes and actions drawn over it."""
    keyframes = [
        (
            second - data.start_sec - begin,
            [Person(p.box, top_actions(p, labels)) for p in shown[second]],
        )
        for second in seconds
    ]
    try:
        part = Part(begin, begin + (seconds[-1] - seconds[0]) + step)
        with open_part(opener(data), path, part) as video:
            frames = overlay_frames(video, keyframes, interval_sec=step)
            return folder.of_frames(frames, video.fps, MAX_SIDE)
    except VideoError as error:
        return Media(note=str(error))


def top_actions(person: DetectedPerson, labels: LabelMap) -> tuple[tuple[str, float], ...]:
    """The likeliest actions, as in the overlay of `detect predict`."""
    ranked = sorted(person.scores.items(), key=lambda item: -item[1])[:ACTIONS_OF_PERSON]
    return tuple((labels.names[a], score) for a, score in ranked if score >= MIN_SCORE)


def timeline(
    video: str,
    tracks: Sequence[dict[float, DetectedPerson]],
    seconds: Sequence[float],
    begin: float,
    labels: LabelMap,
    clip: str | None,
) -> Plot:
    """Scores of the likeliest actions of each person over time.

    Args:
        begin: second in the annotations at which the clip begins, from which x counts.
        clip: its path in the folder of the report.
    """
    rows: list[list[float | None]] = []
    names: list[str] = []
    for number, track in enumerate(tracks, 1):
        best: dict[int, float] = {}
        for person in track.values():
            for action, score in person.scores.items():
                best[action] = max(score, best.get(action, 0.0))
        for action in sorted(best, key=lambda a: -best[a])[:ACTIONS_OF_PERSON]:
            names.append(f"person {number}: {labels.names[action]}")
            rows.append([track[s].scores.get(action) if s in track else None for s in seconds])
    shown_sec = [round(second - begin, 3) for second in seconds]
    data = {
        "type": "heatmap",
        "x": shown_sec,
        "y": list(range(len(names))),
        "z": [[None if z is None else round(z, 4) for z in row] for row in rows],
        "text": [
            [
                "" if z is None else f"{name}, {x:g} s: {z:.2f}"
                for x, z in zip(shown_sec, row, strict=True)
            ]
            for name, row in zip(names, rows, strict=True)
        ],
        "hoverinfo": "text",
        "colorscale": SHADES,
        "zmin": 0,
        "zmax": 1,
        "ygap": 2,
    }
    layout = {
        "xaxis": {"title": {"text": "seconds of the clip"}},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": shortened(names, 40),
            "autorange": "reversed",
        },
    }
    caption = f"{video}: scores of each person's actions over time; a click shows the moment"
    return Plot(caption, [data], layout, height_px=140 + 22 * len(names), seeks=clip)
