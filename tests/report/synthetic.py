"""Result folders in the form in which the commands write them, without a model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.video.writer import write_video

MARKUP = (
    "<script>window.hacked=1;alert(1)</script>",
    '"><img src=x onerror="window.hacked=1;alert(1)">',
    "</script><script>window.hacked=1</script>",
    "<b>bold</b>",
    "&lt;b&gt; &amp;",
    "escape \x1b[31m and \u202e",
    "surrogate \udcff",
    "%{x} {{ title }} $x$ <br>line",
)


def frames_of(number: int, size: tuple[int, int] = (24, 32)) -> Iterator[np.ndarray]:
    """Grey frames, each brighter than the one before."""
    return (np.full((*size, 3), 4 * t, np.uint8) for t in range(number))


def write_clip(path: Path, num_frames: int = 20, fps: float = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames_of(num_frames), fps, options={"preset": "ultrafast", "threads": "1"})
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path: Path, records: Iterable[Any], torn: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records) + torn)
    return path


def steps(number: int, **figures: float) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of training steps; the loss is one over the step."""
    return [
        {"step": s, "kind": "train", "loss": 1 / s, "lr": 0.1, "step_sec": 2.0, "data_sec": 0.5}
        | figures
        for s in range(1, number + 1)
    ]


def write_evaluation(
    folder: Path,
    *,
    names: Sequence[str],
    labels: Sequence[Sequence[int]],
    scores: Any,
    class_names: Sequence[str],
    multi_label: bool = False,
    **report: Any,
) -> Path:
    """What `evaluate` writes of videos that are listed in val.csv beside it.

    Args:
        scores: probabilities [N, V, L].
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "scores.npz",
        names=np.array(names),
        labels=np.array([";".join(map(str, ids)) for ids in labels]),
        scores=np.asarray(scores, np.float32),
        class_names=np.array(class_names),
    )
    listed = folder / "val.csv"
    with open(listed, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [
            (name, ";".join(class_names[c] for c in ids))
            for name, ids in zip(names, labels, strict=True)
        ]
        csv.writer(file).writerows([("path", "class_name"), *rows])
    figures = {"mean_average_precision": 0.5} if multi_label else {"top1": 0.5, "top5": 1.0}
    data = {"val": str(listed), "root": None, "split": None, "frames_fps": None}
    content = {
        "checkpoint": "runs/mine",
        "data": str(listed),
        "expected": len(names),
        "decoded": len(names),
        "views": {"num_clips": 2, "num_crops": 1},
        "video": figures,
        "clip": figures,
        "video_failed_as_wrong": figures,
        "failed": [],
        "settings": {"data": data},
        **report,
    }
    return write_json(folder / "report.json", content).parent


def one_hot(classes: Sequence[int], num_classes: int, probability: float = 0.9) -> np.ndarray:
    """Scores float64 [N, 1, L] of sure predictions; the other classes share the rest."""
    rest = (1 - probability) / (num_classes - 1)
    scores = np.full((len(classes), 1, num_classes), rest)
    scores[np.arange(len(classes)), 0, classes] = probability
    return scores
