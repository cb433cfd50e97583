"""RandAugment: each operation, and the draw, beside timm's `rand-m7-mstd0.5-inc1` on PIL images."""

import math
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from hiera_video.data.randaugment import NUM_LAYERS, OPERATIONS, RandAugment, apply_operation

MEAN = (0.45, 0.43, 0.4)
FILL = np.array([115, 110, 102], np.uint8)

TIMM_NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}

# Share of values that may differ, always by one grey level; all others are equal. Colour: OpenCV's
# luma rounds differently. Contrast: through that luma a frame's mean may round differently.
# Geometry: sums of 16 float32 products cut off just beside PIL's sums of doubles, most often where
# a shift by a simple fraction (25.2 pixels) makes the true sums whole numbers.
MAY_DIFFER = {
    "color": 0.01,
    "contrast": 0.01,
    "sharpness": 0.001,
    "rotate": 0.002,
    "shear_x": 0.01,
    "shear_y": 0.01,
    "translate_x": 0.03,
    "translate_y": 0.03,
}


@pytest.fixture
def auto_augment():
    return pytest.importorskip("timm.data.auto_augment")


def noise(shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def landscape(shape):
    """Smooth shades with sharp edges, as in a photograph; not all grey levels occur."""
    smooth = [cv2.GaussianBlur(f, (0, 0), 3).astype(int) for f in noise(shape)]
    frames = np.clip((np.stack(smooth) - 128) * 6 + 110, 20, 230).astype(np.uint8)
    _, h, w, _ = shape
    frames[:, h // 4 : h // 2, w // 5 : w // 2] = (200, 30, 90)
    return frames


def flat(shape):
    return np.full(shape, 200, np.uint8)


CLIPS = [noise, landscape, flat]
SHAPES = [(2, 64, 64, 3), (1, 61, 97, 3), (3, 2, 5, 3)]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("make", CLIPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_operation_is_that_of_timm(name, make, shape, auto_augment):
    frames = make(shape)
    before = frames.copy()
    for magnitude in (0.0, 2.5, 5.5, 6.3, 7.0, 7.7, 9.9):
        for sign in (1, -1):
            argument = OPERATIONS[name].argument(magnitude / 10, sign)
            ours = apply_operation(name, frames, argument, FILL)
            theirs = np.stack([timm_operation(auto_augment, name, f, argument) for f in frames])
            assert ours.dtype == np.uint8
            assert ours.flags.c_contiguous
            difference = np.abs(ours.astype(int) - theirs)
            assert difference.max() <= (1 if name in MAY_DIFFER else 0), (magnitude, sign)
            allowed = MAY_DIFFER.get(name, 0) * difference.size
            assert (difference > 0).sum() <= max(allowed, 2 * (allowed > 0)), (magnitude, sign)
    np.testing.assert_array_equal(frames, before)


def timm_operation(auto_augment, name, frame, argument):
    timm_name = TIMM_NAMES[name]
    whole = int(argument) if argument.is_integer() else argument  # PIL wants bits as an int
    arguments = () if auto_augment.LEVEL_TO_ARG[timm_name] is None else (whole,)
    image = auto_augment.NAME_TO_OP[timm_name](
        Image.fromarray(frame),
        *arguments,
        fillcolor=tuple(int(c) for c in FILL),
        resample=Image.Resampling.BICUBIC,
    )
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", OPERATIONS)
def test_argument_is_that_of_timm(name, auto_augment, monkeypatch):
    level_to_arg = auto_augment.LEVEL_TO_ARG[TIMM_NAMES[name]]
    for sign in (1, -1):
        monkeypatch.setattr(auto_augment.random, "random", lambda sign=sign: 0.5 - 0.1 * sign)
        for magnitude in np.linspace(0, 10, 201):
            ours = OPERATIONS[name].argument(magnitude / 10, sign)
            if level_to_arg is None:
                assert ours == 0
            else:
                (theirs,) = level_to_arg(magnitude, {})
                assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


def test_policy_is_that_of_timm(auto_augment):
    theirs = auto_augment.rand_augment_transform("rand-m7-mstd0.5-inc1", {"img_mean": (0, 0, 0)})
    ours = RandAugment(MEAN)
    assert [TIMM_NAMES[name] for name in OPERATIONS] == [op.name for op in theirs.ops]
    assert theirs.num_layers == NUM_LAYERS
    assert theirs.choice_weights is None
    assert {op.prob for op in theirs.ops} == {0.5}
    assert {op.magnitude for op in theirs.ops} == {ours.magnitude}
    assert {op.magnitude_std for op in theirs.ops} == {ours.magnitude_std}
    assert {op.magnitude_max for op in theirs.ops} == {None}  # which means 10


def test_draws_follow_the_policy():
    augment, rng = RandAugment(MEAN), np.random.default_rng(0)
    n = 20_000
    draws = [augment.draw(rng) for _ in range(n)]

    layers = Counter(len(d) for d in draws)  # binomial: 2 layers, each with probability 0.5
    for count, probability in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(layers[count] - n * probability) < 5 * math.sqrt(n * probability)

    applied = [operation for d in draws for operation in d]
    names = Counter(name for name, _ in applied)
    assert set(names) == set(OPERATIONS)
    expected = len(applied) / len(OPERATIONS)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in names.values())
    pairs = Counter(frozenset((d[0][0], d[1][0])) for d in draws if len(d) == 2)
    assert any(len(pair) == 1 for pair in pairs)  # with replacement

    degrees = np.array([argument for name, argument in applied if name == "rotate"])
    assert abs(np.mean(degrees > 0) - 0.5) < 0.05
    magnitudes = np.abs(degrees) / 3
    assert magnitudes.mean() == pytest.approx(7, abs=0.05)
    assert magnitudes.std() == pytest.approx(0.5, abs=0.05)


def test_magnitude_is_clipped():
    rng = np.random.default_rng(0)
    draws = [a for _ in range(500) for a in RandAugment(MEAN, magnitude_std=50.0).draw(rng)]
    degrees = np.array([argument for name, argument in draws if name == "rotate"])
    assert set(np.abs(np.unique(degrees))) >= {0.0, 30.0}
    assert np.abs(degrees).max() == 30


def test_fill_is_the_mean_colour():
    assert RandAugment(MEAN).fill.tolist() == FILL.tolist()
    shifted = apply_operation("translate_x", noise((2, 8, 8, 3)), 0.5, FILL)
    assert (shifted[:, :, 4:] == FILL).all()
    assert (shifted[:, :, :4] == noise((2, 8, 8, 3))[:, :, 4:]).all()


def test_strongest_posterize_leaves_nothing():
    assert not apply_operation("posterize", noise((1, 8, 8, 3)), 0.0, FILL).any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_treats_all_frames_alike(name):
    frames = np.repeat(landscape((1, 70, 50, 3)), 5, axis=0)
    for sign in (1, -1):
        out = apply_operation(name, frames, OPERATIONS[name].argument(0.7, sign), FILL)
        assert (out == out[:1]).all()
        alone = apply_operation(name, frames[:1], OPERATIONS[name].argument(0.7, sign), FILL)
        assert np.abs(out[:1].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_takes_a_view(name):
    frames = noise((2, 30, 40, 3))[:, ::2, 5:]
    argument = OPERATIONS[name].argument(0.7, 1)
    expected = apply_operation(name, np.ascontiguousarray(frames), argument, FILL)
    np.testing.assert_array_equal(apply_operation(name, frames, argument, FILL), expected)


def test_clip_is_a_function_of_the_generator():
    augment, frames = RandAugment(MEAN), noise((2, 32, 32, 3))
    outcomes = []
    for seed in range(30):
        first = augment(frames, np.random.default_rng(seed))
        np.testing.assert_array_equal(first, augment(frames, np.random.default_rng(seed)))
        outcomes.append(first.tobytes())
    assert len(set(outcomes)) > 15


def test_a_mean_in_grey_levels_is_refused():
    with pytest.raises(ValueError, match=r"mean is \(123"):
        RandAugment((123.0, 116.0, 104.0))
