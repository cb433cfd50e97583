"""Accuracy of classification: top-k, of each class, average precision of several labels per video,
confusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hiera_video.data.mixing import multi_hot
from hiera_video.evaluation.ava import mean_of_known


@dataclass(frozen=True)
class VideoScores:
    """The views of one evaluated video."""

    index: int  # of its record
    views: np.ndarray  # float32 [V, L], probabilities
    backend: str = "pyav"  # the library that decoded


def top_k_correct(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether each label [N] is among the k highest of its scores [N, L]: bool [N].

    Equal scores are ranked by ascending class id.

    Raises:
        ValueError: scores that are not finite, as of the functions below.
    """
    _check_finite(scores)
    at_label = np.take_along_axis(scores, labels[:, None], axis=1)
    ahead = (scores > at_label) | (
        (scores == at_label) & (np.arange(scores.shape[1]) < labels[:, None])
    )
    return ahead.sum(axis=1) < k


def mean_class_accuracy(correct: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the part of their examples that are correct ("balanced accuracy").

    Classes without examples are left out.

    Args:
        correct: bool [N], of one example or more.
        labels: class ids, int [N].
    """
    counts = np.bincount(labels)
    return mean_of_known(np.bincount(labels, correct)[counts > 0] / counts[counts > 0])


def average_precision_by_class(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, float64 [L]; NaN for a class without positives.

    It is the mean of the precision at each positive, without interpolation; examples of equal score
    share a rank.

    Args:
        scores: [N, L].
        targets: bool [N, L].
    """
    _check_finite(scores)
    result = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked, hits = scores[order, c], targets[order, c].cumsum()
        if not len(hits) or not hits[-1]:
            continue
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores
        precision, added = hits[ends] / (ends + 1), np.diff(hits[ends], prepend=0)
        result[c] = (precision * added).sum() / hits[-1]
    return result


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Numbers of videos by label (row) and predicted class (column), int64 [L, L]."""
    _check_finite(scores)
    num_classes = scores.shape[1]
    flat = labels * num_classes + scores.argmax(axis=1)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def _check_finite(scores: np.ndarray) -> None:
    """Raises ValueError for scores [N, L] that no figure can be computed of: all comparisons with
    NaN are false, so that such scores would count as right."""
    if num_bad := int((~np.isfinite(scores)).any(axis=1).sum()):
        raise ValueError(
            f"scores: those of {num_bad} of {len(scores)} examples are not finite; leave them out, "
            "and count them as wrong"
        )


def summarize(
    videos: Sequence[VideoScores], *, expected: Sequence[tuple[int, ...]], multi_label: bool
) -> dict[str, Any]:
    """Accuracy over the videos that could be read, and with all others counted as wrong.

    Args:
        videos: the videos that could be read.
        expected: labels of all videos of the list, in its order.
        multi_label: videos may have several labels.

    Returns:
        Top-k accuracies and the mean accuracy of the classes, or mean average precision with
        several labels per video, as fractions 0..1, under "video" (views averaged), "clip" (each
        view alone) and "video_failed_as_wrong".
    """
    result: dict[str, Any] = {"expected": len(expected), "decoded": len(videos)}
    if not videos:
        return result
    averaged = np.stack([v.views.mean(axis=0, dtype=np.float64) for v in videos])
    truth = [expected[video.index] for video in videos]
    view_truth = [expected[video.index] for video in videos for _ in video.views]
    views = np.concatenate([video.views for video in videos])
    levels = {"video": (averaged, truth), "clip": (views, view_truth)}
    read = {video.index for video in videos}
    missing = [labels for i, labels in enumerate(expected) if i not in read]
    if multi_label:
        padded = np.concatenate([averaged, np.zeros((len(missing), averaged.shape[1]))])
        levels["video_failed_as_wrong"] = (padded, truth + missing)
        for level, (scores, labels) in levels.items():
            targets = multi_hot(labels, scores.shape[1]).numpy().astype(bool)
            by_class = average_precision_by_class(scores, targets)
            result[level] = {"mean_average_precision": mean_of_known(by_class)}
        present = {label for labels in truth for label in labels}
        result["classes_without_positives"] = averaged.shape[1] - len(present)
        return result
    levels["video_failed_as_wrong"] = (averaged, truth + missing)
    for level, (scores, labels) in levels.items():
        right = np.array([ids[0] for ids in labels])
        failed = np.zeros(len(labels) - len(scores), bool)
        correct = {
            k: np.append(top_k_correct(scores, right[: len(scores)], k), failed)
            for k in (1, 5)
            if k < scores.shape[1] or k == 1
        }
        result[level] = {f"top{k}": float(hits.mean()) for k, hits in correct.items()}
        result[level]["mean_class_accuracy"] = mean_class_accuracy(correct[1], right)
    return result
