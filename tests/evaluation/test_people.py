"""People found by an instance segmenter, and the choice between it and torchvision's detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiera_video.errors import WeightsError
from hiera_video.evaluation.people import SegmentedPeople, person_detector
from hiera_video.evaluation.views import Scorer
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_segmenter
from hiera_video.models.saving import save_model

CPU = torch.device("cpu")
SIZE = (64, 64)


class Answers(torch.nn.Module):
    """In place of a segmenter: the same objects in each picture, on a canvas of 64 x 64."""

    def __init__(self, boxes, labels, scores, is_finite=True):
        super().__init__()
        self.seen = []
        self.answer = {
            "boxes": torch.tensor(boxes),
            "labels": torch.tensor(labels),
            "scores": torch.tensor(scores),
            "masks": torch.zeros(len(boxes), 28, 28),
            "is_finite": torch.tensor(is_finite),
        }

    def forward(self, x):
        self.seen.append(x)
        return [self.answer] * len(x)


def people_in(model, frames, *, min_score=0.8, precision="fp32"):
    normalize = Normalize([0.0] * 3, [1.0] * 3)
    scorer = Scorer(model, normalize, device=CPU, batch_size=1, precision=precision)
    return SegmentedPeople(scorer, SIZE, 2, "runs/x")(frames, min_score=min_score)


def test_boxes_are_fractions_of_the_frame_and_of_people_alone():
    """A frame of 40 x 80 covers the upper half of the canvas; the last box lies below it."""
    model = Answers(
        [[8.0, 4, 40, 16], [0, 0, 64, 64], [32, 16, 64, 64], [0, 0, 8, 4], [0, 40, 64, 64]],
        labels=[2, 1, 2, 2, 2],
        scores=[0.95, 0.94, 0.9, 0.7, 0.85],
    )
    frames = np.full((2, 40, 80, 3), 200, np.uint8)
    first, second = people_in(model, frames)
    np.testing.assert_allclose(first.boxes, [[0.125, 0.125, 0.625, 0.5], [0.5, 0.5, 1, 1]])
    np.testing.assert_allclose(first.scores, [0.95, 0.9], rtol=1e-6)
    assert first.boxes.dtype == first.scores.dtype == np.float64
    np.testing.assert_array_equal(first.boxes, second.boxes)
    (clips,) = model.seen
    assert clips.shape == (2, 3, 1, *SIZE)
    assert (clips[..., :32, :] == 200 / 255).all()  # as in evaluation
    assert (clips[..., 32:, :] < 0.5).all()  # the mean colour


def test_no_frames():
    assert people_in(Answers([], [], []), []) == []


@pytest.mark.parametrize(("precision", "advice"), [("fp32", "use other"), ("bf16", "=fp32 or")])
def test_outputs_that_are_not_finite(precision, advice):
    model = Answers([[0.0, 0, 9, 9]], [2], [0.9], is_finite=False)
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(WeightsError, match=f"runs/x are not finite in {precision}.*{advice}"):
        people_in(model, frames, precision=precision)


def test_weights_that_find_nobody_are_refused(tmp_path):
    small = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
    model = create_segmenter(
        "hiera_tiny_224", num_classes=1, image_size=64, channels=8, hidden=8, **small
    )
    save_model(tmp_path / "people", model, label_map={1: "person"})
    detect = person_detector(tmp_path / "people", CPU)
    assert detect([], min_score=0.5) == []
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] = torch.nan
    save_model(tmp_path / "diverged", model, label_map={1: "person"})
    with pytest.raises(WeightsError, match=r"diverged holds .* not finite: roi_heads"):
        person_detector(tmp_path / "diverged", CPU)
    save_model(tmp_path / "unnamed", model)
    with pytest.raises(WeightsError, match=r"unnamed has no category 'person', but '1'"):
        person_detector(tmp_path / "unnamed", CPU)


def test_files_are_weights_of_torchvision(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth is not a fasterrcnn_resnet50_fpn_v2"):
        person_detector(tmp_path / "other.pth", CPU)
    with pytest.raises(WeightsError, match=r"is not a weights folder: it has no config\.json"):
        person_detector(tmp_path, CPU)
