"""Sections that runs of all kinds have: curves, differences in their settings, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hiera_video.errors import counted
from hiera_video.report.blocks import Block, Column, Notice, Plot, Section, Table
from hiera_video.report.runs import Run, leaves, unique_names

MAX_POINTS = 1_000  # of a curve; more steps are averaged
MAX_FAILURES = 500  # rows
COLOURS = ("#3b82f6", "#e4572e", "#17a673", "#a855f7", "#d4a017", "#0ea5b7", "#db2777", "#78716c")
SHADES = [[0, "#e8eef6"], [1, "#0b5cad"]]  # of heatmaps, from 0 to the highest value
TITLES = {
    "loss": "Loss of the training steps",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient, before it is clipped",
    "waiting": "Share of each step that waits for data",
}
FIGURES = {  # of validation, which are all shares, with the words for them
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_class_accuracy": "Mean accuracy of the classes",
    "mean_average_precision": "Mean average precision",
    "map_activitynet": "Frame mAP by the protocol activitynet",
    "map_slowfast": "Frame mAP by the protocol slowfast",
    "ap_bbox": "AP of boxes",
    "ap_segm": "AP of masks",
}


def overview(runs: Sequence[Run]) -> Section:
    """What each run is, and what is missing of it."""
    blocks: list[Block] = [
        Notice(f"{run.name}: {problem}") for run in runs for problem in run.problems
    ]
    rows = []
    for run, name in zip(runs, unique_names(runs), strict=True):
        start = (run.record.get("starts") or [{}])[-1]
        steps = [line["step"] for line in run.metrics if line.get("kind") == "train"]
        rows.append(
            [
                name,
                run.kind,
                max(steps, default=None),
                "yes" if (run.folder / "weights").is_dir() else "no" if run.config else None,
                start.get("started"),
                start.get("device"),
                start.get("hiera_video"),
                start.get("torch"),
            ]
        )
    names = "run", "kind", "steps", "weights", "last start", "device", "hiera_video", "torch"
    columns = [Column(n, "number" if n == "steps" else "text") for n in names]
    blocks.append(Table("Runs", columns, rows))
    if len(runs) > 1:
        blocks.append(differing(runs))
    return Section("Overview", blocks)


def differing(runs: Sequence[Run]) -> Block:
    """A table of the settings that are not the same in all runs."""
    settings = [dict(leaves(run.config)) for run in runs]
    keys = sorted({key for values in settings for key in values})
    rows = [
        [key, *(values.get(key) for values in settings)]
        for key in keys
        if len({values.get(key) for values in settings}) > 1
    ]
    if not rows:
        return Notice("All settings of the runs are the same.")
    columns = [Column("setting"), *(Column(name) for name in unique_names(runs))]
    return Table("Settings that differ", columns, rows)


def curves(runs: Sequence[Run]) -> Section | None:
    """Curves of all runs over one another; None if no step was reported."""
    names = unique_names(runs)
    blocks: list[Block] = []

    def draw(title: str, kind: str, key: str, **style: bool) -> None:
        series = [
            (name, *(waiting(run) if key == "waiting" else run.series(kind, key)))
            for run, name in zip(runs, names, strict=True)
        ]
        if any(len(steps) for _, steps, _ in series):
            blocks.append(line_plot(title, "step", series, **style))

    for key, title in TITLES.items():
        draw(title, "train", key, share=key == "waiting")
    lines = [line for run in runs for line in run.metrics if line.get("kind") == "val"]
    known = dict.fromkeys(key for line in lines for key in line)
    for key in [*(k for k in FIGURES if k in known), *(k for k in known if k not in FIGURES)]:
        if key not in ("step", "kind", "decoded"):
            title = f"Validation: {FIGURES.get(key, key)}"
            draw(title, "val", key, points=True, share=True)
    if not blocks:
        return None
    longest = max(len(run.metrics) for run in runs)
    intro = "Each point is the mean of several steps." if longest > MAX_POINTS else ""
    return Section("Training", blocks, intro)


def waiting(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the share of each that the run waited for data."""
    steps, waited = run.series("train", "data_sec")
    also, lasted = run.series("train", "step_sec")
    if len(steps) != len(also):  # lines of another version
        return np.empty(0), np.empty(0)
    return steps, waited / np.maximum(lasted, 1e-9)


def line_plot(
    title: str,
    x_name: str,
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    points: bool = False,
    share: bool = False,
) -> Plot:
    """A line for each of (name, x, y) that has points."""
    data = []
    for number, (name, x, y) in enumerate(series):
        if len(x):
            shown_x, shown_y = averaged(x, y)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if points or len(x) == 1 else "lines",
                    "name": name,
                    "x": shown_x,
                    "y": shown_y,
                    "line": {"color": COLOURS[number % len(COLOURS)]},
                }
            )
    layout = {
        "xaxis": {"title": {"text": x_name}},
        "yaxis": {"tickformat": ".0%", "range": [0, 1.02]} if share else {"exponentformat": "e"},
        "showlegend": len(series) > 1,
    }
    return Plot(title, data, layout, height_px=280)


def averaged(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """At most `MAX_POINTS` points; each is the mean of as many neighbours."""
    most = -(-len(x) // MAX_POINTS)
    groups = np.arange(len(x)) // most
    counts = np.bincount(groups)
    shown_x, shown_y = (
        [float(f"{mean:.6g}") for mean in np.bincount(groups, values) / counts] for values in (x, y)
    )
    return shown_x, shown_y


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Names of at most `most` characters, for the axes of a plot."""
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]


def failures(runs: Sequence[Run]) -> Section | None:
    """Videos that training, evaluation or extraction could not use; None if there are none."""
    # A video fails in every epoch, each time with a message about other frames.
    rows: dict[tuple[str, ...], list[Any]] = {}
    for run, name in zip(runs, unique_names(runs), strict=True):
        origin = "extraction" if run.kind == "extraction" else "training"
        found = [(origin, failure) for failure in run.failures]
        for evaluation in run.evaluations:
            where = f"evaluation {evaluation.folder.name}"
            found += [(where, failure) for failure in evaluation.report.get("failed", [])]
        for where, failure in found:
            title = failure.get("name") or failure.get("video")
            message = failure.get("message") or failure.get("error")
            cause = failure.get("cause")
            key = tuple(map(str, (failure.get("path") or title, cause, where, name)))
            rows.setdefault(key, [title, cause, message, where, name])
    distinct = list(rows.values())
    if not distinct:
        return None
    causes = Counter(str(row[1]) for row in distinct).most_common()
    listed = ", ".join(f"{cause} {number}" for cause, number in causes)
    columns = [Column(n) for n in ("video", "cause", "what was found", "where", "run")]
    blocks: list[Block] = []
    if len(distinct) > MAX_FAILURES:
        blocks.append(Notice(f"The first {MAX_FAILURES} of {len(distinct)} failures are listed."))
    blocks.append(Table("Videos that could not be used", columns, distinct[:MAX_FAILURES]))
    return Section("Failures", blocks, f"{counted(len(distinct), 'failure')} by cause: {listed}.")
