from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from hiera_video.data.batches import Failure
from hiera_video.data.videos.records import VideoRecord
from hiera_video.evaluation.views import Scorer, average_views, score_views
from hiera_video.models.normalize import Normalize


@dataclass
class Video:
    frames: torch.Tensor
    num_views: int
    index: int = 0

    def view(self, frames, i, size):
        return frames[:1, : size[0], : size[1]] + i


class Brightness(torch.nn.Module):
    """Logits that depend on a view alone: (its mean, 0)."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return torch.stack([x.mean(dim=(1, 2, 3, 4)), torch.zeros(len(x))], dim=1)


def scorer(batch_size, **changes):
    """Of pixels divided by 10."""
    normalize = Normalize([0.0] * 3, [10 / 255] * 3)
    device = torch.device("cpu")
    return Scorer(Brightness(), normalize, device=device, batch_size=batch_size, **changes)


def score(videos, batch_size, **changes):
    how = scorer(batch_size, **changes)
    return list(score_views(how, videos, (4, 4))), how.model.batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_views_of_several_videos_share_batches(batch_size):
    videos = [
        Video(torch.full((2, 6, 6, 3), value, dtype=torch.uint8), num_views)
        for value, num_views in [(0, 3), (10, 1), (20, 4)]
    ]
    scored, batches = score(videos, batch_size)
    assert [video for video, _ in scored] == videos
    assert sum(batches) == 8
    assert all(b == batch_size for b in batches[:-1])
    for (video, scores), value in zip(scored, (0, 10, 20), strict=True):
        logits = np.array([(value + i) / 10 for i in range(video.num_views)])
        expected = 1 / (1 + np.exp(-logits))  # softmax against a logit of 0
        np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)


def test_finished_videos_do_not_pile_up():
    """With views that never fill a batch exactly, videos still leave as soon as they are scored."""
    alive = 0

    def videos():
        nonlocal alive
        for _ in range(50):
            alive += 1
            yield Video(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 3)

    most = 0
    for _ in score_views(scorer(batch_size=4), videos(), (4, 4)):
        most = max(most, alive)
        alive -= 1
    assert most <= 3


def test_several_labels_use_the_sigmoid():
    ((_, scores),), _ = score(
        [Video(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 1)], 1, multi_label=True
    )
    np.testing.assert_allclose(scores, [[0.5, 0.5]])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_video_without_finite_scores_is_a_failure_beside_the_others(multi_label, value):
    """Views of all three are in one batch; the sigmoid of an infinite logit would be finite."""

    class Bad(Brightness):
        def forward(self, x):
            logits = super().forward(x)
            return logits.where(logits < 2, value)

    videos = [
        Video(torch.full((1, 4, 4, 3), brightness, dtype=torch.uint8), 2, index)
        for index, brightness in [(3, 0), (0, 19), (2, 5)]  # the second view of one reaches 2
    ]
    how = replace(scorer(6, multi_label=multi_label), model=Bad())
    records = [VideoRecord(f"/v/{name}.mp4", (), name) for name in "abcd"]
    failures = []
    kept = list(how.finite(score_views(how, videos, (4, 4)), records, failures))
    assert [video.index for video, _ in kept] == [3, 2]
    (failure,) = failures
    assert (failure.name, failure.path, failure.cause) == ("a", "/v/a.mp4", "not_finite")
    assert failure.message.startswith("/v/a.mp4: its scores are not finite in fp32; use other")


def test_other_precisions_are_part_of_the_advice():
    failures = []
    scored = [(Video(torch.zeros(1, 4, 4, 3), 1), np.full((1, 2), np.nan))]
    how = scorer(1, precision="bf16")
    assert not list(how.finite(scored, [VideoRecord("a.mp4", (), "a.mp4")], failures))
    assert "not finite in bf16; use precision=fp32 or other weights" in failures[0].message


def test_a_float16_that_overflows_is_part_of_the_advice():
    record = VideoRecord("a.mp4", (), "a.mp4")
    failure = Failure.not_finite(record, "feature 0 is", "bf16", torch.float16)
    advice = "dtype=float32 (float16 ends at 65504) or precision=fp32 or other weights, for example"
    assert failure.message.startswith(f"a.mp4: feature 0 is not finite in float16; use {advice}")


def test_average_is_that_of_probabilities():
    assert average_views(np.array([[1.0, 0.0], [0.5, 0.5]])).tolist() == [0.75, 0.25]
