import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.evaluation.accuracy import (
    VideoScores,
    average_precision_by_class,
    confusion,
    mean_class_accuracy,
    summarize,
    top_k_correct,
)


def test_top_k():
    scores = np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
    labels = np.array([2, 2, 0])
    assert top_k_correct(scores, labels, 1).tolist() == [False, False, False]
    assert top_k_correct(scores, labels, 2).tolist() == [True, True, False]
    assert top_k_correct(scores, labels, 3).tolist() == [True, True, True]


def test_equal_scores_do_not_all_count_as_right():
    """Equal scores for all classes are right for one class only."""
    scores, labels = np.full((4, 4), 0.25), np.arange(4)
    assert top_k_correct(scores, labels, 1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    """All comparisons with NaN are false, so that nothing would be ahead of the right class."""
    scores, labels = np.array([[0.5, 0.5], [value, 0.0], [0.0, value]]), np.array([0, 1, 0])
    message = "those of 2 of 3 examples are not finite"
    with pytest.raises(ValueError, match=message):
        top_k_correct(scores, labels, 1)
    with pytest.raises(ValueError, match=message):
        average_precision_by_class(scores, labels[:, None] == [0, 1])
    with pytest.raises(ValueError, match=message):
        confusion(scores, labels)
    videos = [VideoScores(i, row[None]) for i, row in enumerate(scores)]
    for multi_label in (False, True):
        with pytest.raises(ValueError, match=message):
            summarize(videos, expected=[(0,), (1,), (0,)], multi_label=multi_label)


@given(st.integers(0, 2**32 - 1))
def test_top_k_equals_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (6, 5)).astype(float)
    labels = rng.integers(0, 5, 6)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 2, 5):
        assert top_k_correct(scores, labels, k).tolist() == [
            label in row for label, row in zip(labels, ranked[:, :k], strict=True)
        ]


def test_mean_class_accuracy_by_hand():
    # 3 of 4 of class 0, none of class 2, 1 of 1 of class 3; class 1 has no example.
    correct = np.array([True, True, True, False, False, True])
    labels = np.array([0, 0, 0, 0, 2, 3])
    assert mean_class_accuracy(correct, labels) == pytest.approx((3 / 4 + 0 + 1) / 3)


@given(st.integers(0, 2**32 - 1))
def test_mean_class_accuracy_is_the_mean_recall_of_the_confusion_matrix(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.random((12, 5)), rng.integers(0, 5, 12)
    counts = confusion(scores, labels)
    recall = [row[c] / row.sum() for c, row in enumerate(counts) if row.sum()]
    found = mean_class_accuracy(top_k_correct(scores, labels, 1), labels)
    assert found == pytest.approx(sum(recall) / len(recall))


def test_average_precision_by_hand():
    # ranks: positive, negative, positive -> (1/1 + 2/3) / 2
    scores = np.array([[0.9], [0.8], [0.7]])
    targets = np.array([[True], [False], [True]])
    assert average_precision_by_class(scores, targets)[0] == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_without_positives_is_nan_and_ties_share():
    scores = np.array([[0.5, 0.1], [0.5, 0.2]])
    targets = np.array([[True, False], [False, False]])
    result = average_precision_by_class(scores, targets)
    assert result[0] == pytest.approx(0.5)  # both of the tied videos are retrieved together
    assert np.isnan(result[1])


def test_confusion_counts_label_by_prediction():
    scores = np.eye(3)[[0, 2, 2]]
    assert confusion(scores, np.array([0, 1, 2])).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def views(index, *rows):
    return VideoScores(index, np.array(rows, dtype=np.float32))


def test_summary_counts_failures_as_wrong_and_views_apart():
    videos = [
        views(0, [0.9, 0.1], [0.4, 0.6]),  # right on average, wrong in one view
        views(2, [0.7, 0.3], [0.8, 0.2]),  # wrong
    ]
    report = summarize(videos, expected=[(0,), (0,), (1,), (1,)], multi_label=False)
    assert report["decoded"] == 2
    assert report["video"] == {"top1": 0.5, "mean_class_accuracy": 0.5}
    assert report["video_failed_as_wrong"] == {"top1": 0.25, "mean_class_accuracy": 0.25}
    assert report["clip"] == {"top1": 0.25, "mean_class_accuracy": 0.25}


def test_a_failed_video_counts_in_its_class():
    """Of class 0, one of three was read; class 1 has one, which is wrong; class 2 has none."""
    videos = [views(0, [0.9, 0.1, 0.0]), views(3, [0.8, 0.2, 0.0])]
    report = summarize(videos, expected=[(0,), (0,), (0,), (1,)], multi_label=False)
    assert report["video"]["mean_class_accuracy"] == 1 / 2
    failed = report["video_failed_as_wrong"]
    assert failed["top1"] == 1 / 4
    assert failed["mean_class_accuracy"] == pytest.approx(1 / 6)


def test_summary_of_several_labels():
    videos = [
        VideoScores(0, np.array([[0.9, 0.8, 0.1]])),
        VideoScores(1, np.array([[0.2, 0.9, 0.1]])),
    ]
    report = summarize(videos, expected=[(0, 1), (1,), (2,)], multi_label=True)
    assert report["video"]["mean_average_precision"] == pytest.approx(1.0)
    assert report["classes_without_positives"] == 1
    assert report["clip"]["mean_average_precision"] == pytest.approx(1.0)
    # The third video was not read: its class 2 ranks it last of three, with nothing to its name.
    assert report["video_failed_as_wrong"]["mean_average_precision"] == pytest.approx(
        (1 + 1 + 1 / 3) / 3
    )


def test_nothing_decoded():
    assert summarize([], expected=[(0,)] * 3, multi_label=False) == {"expected": 3, "decoded": 0}
