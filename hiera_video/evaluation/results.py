"""Files that an evaluation leaves: scores to average again, and predictions to read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hiera_video.data.batches import Failure
from hiera_video.data.videos.records import VideoRecord
from hiera_video.evaluation.accuracy import VideoScores, confusion
from hiera_video.evaluation.views import average_views
from hiera_video.files import replacing


def write_scores(
    path: Path,
    videos: Sequence[VideoScores],
    records: Sequence[VideoRecord],
    class_names: Sequence[str],
) -> None:
    """`names` [N], `labels` [N] (ids joined by ';'), `scores` float32 [N, V, L], `class_names` [L].

    The mean of `scores` over axis 1 is the prediction.
    """
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(
            file,
            names=np.array([records[v.index].name for v in videos]),
            labels=np.array([";".join(map(str, v.labels)) for v in videos]),
            scores=np.stack([v.views for v in videos]) if videos else np.empty((0, 0, 0)),
            class_names=np.array(class_names),
        )


def write_predictions(
    path: Path,
    videos: Sequence[VideoScores],
    failures: Sequence[Failure],
    records: Sequence[VideoRecord],
    class_names: Sequence[str],
    top_k: int = 5,
) -> None:
    """One row a video, in the order of the list: its classes, and the likeliest with probabilities.

    A video that could not be read has its reason in the last column and nothing in between.
    """
    scored = {video.index: video for video in videos}
    reasons = {failure.name: failure.message for failure in failures}
    top_k = min(top_k, len(class_names))
    ranks = range(1, top_k + 1)
    header = ["video", "label", *(f"{what}{k}" for k in ranks for what in ("class", "probability"))]
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "failure"])
        for index, record in enumerate(records):
            label = ";".join(class_names[c] for c in record.labels)
            row = [record.name, label]
            if index in scored:
                for c, p in top_classes(average_views(scored[index].views), top_k):
                    row += [class_names[c], f"{p:.6f}"]
                writer.writerow([*row, ""])
            else:
                writer.writerow([*row, *[""] * (2 * top_k), reasons[record.name]])


def write_confusion(path: Path, videos: Sequence[VideoScores], class_names: Sequence[str]) -> None:
    """One row a class and one column a predicted class: how many of its videos went there."""
    scores = np.stack([average_views(video.views) for video in videos])
    counts = confusion(scores, np.array([video.labels[0] for video in videos]))
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *class_names])
        writer.writerows(
            [name, *row] for name, row in zip(class_names, counts.tolist(), strict=True)
        )


def top_classes(scores: np.ndarray, top_k: int) -> list[tuple[int, float]]:
    """The `top_k` likeliest classes of scores [L], with their scores, best first."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [(int(c), float(scores[c])) for c in best]
