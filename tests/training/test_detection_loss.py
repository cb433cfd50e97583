"""The loss of detection, on models whose logits are known."""

import numpy as np
import pytest
import torch
from torch import nn

from hiera_video.data.batches import DetectionBatch
from hiera_video.models.normalize import Normalize
from hiera_video.training.losses import DetectionLoss


class Logits(nn.Module):
    """The same logits for every box; remembers its input."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x, boxes, clip_of_box):
        self.seen = x, boxes, clip_of_box
        return self.logits.expand(len(boxes), -1)


def batch(*actions):
    boxes = torch.rand(len(actions), 4)
    clips = torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8)
    return DetectionBatch(clips, boxes, torch.arange(len(actions)) % 2, list(actions), ["a", "b"])


def loss_of(model, batch, num_classes=3):
    loss = DetectionLoss(num_classes=num_classes, normalize=Normalize((0.5,) * 3, (0.25,) * 3))
    return loss(model, batch, np.random.default_rng(0))


def test_cross_entropy_averaged_over_actions_and_summed_over_boxes():
    model = Logits(2.0, 0.0, -1.0)
    boxes = batch((1, 3), (), (2,))
    on, off = (
        -np.log(1 / (1 + np.exp(-np.array([2.0, 0.0, -1.0])))),
        -np.log(1 / (1 + np.exp(np.array([2.0, 0.0, -1.0])))),
    )
    expected = (on[0] + off[1] + on[2]) + off.sum() + (off[0] + on[1] + off[2])
    assert loss_of(model, boxes).item() == pytest.approx(expected / 3)
    clips, seen_boxes, clip_of_box = model.seen
    assert clips.shape == (2, 3, 1, 2, 2)
    assert clips.unique().tolist() == [-2.0]  # black, normalised
    assert torch.equal(seen_boxes, boxes.boxes)
    assert clip_of_box.tolist() == [0, 1, 0]


def test_no_boxes_give_no_loss_but_gradients():
    model = Logits(2.0, 0.0, -1.0)
    loss = loss_of(model, batch())
    loss.backward()
    assert loss.item() == 0
    assert model.logits.grad.tolist() == [0, 0, 0]


def test_the_loss_is_float32_whatever_the_logits_are():
    model = Logits(2.0, 0.0, -1.0).bfloat16()
    assert loss_of(model, batch((1,))).dtype == torch.float32
