import math

import numpy as np
import pytest
import torch
from torch import nn

from hiera_video.data.batches import ClipBatch, ClipSample, collate_clips
from hiera_video.errors import ConfigError
from hiera_video.models.hiera import Hiera
from hiera_video.models.normalize import Normalize
from hiera_video.settings.training import Augment, Train
from hiera_video.training.losses import ClassificationLoss, balanced_class_weights
from hiera_video.training.optim import freeze


class Logits(nn.Module):
    """The same logits for every clip; remembers its input."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        self.seen = x
        return self.logits.expand(len(x), -1)


def batch(*labels, value=0):
    clips = torch.full((len(labels), 1, 2, 2, 3), value, dtype=torch.uint8)
    return ClipBatch(clips, list(labels), [str(i) for i in range(len(labels))])


def loss_of(model, clips, **changes):
    augment = {"mixup": 0, "cutmix": 0, "label_smoothing": 0.0}
    augment |= {key: changes.pop(key) for key in augment.keys() & changes.keys()}
    settings = dict(num_classes=3, normalize=Normalize((0.5,) * 3, (0.25,) * 3)) | changes
    return ClassificationLoss(Augment(**augment), **settings)(
        model, clips, np.random.default_rng(0)
    )


def test_cross_entropy_summed_over_clips():
    model = Logits(2.0, 0.0, -1.0)
    logits = model.logits.detach()
    expected = nn.functional.cross_entropy(logits.expand(2, 3), torch.tensor([0, 2]))
    assert loss_of(model, batch((0,), (2,))).item() == pytest.approx(2 * expected.item())
    assert model.seen.shape == (2, 3, 1, 2, 2)
    assert model.seen.unique().tolist() == [-2.0]  # black, normalised


def test_smoothing_and_class_weights_as_torch():
    model, labels = Logits(2.0, 0.0, -1.0), torch.tensor([0, 2])
    weights = torch.tensor([1.0, 2.0, 3.0])
    loss = loss_of(model, batch((0,), (2,)), label_smoothing=0.1, class_weights=weights)
    expected = nn.functional.cross_entropy(
        model.logits.detach().expand(2, 3),
        labels,
        weight=weights,
        label_smoothing=0.1,
        reduction="sum",
    )
    assert loss.item() == pytest.approx(expected.item())


def test_several_labels():
    model = Logits(2.0, 0.0, -1.0)
    loss = loss_of(model, batch((0, 2), (1,)), multi_label=True, label_smoothing=0.1)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) * 0.9 + 0.1 / 3
    expected = nn.functional.binary_cross_entropy_with_logits(
        model.logits.detach().expand(2, 3), targets
    )
    assert loss.item() == pytest.approx(2 * expected.item())


def test_mixing_reaches_the_targets():
    """All clips equal: only the targets can tell that they were mixed."""
    losses = {
        loss_of(Logits(2.0, 0.0, -1.0), batch((0,), (2,)), mixup=m, cutmix=c).item()
        for m, c in ((0, 0), (0.8, 0))
    }
    assert len(losses) == 1  # the sum over both is the same
    model = Logits(9.0, 0.0, 0.0)
    loss = loss_of(model, batch((0,), (0,), (1,), (1,)), mixup=0.8)
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_batch_without_videos_goes_through(multi_label):
    empty = collate_clips([], (1, 2, 2, 3))
    loss = loss_of(Logits(2.0, 0.0, -1.0), empty, multi_label=multi_label, mixup=0.8, cutmix=1.0)
    assert torch.isfinite(loss)
    loss.backward()


def test_repeats_of_a_video_keep_their_labels():
    samples = [
        ClipSample("a", (1,), np.zeros((2, 1, 2, 2, 3), np.uint8)),
        ClipSample("b", (0,), np.ones((2, 1, 2, 2, 3), np.uint8)),
    ]
    collated = collate_clips(samples, (1, 2, 2, 3))
    assert collated.labels == [(1,), (1,), (0,), (0,)]
    assert collated.clips.float().mean(dim=(1, 2, 3, 4)).tolist() == [0, 0, 1, 1]


def test_balanced_class_weights():
    weights = balanced_class_weights([(0,), (0,), (0,), (2,)], 4)
    assert weights.tolist() == pytest.approx([4 / 6, 1, 2, 1])  # 1 without any video
    labels = torch.tensor([0, 0, 0, 2])
    assert weights[labels].mean() == pytest.approx(1.0)  # the size of the loss stays


def tiny():
    return Hiera(input_size=(4, 32, 32), num_classes=2, embed_dim=8, stages=(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("train_only", "freeze_stages", "learning"),
    [
        ("all", 0, {"patch_embed", "pos_embed", *(f"blocks.{i}" for i in range(5)), "top"}),
        ("all", 1, {*(f"blocks.{i}" for i in range(1, 5)), "top"}),
        ("all", 2, {"blocks.3", "blocks.4", "top"}),
        ("all", 4, {"top"}),
        ("head", 0, {"top"}),
    ],
)
def test_freezing(train_only, freeze_stages, learning):
    model = tiny()
    freeze(model, Train(train_only=train_only, freeze_stages=freeze_stages))
    for name, parameter in model.named_parameters():
        part = next((p for p in learning if name.startswith((f"{p}.", f"{p}_"))), None)
        if name.startswith(("norm.", "head.")):
            part = "top"
        assert parameter.requires_grad == (part in learning), name


def test_more_stages_than_there_are():
    with pytest.raises(ConfigError, match=r"train.freeze_stages is 5; it must be from 0 to 4"):
        freeze(tiny(), Train(freeze_stages=5))
