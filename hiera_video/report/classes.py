"""Sections about the evaluation of a classifier: accuracy, confusions, and single videos."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from hiera_video.errors import UserError, counted
from hiera_video.evaluation.accuracy import average_precision_by_class
from hiera_video.evaluation.results import top_classes
from hiera_video.report.attention import attention_section
from hiera_video.report.blocks import (
    Bar,
    Block,
    Card,
    Column,
    Gallery,
    Notice,
    Plot,
    Section,
    Table,
)
from hiera_video.report.common import SHADES, shortened
from hiera_video.report.media import MediaFolder
from hiera_video.report.runs import Evaluation, Run, evaluation_command
from hiera_video.report.scores import EvaluatedVideos, Scores

MAX_CLASSES = 40  # of a drawn confusion matrix: more are not legible
MAX_PAIRS = 100  # of confused classes in the table
MAX_ROWS = 10_000  # of the table of classes, which a browser still lays out at once
SUSPECT_FRAC = 0.1  # of the training videos, in the table
MAX_SUSPECTS = 500
READING = "root", "split", "frames_fps", "stills"  # of a training list
LEVELS = {
    "video": "views averaged",
    "video_failed_as_wrong": "the same, failed videos as wrong",
    "clip": "single views",
}


def evaluation_sections(run: Run, folder: MediaFolder, num_videos: int) -> list[Section]:
    """Sections about each evaluation of a run, and about labels of its training list.

    Args:
        num_videos: most videos of a gallery.
    """
    sections = []
    has_training = False
    for evaluation in run.evaluations:
        is_training = is_of_training(run, evaluation)
        has_training |= is_training
        try:
            scores = Scores.read(evaluation)
        except UserError as error:
            sections.append(Section(f"Accuracy: {evaluation.folder.name}", [Notice(str(error))]))
            continue
        videos = EvaluatedVideos(evaluation, scores, folder)
        sections.append(accuracy(evaluation, scores))
        if not len(scores.names):
            continue
        if not scores.multi_label:
            sections.append(confusions(evaluation, scores))
        if is_training:
            sections.append(suspects(evaluation, scores, videos, num_videos))
        else:
            sections.append(hardest(evaluation, scores, videos, num_videos))
            sections.append(attention_section(evaluation, scores, videos, num_videos))
    if not run.evaluations:
        text = "The run was not evaluated. Accuracy, confusions and videos appear after:"
        notice = Notice(text, evaluation_command(run, "evaluate", "data.val=LIST"))
        sections.append(Section("Accuracy", [notice]))
    data = run.config.get("data") or {}
    train = data.get("train")
    if train and not has_training and (run.folder / "weights").is_dir():
        output = f"output_dir={run.folder / 'eval_train'}"
        text = "Videos whose label may be wrong appear when the training list has been evaluated:"
        given = {key: data.get(key) for key in READING}
        reading = [f"data.{k}={v}" for k, v in given.items() if v not in (None, "false")]
        command = evaluation_command(run, "evaluate", f"data.val={train}", *reading, output)
        notice = Notice(text, command)
        sections.append(Section("Labels to check", [notice]))
    return sections


def is_of_training(run: Run, evaluation: Evaluation) -> bool:
    """Whether the evaluated list is the one that the run was trained on."""
    data = run.config.get("data") or {}
    train, used = data.get("train"), evaluation.settings.get("data", {})
    if not train or "val" not in used:
        return False
    same = os.path.abspath(train) == os.path.abspath(used["val"])
    return same and data.get("split") == used.get("split")


def accuracy(evaluation: Evaluation, scores: Scores) -> Section:
    """Figures of report.json, and each class."""
    report = evaluation.report
    figures = [
        [words, *(report[level].get(key) for key in report["video"])]
        for level, words in LEVELS.items()
        if level in report and "video" in report
    ]
    blocks: list[Block] = []
    if figures:
        names = [key.replace("_", " ") for key in report["video"]]
        columns = [Column("predictions"), *(Column(name, "percent", 2) for name in names)]
        blocks.append(Table("Figures of report.json", columns, figures))
    if len(scores.names):
        table = class_table(scores)
        if len(table.rows) > MAX_ROWS:
            text = f"The table of classes has the first {MAX_ROWS:,} of {len(table.rows):,}."
            blocks.append(Notice(text))
            table = replace(table, rows=table.rows[:MAX_ROWS])
        blocks.append(table)
    views = report.get("views", {})
    intro = (
        f"{evaluation.folder}: {report.get('decoded')} of {report.get('expected')} videos of "
        f"{report.get('data')}, {views.get('num_clips')} x {views.get('num_crops')} views, "
        f"weights {report.get('checkpoint')}."
    )
    return Section(f"Accuracy: {evaluation.folder.name}", blocks, intro)


def class_table(scores: Scores) -> Table:
    """Each class with its videos: accuracy and what it is taken for, or average precision."""
    counts = scores.targets.sum(axis=0)
    if scores.multi_label:
        ap = average_precision_by_class(scores.mean, scores.targets)
        columns = [
            Column("class"),
            Column("videos", "number"),
            Column("average precision", "percent"),
        ]
        rows = [
            [name, int(n), float(a) if n else None]
            for name, n, a in zip(scores.class_names, counts, ap, strict=True)
        ]
        return Table("Classes", columns, rows)
    predicted, labels = scores.mean.argmax(axis=1), scores.targets.argmax(axis=1)
    right = np.bincount(labels[predicted == labels], minlength=len(counts))
    taken = np.bincount(predicted, minlength=len(counts))
    columns = [
        Column("class"),
        Column("videos", "number"),
        Column("recall", "percent"),
        Column("predicted", "number"),
        Column("precision", "percent"),
        Column("most often taken for"),
    ]
    wrong = np.flatnonzero(predicted != labels)
    rows = []
    for c, name in enumerate(scores.class_names):
        others = predicted[wrong[labels[wrong] == c]]
        most = ""
        if len(others):
            tally = np.bincount(others)
            most = f"{scores.class_names[tally.argmax()]} ({tally.max()})"
        recall = float(right[c] / counts[c]) if counts[c] else None
        precision = float(right[c] / taken[c]) if taken[c] else None
        rows.append([name, int(counts[c]), recall, int(taken[c]), precision, most])
    return Table("Classes", columns, rows)


def confusions(evaluation: Evaluation, scores: Scores) -> Section:
    """The confusion matrix, of many classes the most confused ones, and the most confused pairs."""
    labels, predicted = scores.targets.argmax(axis=1), scores.mean.argmax(axis=1)
    pairs, numbers = np.unique(
        np.stack([labels, predicted])[:, labels != predicted], axis=1, return_counts=True
    )
    totals = scores.targets.sum(axis=0)
    order = np.argsort(-numbers, kind="stable")
    rows = [
        [
            scores.class_names[pairs[0, n]],
            scores.class_names[pairs[1, n]],
            int(numbers[n]),
            float(numbers[n] / totals[pairs[0, n]]),
        ]
        for n in order[:MAX_PAIRS]
    ]
    columns = [
        Column("class"),
        Column("taken for"),
        Column("videos", "number"),
        Column("of the class", "percent"),
    ]
    chosen = np.arange(len(scores.class_names))
    caption = "Videos by class (rows) and predicted class (columns), as shares of the class"
    if len(chosen) > MAX_CLASSES:
        # Classes in the order in which the pairs name them, each followed by its partner.
        named = dict.fromkeys(pairs[:, order].T.ravel().tolist())
        chosen = np.array([*named, *(c for c in chosen.tolist() if c not in named)][:MAX_CLASSES])
        caption += f"; the {MAX_CLASSES} most confused of {len(scores.class_names)} classes"
    place = np.full(len(scores.class_names), -1)
    place[chosen] = np.arange(len(chosen))
    counts = np.zeros((len(chosen), len(chosen)), int)
    shown = (place[labels] >= 0) & (place[predicted] >= 0)
    np.add.at(counts, (place[labels[shown]], place[predicted[shown]]), 1)
    names = [scores.class_names[c] for c in chosen]
    shares = counts / totals[chosen].clip(1)[:, None]
    most = float(shares[~np.eye(len(chosen), dtype=bool)].max(initial=0))
    heat = {
        "type": "heatmap",
        "x": list(range(len(names))),
        "y": list(range(len(names))),
        "z": shares.round(4).tolist(),
        "text": [
            [f"{a} taken for {b}: {counted(n, 'video')}" for b, n in zip(names, row, strict=True)]
            for a, row in zip(names, counts.tolist(), strict=True)
        ],
        "hoverinfo": "text",
        "colorscale": SHADES,
        "zmin": 0,
        "zmax": most or 1,  # beside the classes' own shares, confusions would be pale
        "colorbar": {"tickformat": ".0%"},
    }
    axis = {"tickvals": list(range(len(names))), "ticktext": shortened(names, 24)}
    layout = {"xaxis": {**axis, "tickangle": -60}, "yaxis": {**axis, "autorange": "reversed"}}
    caption += "." if not most else ". Colours end at the largest confusion."
    caption += " Drag over a part to enlarge it, click twice to see all."
    height_px = min(900, 220 + 18 * len(names))
    blocks: list[Block] = [Plot(caption, [heat], layout, height_px)]
    if rows:
        blocks.append(Table("Most confused pairs of classes", columns, rows))
    else:
        blocks.append(Notice("No video was taken for another class."))
    return Section(f"Confusions: {evaluation.folder.name}", blocks)


def hardest(
    evaluation: Evaluation, scores: Scores, videos: EvaluatedVideos, num_videos: int
) -> Section:
    """Videos in the orders in which one looks for mistakes."""
    most, least = "Highest loss", "Lowest loss"
    if not scores.multi_label:
        most, least = "Lowest probability of the label", "Highest probability of the label"
    orders = {most: np.argsort(-scores.loss, kind="stable")}
    if not scores.multi_label:
        labels, predicted = scores.targets.argmax(axis=1), scores.mean.argmax(axis=1)
        is_right = predicted == labels
        accuracies = np.bincount(labels[is_right], minlength=scores.mean.shape[1])
        accuracies = accuracies / scores.targets.sum(axis=0).clip(1)
        # A sure mistake in a class that is otherwise recognised.
        surprise = np.where(is_right, 0, scores.mean.max(axis=1) * accuracies[labels])
        ranked = np.argsort(-surprise, kind="stable")
        orders["Most surprising: sure mistakes in classes that are otherwise right"] = ranked[
            surprise[ranked] > 0
        ]
        orders["Taken for another class, most frequent pairs first"] = by_pair(scores)
    if scores.views.shape[1] > 1:
        spread = scores.of_label.std(axis=1)
        orders["Views that disagree most"] = np.argsort(-spread, kind="stable")
    orders[least] = np.argsort(scores.loss, kind="stable")
    block = gallery(
        "Videos", scores, videos, {name: order[:num_videos] for name, order in orders.items()}
    )
    return Section(f"Videos: {evaluation.folder.name}", [block])


def by_pair(scores: Scores) -> np.ndarray:
    """Videos taken for another class: those of the most confused pair first, the surest first."""
    labels, predicted = scores.targets.argmax(axis=1), scores.mean.argmax(axis=1)
    wrong = np.flatnonzero(labels != predicted)
    pairs = np.stack([labels, predicted])[:, wrong]
    _, inverse, numbers = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    pair = inverse.reshape(-1)
    sureness = scores.mean[wrong].max(axis=1, initial=0)
    return wrong[np.lexsort((-sureness, pair, -numbers[pair]))]


def suspects(
    evaluation: Evaluation, scores: Scores, videos: EvaluatedVideos, num_videos: int
) -> Section:
    """Training videos that disagree most with their label."""
    ranked = np.argsort(-scores.loss, kind="stable")
    listed = ranked[: min(MAX_SUSPECTS, max(num_videos, round(SUSPECT_FRAC * len(ranked))))]
    predicted = scores.mean.argmax(axis=1)
    columns = [
        Column("rank", "number"),
        Column("video"),
        Column("label"),
        Column("most probable class"),
        Column("its probability", "percent"),
        Column("loss", "number", 2),
    ]
    rows = [
        [
            rank,
            scores.names[n],
            scores.label(n),
            scores.class_names[predicted[n]],
            float(scores.mean[n, predicted[n]]),
            float(scores.loss[n]),
        ]
        for rank, n in enumerate(listed, 1)
    ]
    blocks: list[Block] = [
        Table("Training videos with the highest loss against their label", columns, rows),
        gallery("The first of them", scores, videos, {"Highest loss": listed[:num_videos]}),
    ]
    intro = (
        "Wrong labels are among those that the model contradicts although it was trained on them. "
        "Rare and difficult videos are among these, too."
    )
    return Section(f"Labels to check: {evaluation.folder.name}", blocks, intro)


def gallery(
    caption: str,
    scores: Scores,
    videos: EvaluatedVideos,
    orders: dict[str, np.ndarray],
) -> Gallery:
    """A card for each video of any of the orders."""
    numbers = list(dict.fromkeys(int(n) for order in orders.values() for n in order))
    place = {n: i for i, n in enumerate(numbers)}
    num_views = scores.views.shape[1]
    cards = [
        Card(
            scores.names[n],
            videos.media(n),
            facts=[("label", scores.label(n))],
            bars=[
                Bar(scores.class_names[c], p, c in scores.labels[n])
                for c, p in top_classes(scores.mean[n], 5)
            ],
            marks=scores.of_label[n].tolist() if num_views > 1 else (),
            marks_label=f"label in each of {counted(num_views, 'view')}",
        )
        for n in numbers
    ]
    return Gallery(
        caption, cards, [(name, [place[int(n)] for n in order]) for name, order in orders.items()]
    )
