"""Pictures and masks of objects on a canvas: large-scale jitter in training, whole in tests.

The canvas is the input of the model; what no picture covers has the mean colour of ImageNet, which
is 0 once it is normalised.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from hiera_video.data.transforms import resized_crop
from hiera_video.models.variants import IMAGENET_MEAN
from hiera_video.settings.training import InstanceAugment

Picture = UInt8[np.ndarray, "H W 3"]
PADDING = np.round(np.array(IMAGENET_MEAN) * 255).astype(np.uint8)


class Target(NamedTuple):
    """The objects of a picture."""

    boxes: Float[np.ndarray, "n 4"]  # float32, x1 y1 x2 y2, pixels of the canvas
    masks: UInt8[np.ndarray, "n H W"]
    kept: Int[np.ndarray, " n"]  # which of the objects that were given


@dataclass(frozen=True)
class ScaleJitter:
    """A random scale, a random crop, and a flip (large-scale jitter, arXiv 2012.07177).

    As detectron2's `ResizeScale`, `FixedSizeCrop` and `RandomFlip`, of which ViTDet consists.

    Args:
        size: height and width of the canvas.
    """

    size: tuple[int, int]
    augment: InstanceAugment

    def __call__(
        self, picture: Picture, masks: Iterable[Bool[np.ndarray, "H W"]], rng: np.random.Generator
    ) -> tuple[Picture, Target]:
        """The canvas, and the objects of which a pixel is left on it.

        Args:
            masks: of the objects; one is needed at a time.
        """
        scale = rng.uniform(*self.augment.scale)
        shape = fitted_shape(picture.shape[:2], self.size, scale)
        spare = [max(n - m, 0) for n, m in zip(shape, self.size, strict=True)]
        top, left = (int(rng.integers(n, endpoint=True)) for n in spare)
        flips = self.augment.flip and rng.random() < 0.5
        shown = (
            slice(top, top + self.size[0]),
            slice(left, left + self.size[1]),
        )

        def placed(pixels: np.ndarray, canvas: np.ndarray) -> None:
            part = pixels[shown][:, :: -1 if flips else 1]
            canvas[: part.shape[0], : part.shape[1]] = part

        canvas = np.empty((*self.size, 3), np.uint8)
        canvas[:] = PADDING
        placed(resized(picture, shape), canvas)
        found, kept = [], []
        for place, mask in enumerate(masks):
            large = cv2.resize(
                mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT
            )
            own = np.zeros(self.size, np.uint8)
            placed(large, own)
            if own.any():
                found.append(own)
                kept.append(place)
        seen = np.array(found, np.uint8).reshape(-1, *self.size)
        return canvas, Target(boxes_of(seen), seen, np.array(kept, np.int64))


def fitted(picture: Picture, size: tuple[int, int]) -> tuple[Picture, tuple[int, int]]:
    """The picture as large as it fits on a canvas of that size, and its own size there."""
    shape = fitted_shape(picture.shape[:2], size)
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = PADDING
    canvas[: shape[0], : shape[1]] = resized(picture, shape)
    return canvas, shape


def fitted_shape(
    shape: tuple[int, ...], size: tuple[int, int], scale: float = 1.0
) -> tuple[int, int]:
    """Height and width of a picture that fits a canvas of `size` times `scale`."""
    factor = min(scale * n / m for n, m in zip(size, shape, strict=True))
    height, width = (max(1, round(factor * m)) for m in shape)
    return height, width


def resized(picture: Picture, shape: tuple[int, int]) -> Picture:
    whole = (0, 0, *picture.shape[:2])
    return resized_crop(picture[None], whole, *shape)[0]


def boxes_of(masks: UInt8[np.ndarray, "n H W"]) -> Float[np.ndarray, "n 4"]:
    """The smallest box around each mask, x1 y1 x2 y2; no mask is empty."""
    ends = []
    for axis in (1, 2):  # over rows: columns; over columns: rows
        seen = masks.max(axis=axis) > 0
        ends.append((seen.argmax(axis=1), seen.shape[1] - seen[:, ::-1].argmax(axis=1)))
    (x1, x2), (y1, y2) = ends
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)
