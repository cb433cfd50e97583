"""Pictures and masks on the input of a model."""

from typing import Any

import numpy as np
import pytest

from hiera_video.data.instances.transforms import (
    PADDING,
    ScaleJitter,
    boxes_of,
    fitted,
    fitted_shape,
)
from hiera_video.settings.training import InstanceAugment


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark picture with three bright boxes, and their masks."""
    picture, masks = np.full((height, width, 3), 20, np.uint8), np.zeros((3, height, width), bool)
    for mask, (top, left) in zip(
        masks, ((0, 0), (height // 2, width // 3), (height - 9, width - 9)), strict=True
    ):
        mask[top : top + 9, left : left + 9] = True
        picture[mask] = 230
    return picture, masks


def jitter(size: tuple[int, int] = (64, 64), **changes: Any) -> ScaleJitter:
    return ScaleJitter(size, InstanceAugment(**changes))


def test_masks_move_with_their_pixels() -> None:
    picture, masks = scene(60, 90)
    transform = jitter((64, 96))
    num_kept = 0
    for seed in range(60):
        canvas, target = transform(picture, masks, np.random.default_rng(seed))
        assert canvas.shape == (64, 96, 3)
        assert target.masks.shape == (len(target.kept), 64, 96)
        num_kept += len(target.kept)
        covered = target.masks.any(axis=0)
        outside = (canvas == PADDING).all(axis=2)
        bright = canvas.mean(axis=2) > 125
        bright &= ~outside
        # They differ where the picture is smoothed, which is at edges.
        assert (bright != covered).sum() <= 0.5 * covered.sum() + 4
        for box, mask in zip(target.boxes, target.masks, strict=True):
            y, x = mask.nonzero()
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert 60 < num_kept < 180  # crops lose some


def test_scales_and_places_of_jitter() -> None:
    picture, masks = scene(60, 60)
    sides, corners, flipped = [], [], 0
    transform = jitter(scale=(0.5, 1.0))
    masks = masks[:1]  # the corner at the top left
    for seed in range(200):
        canvas, target = transform(picture, masks, np.random.default_rng(seed))
        side = 64 - int((canvas[0] == PADDING).all(axis=1).sum())
        sides.append(side)
        assert (canvas[side:] == PADDING).all()
        assert (canvas[:, side:] == PADDING).all()
        flipped += bool(target.boxes[0, 0] > 0)
        corners.append(target.boxes[0])
    assert 32 <= min(sides) < 34
    assert 62 < max(sides) <= 64
    assert abs(np.mean(sides) - 48) < 2  # uniform
    assert 70 < flipped < 130
    offsets = set()
    for seed in range(100):
        canvas, _ = jitter(scale=(2.0, 2.0), flip=False)(
            picture, masks, np.random.default_rng(seed)
        )
        assert not (canvas == PADDING).all(axis=2).any()
        offsets.add(canvas.tobytes())
    assert len(offsets) > 60


def test_a_sample_is_a_function_of_its_random_numbers() -> None:
    picture, masks = scene(60, 90)
    first, again = (jitter()(picture, masks, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1].masks, again[1].masks)


def test_pictures_without_objects() -> None:
    canvas, target = jitter()(
        scene(30, 30)[0], np.zeros((0, 30, 30), bool), np.random.default_rng(0)
    )
    assert canvas.shape == (64, 64, 3)
    assert target.boxes.shape == (0, 4)
    assert target.masks.shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((480, 640), (768, 1024)), ((640, 480), (1024, 768)), ((3, 3000), (1, 1024))],
)
def test_a_fitted_picture(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_shape(shape, (1024, 1024)) == expected
    canvas, size = fitted(np.full((*shape, 3), 7, np.uint8), (1024, 1024))
    assert size == expected
    assert (canvas[: size[0], : size[1]] == 7).all()
    assert (canvas[size[0] :] == PADDING).all()
    assert (canvas[:, size[1] :] == PADDING).all()


def test_boxes_of_masks() -> None:
    masks = np.zeros((2, 10, 12), np.uint8)
    masks[0, 3, 5] = 1
    masks[1, 2:5, 0] = masks[1, 9, 11] = 1
    assert boxes_of(masks).tolist() == [[5, 3, 6, 4], [0, 2, 12, 10]]
    assert boxes_of(masks[:0]).shape == (0, 4)
