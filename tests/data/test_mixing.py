"""Mixup, cutmix and soft targets beside timm's `Mixup` in batch mode."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.data import mixing
from hiera_video.data.mixing import cutmix_box, mix, multi_hot

B, C, T, H, W, K = 4, 3, 5, 12, 18, 7


def batch(size=B):
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(size, C, T, H, W, generator=generator)
    return clips, torch.randint(0, K, (size,), generator=generator)


@pytest.fixture
def timm_mixup():
    return pytest.importorskip("timm.data.mixup")


def timm_mix(timm_mixup, clips, labels, *, kept, box=None, **arguments):
    """timm's result for a given draw; it knows images only, so frames count as channels."""
    mixup = timm_mixup.Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=K, label_smoothing=0.1, **arguments
    )
    mixup._params_per_batch = lambda: (kept, box is not None)
    original = timm_mixup.rand_bbox
    timm_mixup.rand_bbox = lambda *_, **__: box
    try:
        images, targets = mixup(clips.flatten(1, 2).clone(), labels)
    finally:
        timm_mixup.rand_bbox = original
    return images.view_as(clips), targets


class Kept(np.random.Generator):
    """A generator whose beta distribution always gives the same fraction."""

    def __init__(self, kept):
        super().__init__(np.random.PCG64())
        self.kept = kept

    def beta(self, a, b):
        return self.kept


def soft_targets(labels, num_classes, smoothing=0.0):
    return multi_hot([(label,) for label in labels.tolist()], num_classes, smoothing)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.97])
def test_mixup_is_that_of_timm(kept, timm_mixup):
    clips, labels = batch()
    theirs = timm_mix(timm_mixup, clips, labels, kept=kept)
    ours = mix(clips, soft_targets(labels, K, 0.1), cutmix=0.0, generator=Kept(kept))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("box", [(2, 7, 3, 11), (0, 12, 0, 18), (5, 5, 0, 3), (0, 4, 10, 18)])
def test_cutmix_is_that_of_timm(box, timm_mixup, monkeypatch):
    clips, labels = batch()
    theirs = timm_mix(timm_mixup, clips, labels, kept=0.123, box=box)
    monkeypatch.setattr(mixing, "cutmix_box", lambda *_: box)
    ours = mix(clips, soft_targets(labels, K, 0.1), mixup=0.0, generator=Kept(0.123))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_multi_hot():
    expected = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert multi_hot([(0, 2), (), (1,)], 3).tolist() == expected
    assert multi_hot([], 3).shape == (0, 3)


def test_multi_hot_targets_are_mixed_as_timm_mixes_them(timm_mixup):
    clips, _ = batch()
    targets = (torch.rand(B, K, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    theirs = timm_mix(timm_mixup, clips, targets, kept=0.3, multi_label=True)
    smoothed = targets * 0.9 + 0.05  # as timm smooths multi-hot targets
    ours = mix(clips, smoothed, cutmix=0.0, generator=Kept(0.3))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.51, 0.99, 1.0])
@pytest.mark.parametrize("centre", [(0, 0), (6, 9), (11, 17), (3, 16)])
def test_box_is_that_of_timm(kept, centre, timm_mixup, monkeypatch):
    class Drawn(np.random.Generator):
        values = iter(centre)

        def integers(self, high):
            value = next(self.values)
            assert value < high
            return value

    values = iter(centre)
    monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *_, **__: next(values))
    theirs = timm_mixup.rand_bbox((1, 1, H, W), kept)
    assert cutmix_box(H, W, kept, Drawn(np.random.PCG64())) == tuple(int(v) for v in theirs)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    kept=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_box_lies_in_the_frame(height, width, kept, seed):
    top, bottom, left, right = cutmix_box(height, width, kept, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - kept) * height * width + 1e-6


def test_soft_targets_are_those_of_timm(timm_mixup):
    labels = torch.tensor([0, 6, 3])
    ours = soft_targets(labels, K, 0.1)
    off = 0.1 / K
    theirs = timm_mixup.one_hot(labels, K, on_value=0.9 + off, off_value=off)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours.sum(1), torch.ones(3))
    assert soft_targets(labels, K).tolist() == torch.eye(K)[labels].tolist()


def test_mix_works_in_place_and_from_the_generator_alone():
    results = []
    for _ in range(2):
        clips, labels = batch()
        mixed, targets = mix(
            clips, soft_targets(labels, K, 0.1), generator=np.random.default_rng(3)
        )
        assert mixed.data_ptr() == clips.data_ptr()
        assert not torch.equal(mixed, batch()[0])
        torch.testing.assert_close(targets.sum(1), torch.ones(B))
        results.append((mixed, targets))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  global states play no part
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def kinds(n=400, **arguments):
    """Of n draws, the share with cutmix, and what each kept of a clip.

    Clip 0 is all ones and its partner all zeros, so that mixup gives one value everywhere.
    """
    generator, cut, kept = np.random.default_rng(0), [], {"mixup": [], "cutmix": []}
    for _ in range(n):
        clips = torch.zeros(2, 1, 2, 24, 24)
        clips[0] = 1
        mixed, targets = mix(clips, torch.eye(2), generator=generator, **arguments)
        assert targets[0, 0].item() == pytest.approx(mixed[0].mean().item(), abs=1e-5)
        assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])  # all frames alike
        is_mixup = mixed[0].unique().numel() == 1 and 0 < mixed[0, 0, 0, 0, 0] < 1
        cut.append(not is_mixup)
        kept["mixup" if is_mixup else "cutmix"].append(targets[0, 0].item())
    return np.mean(cut), kept


def test_mixup_and_cutmix_take_turns():
    share, kept = kinds(2000)
    assert 0.46 < share < 0.54
    beta_std = 0.5 / np.sqrt(2 * 0.8 + 1)  # of Beta(0.8, 0.8)
    assert np.mean(kept["mixup"]) == pytest.approx(0.5, abs=0.03)
    assert np.std(kept["mixup"]) == pytest.approx(beta_std, abs=0.02)
    assert np.mean(kept["cutmix"]) > 0.55  # uniform, but boxes are cut off at the border


def test_one_of_the_two_can_be_off():
    assert kinds(50, cutmix=0.0)[0] == 0
    assert kinds(50, mixup=0.0)[0] == 1
    clips, labels = batch()
    targets = soft_targets(labels, K)
    mixed = mix(clips, targets, mixup=0.0, cutmix=0.0, generator=np.random.default_rng(0))
    assert torch.equal(mixed[0], batch()[0])
    assert torch.equal(mixed[1], targets)


@pytest.mark.parametrize("size", [1, 3])
def test_the_clip_in_the_middle_stays(size):
    for seed in range(20):
        clips, labels = batch(size)
        targets = soft_targets(labels, K, 0.1)
        mixed, new = mix(clips, targets, generator=np.random.default_rng(seed))
        torch.testing.assert_close(mixed[size // 2], batch(size)[0][size // 2])
        torch.testing.assert_close(new[size // 2], targets[size // 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mixup": -1.0}, "mixup is -1"), ({"cutmix": -0.1}, "cutmix is -0.1")],
)
def test_mistakes_are_named(arguments, message):
    clips, labels = batch()
    with pytest.raises(ValueError, match=message):
        mix(clips, soft_targets(labels, K), generator=np.random.default_rng(0), **arguments)
