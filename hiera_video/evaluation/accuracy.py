"""Accuracy of classification: top-k, average precision for several labels a video, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class VideoScores:
    """The views of one evaluated video."""

    index: int  # of its record
    labels: tuple[int, ...]
    views: np.ndarray  # float32 [V, L], probabilities
    backend: str = "pyav"  # the library that decoded


def top_k_correct(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Bool [N]: whether the label [N] is among the k highest of scores [N, L].

    A label that ties with others counts as ranked behind those of lower class id.
    """
    at_label = np.take_along_axis(scores, labels[:, None], axis=1)
    ahead = (scores > at_label) | (
        (scores == at_label) & (np.arange(scores.shape[1]) < labels[:, None])
    )
    return ahead.sum(axis=1) < k


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, float64 [L]; NaN for a class without positives.

    Args:
        scores: [N, L].
        targets: bool [N, L].

    The mean of the precision at each positive, positives of equal score counted together.
    """
    result = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked, hits = scores[order, c], targets[order, c].cumsum()
        if not len(hits) or not hits[-1]:
            continue
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of runs of equal score
        precision, recalled = hits[ends] / (ends + 1), np.diff(hits[ends], prepend=0)
        result[c] = (precision * recalled).sum() / hits[-1]
    return result


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Int64 [L, L]: videos of each label (row) by predicted class (column)."""
    num_classes = scores.shape[1]
    flat = labels * num_classes + scores.argmax(axis=1)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def summarize(
    videos: Sequence[VideoScores], *, expected: Sequence[tuple[int, ...]], multi_label: bool
) -> dict[str, Any]:
    """Accuracy over the evaluated videos, and with the missing ones counted as wrong.

    Args:
        videos: those that could be read.
        expected: the labels of all that should have been, in the order of the list.

    Returns:
        Fractions 0..1 under `video` (views averaged) and `clip` (each view for itself); for several
        labels a video, mean average precision instead.
    """
    counts = {"expected": len(expected), "decoded": len(videos)}
    if not videos:
        return counts
    averaged = np.stack([v.views.mean(axis=0, dtype=np.float64) for v in videos])
    result: dict[str, Any] = dict(counts)
    if multi_label:
        labels_of = [video.labels for video in videos]
        views_of = [video.labels for video in videos for _ in video.views]
        read = {video.index for video in videos}
        missing = [labels for i, labels in enumerate(expected) if i not in read]
        nothing = np.zeros((len(missing), averaged.shape[1]))
        for level, scores, labels in (
            ("video", averaged, labels_of),
            ("video_failed_as_wrong", np.concatenate([averaged, nothing]), labels_of + missing),
            ("clip", np.concatenate([video.views for video in videos]), views_of),
        ):
            per_class = average_precision(scores, _multi_hot(labels, scores.shape[1]))
            result[level] = {"mean_average_precision": _nanmean(per_class)}
        present = {label for labels in labels_of for label in labels}
        result["classes_without_positives"] = averaged.shape[1] - len(present)
        return result
    truth = np.array([video.labels[0] for video in videos])
    views = np.concatenate([video.views for video in videos])
    view_truth = np.repeat(truth, [len(video.views) for video in videos])
    for level, scores, right in (("video", averaged, truth), ("clip", views, view_truth)):
        result[level] = {
            f"top{k}": float(top_k_correct(scores, right, k).mean())
            for k in (1, 5)
            if k < scores.shape[1] or k == 1
        }
    share = len(videos) / len(expected)
    result["video_failed_as_wrong"] = {k: v * share for k, v in result["video"].items()}
    return result


def _multi_hot(labels: Sequence[tuple[int, ...]], num_classes: int) -> np.ndarray:
    targets = np.zeros((len(labels), num_classes), dtype=bool)
    for row, classes in zip(targets, labels, strict=True):
        row[list(classes)] = True
    return targets


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
