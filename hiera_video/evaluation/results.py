"""Files that an evaluation writes: scores of all views, predictions and confusion counts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.batches import Failure
from hiera_video.data.videos.records import VideoList
from hiera_video.evaluation.accuracy import VideoScores, confusion
from hiera_video.evaluation.views import average_views
from hiera_video.files import replacing, write_csv


def write_scores(path: Path, val: VideoList, videos: Sequence[VideoScores]) -> None:
    """Writes the scores of all views as npz.

    It contains `names` [N], `labels` [N] (class ids joined by ';'), `scores` float32 [N, V, L] and
    `class_names` [L]. The mean of `scores` over axis 1 is the prediction.
    """
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(
            file,
            names=np.array([val.records[v.index].name for v in videos]),
            labels=np.array([";".join(map(str, val.records[v.index].labels)) for v in videos]),
            scores=np.stack([v.views for v in videos]) if videos else np.empty((0, 0, 0)),
            class_names=np.array(val.class_names),
        )


def write_predictions(
    path: Path, val: VideoList, videos: Sequence[VideoScores], failures: Sequence[Failure]
) -> None:
    """Writes a csv with a row for each video, in the order of the list.

    The columns are the video, its labels, the five most probable classes with their
    probabilities, and the reason if the video could not be read.
    """
    scored = {video.index: video for video in videos}
    reasons = {failure.name: failure.message for failure in failures}
    top_k = min(5, len(val.class_names))
    columns = [f"{kind}{k}" for k in range(1, top_k + 1) for kind in ("class", "probability")]
    rows: list[list[str]] = [["video", "label", *columns, "failure"]]
    for index, record in enumerate(val.records):
        row = [record.name, ";".join(val.class_names[c] for c in record.labels)]
        if index in scored:
            for c, p in top_classes(average_views(scored[index].views), top_k):
                row += [val.class_names[c], f"{p:.6f}"]
            rows.append([*row, ""])
        else:
            rows.append([*row, *[""] * (2 * top_k), reasons[record.name]])
    write_csv(path, rows, line_end="\r\n")


def write_confusion(path: Path, val: VideoList, videos: Sequence[VideoScores]) -> None:
    """Writes a csv with the number of videos by class (row) and predicted class (column)."""
    scores = np.stack([average_views(video.views) for video in videos])
    counts = confusion(scores, np.array([val.records[video.index].labels[0] for video in videos]))
    rows: list[list[Any]] = [["class", *val.class_names]]
    rows += [[name, *row] for name, row in zip(val.class_names, counts.tolist(), strict=True)]
    write_csv(path, rows, line_end="\r\n")


def top_classes(scores: np.ndarray, top_k: int) -> list[tuple[int, float]]:
    """The `top_k` most probable classes of scores [L], with their scores, best first."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [(int(c), float(scores[c])) for c in best]
