"""Pixels to the input of a model."""

from __future__ import annotations

import torch

from hiera_video.models.normalize import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalize() -> None:
    clips = torch.randint(0, 256, (2, 3, 5, 7, 3), dtype=torch.uint8)
    before = clips.clone()
    x = Normalize(MEAN, STD)(clips)
    assert x.shape == (2, 3, 3, 5, 7)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert torch.equal(clips, before)
    expected = (clips.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(x.double(), expected.permute(0, 4, 1, 2, 3), rtol=0, atol=2e-6)


def test_statistics_move_with_the_module_and_are_not_weights() -> None:
    normalize = Normalize(MEAN, STD)
    assert not normalize.state_dict()
    assert not list(normalize.parameters())
    assert normalize.to("meta").mean.is_meta
