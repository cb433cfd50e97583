"""RandAugment for uint8 clips: timm's `rand-m7-mstd0.5-inc1`, drawn once for all frames.

SlowFast's video recipes use this string; the Hiera paper lists it as "RandAug (7, 0.5)" (arXiv
2306.00989, Tab. 11b). It means: 2 layers, each of which draws one of 15 operations and applies it
with probability 0.5; magnitude from N(7, 0.5), clipped to 0..10; arguments that grow stronger with
the magnitude; translations of at most 0.45 of the side. Interpolation is bicubic, as in SlowFast's
`AUG.INTERPOLATION` (timm's default draws bilinear or bicubic). Pixels from outside of the frame
have the mean colour, as in timm's training.

The operations give the results of PIL, frame by frame, up to one grey level in isolated pixels for
which float32 rounds differently. They use OpenCV, NumPy, and one weighted gather of torch, because
torchvision v2, which has no bicubic for tensors, and timm are several times slower
(docs/benchmarks.md, `tools/benchmark_transforms.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8

Frames = UInt8[np.ndarray, "T H W 3"]
Colour = UInt8[np.ndarray, " 3"]
Apply = Callable[[Frames, float, Colour], Frames]  # with the argument, and the colour of borders

NUM_LAYERS = 2  # operations that are drawn
MAX_MAGNITUDE = 10.0
PROBABILITY = 0.5  # that a layer applies its operation

# cv2 rounds to the nearest integer, PIL truncates. Adding this before rounding truncates; the small
# part keeps integers unchanged despite the error of float32.
TRUNCATE = -0.5 + 2.0**-12


class RandAugment:
    """Random operations on a clip, the same for all of its frames.

    Args:
        mean: mean colour, RGB in 0..1, for pixels that rotation, shear or translation uncover.
        magnitude: mean strength, 0 to 10.
        magnitude_std: standard deviation of the strength, 0 or more.

    Raises:
        ValueError: `mean` is not a colour in 0..1.
    """

    def __init__(
        self, mean: Sequence[float], *, magnitude: float = 7.0, magnitude_std: float = 0.5
    ) -> None:
        if len(mean) != 3 or not all(0 <= m <= 1 for m in mean):
            raise ValueError(f"mean is {mean}; allowed: three numbers in 0..1")
        self.magnitude, self.magnitude_std = magnitude, magnitude_std
        self.fill = np.rint(255 * np.asarray(mean)).astype(np.uint8)

    def __call__(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Frames of the same shape; `frames` themselves if no operation is applied."""
        for name, argument in self.draw(rng):
            frames = apply_operation(name, frames, argument, self.fill)
        return frames

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """The operations to apply, in order: name and argument."""
        drawn = []
        for name in map(str, rng.choice(list(OPERATIONS), NUM_LAYERS)):
            if rng.random() >= PROBABILITY:
                continue
            magnitude = np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, MAX_MAGNITUDE)
            sign = 1 if rng.random() < 0.5 else -1
            drawn.append((name, OPERATIONS[name].argument(float(magnitude) / 10, sign)))
        return drawn


def apply_operation(name: str, frames: Frames, argument: float, fill: Colour) -> Frames:
    """One operation of `OPERATIONS` on all frames, as a new array."""
    return OPERATIONS[name].apply(np.ascontiguousarray(frames), argument, fill)


def _plane(frames: Frames) -> UInt8[np.ndarray, "T*H W 3"]:
    """All frames below one another, so that one call of OpenCV processes the clip."""
    return frames.reshape(-1, *frames.shape[2:])


# Tables that map grey levels to others.

LEVELS = np.arange(256)


def _look_up(frames: Frames, table: Int[np.ndarray, " 256"]) -> Frames:
    """Applies the same table to all frames and channels."""
    return cv2.LUT(frames.reshape(len(frames), -1), table.astype(np.uint8)).reshape(frames.shape)


def _look_up_each(frames: Frames, tables: Int[np.ndarray, "T c 256"]) -> Frames:
    """Applies a table to each frame (c = 1), or to each channel of each frame (c = 3)."""
    by_level = np.ascontiguousarray(tables.swapaxes(1, 2)[:, None], np.uint8)  # T 1 256 c
    channels = by_level.shape[-1]
    out = np.empty_like(frames)
    for frame, table, result in zip(frames, by_level, out, strict=True):
        rows = (len(frame), -1, channels)
        cv2.LUT(frame.reshape(rows), table, dst=result.reshape(rows))
    return out


def _histograms(frames: Frames) -> Int[np.ndarray, "T 3 256"]:
    counts = [cv2.calcHist([f], [c], None, [256], [0, 256]) for f in frames for c in range(3)]
    return np.stack(counts).reshape(len(frames), 3, 256).astype(np.int64)


def _auto_contrast(frames: Frames, _argument: float, _fill: Colour) -> Frames:
    present = _histograms(frames) > 0
    low = present.argmax(-1, keepdims=True)
    high = 255 - present[..., ::-1].argmax(-1, keepdims=True)
    scale = 255.0 / np.maximum(high - low, 1)
    stretched = np.clip((LEVELS * scale - low * scale).astype(np.int64), 0, 255)
    return _look_up_each(frames, np.where(high > low, stretched, LEVELS))


def _equalize(frames: Frames, _argument: float, _fill: Colour) -> Frames:
    counts = _histograms(frames)
    brightest = 255 - (counts > 0)[..., ::-1].argmax(-1, keepdims=True)
    total = counts.sum(-1, keepdims=True)
    step = (total - np.take_along_axis(counts, brightest, -1)) // 255
    below = counts.cumsum(-1) - counts
    spread = np.minimum((step // 2 + below) // np.maximum(step, 1), 255)
    return _look_up_each(frames, np.where(step > 0, spread, LEVELS))


def _posterize(frames: Frames, bits: float, _fill: Colour) -> Frames:
    return np.bitwise_and(frames, np.uint8(256 - 2 ** (8 - int(bits))))


def _solarize(frames: Frames, threshold: float, _fill: Colour) -> Frames:
    return _look_up(frames, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def _solarize_add(frames: Frames, added: float, _fill: Colour) -> Frames:
    return _look_up(frames, np.where(LEVELS < 128, np.minimum(LEVELS + int(added), 255), LEVELS))


# Enhancement: blends a frame with a plainer one; a factor above 1 extrapolates away from it.


def _blend_levels(plain: np.ndarray | int, factor: float) -> np.ndarray:
    blended = plain + np.float32(factor) * (LEVELS - plain).astype(np.float32)
    return np.clip(blended, 0, 255).astype(np.int64)


def _blend(plain: np.ndarray, frames: Frames, factor: float) -> Frames:
    blended = cv2.addWeighted(_plane(frames), factor, plain, 1 - factor, TRUNCATE)
    return blended.reshape(frames.shape)


def _contrast(frames: Frames, factor: float, _fill: Colour) -> Frames:
    """Blends each frame with its mean grey."""
    grey = cv2.cvtColor(_plane(frames), cv2.COLOR_RGB2GRAY).reshape(len(frames), -1)
    mean = (grey.mean(-1) + 0.5).astype(np.int64)
    return _look_up_each(frames, _blend_levels(mean[:, None, None], factor))


def _color(frames: Frames, factor: float, _fill: Colour) -> Frames:
    grey = cv2.cvtColor(_plane(frames), cv2.COLOR_RGB2GRAY)
    return _blend(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), frames, factor)


SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _sharpness(frames: Frames, factor: float, _fill: Colour) -> Frames:
    smooth = cv2.filter2D(_plane(frames), -1, SMOOTH).reshape(frames.shape)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        smooth[edge] = frames[edge]  # PIL leaves the outermost pixels as they are
    return _blend(_plane(smooth), frames, factor)


# Geometry: `matrix` maps the centre of an output pixel to a position in the frame.

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


def _affine(frames: Frames, matrix: Matrix, fill: Colour) -> Frames:
    """Bicubic resampling as in PIL: cubic with a = -1, edge pixels repeated, results truncated.

    OpenCV's cubic has a = -0.75, which differs by up to 22 grey levels on noise, and takes 21 ms
    per clip. Here every output pixel is a weighted sum of 16 neighbours, the same for all frames
    and channels: a gather from a table with a row of 3 T numbers for each pixel.
    """
    t, h, w, _ = frames.shape
    x, y = np.arange(w) + 0.5, np.arange(h)[:, None] + 0.5
    from_x, from_y = ((a * x + b * y + c).ravel() for a, b, c in matrix)
    columns, x_weights = _cubic_taps(from_x, w)
    rows, y_weights = _cubic_taps(from_y, h)
    neighbours = (rows[:, None] * w + columns).reshape(-1, h * w)
    weights = (y_weights[:, None] * x_weights).reshape(-1, h * w)

    table = cv2.transpose(frames.reshape(t, -1)).reshape(h * w, 3 * t)
    resampled = F.embedding_bag(
        torch.from_numpy(cv2.transpose(neighbours)),
        torch.from_numpy(table.astype(np.float32)),
        per_sample_weights=torch.from_numpy(cv2.transpose(weights)),
        mode="sum",
    )
    levels = cv2.add(resampled.numpy(), TRUNCATE, dtype=cv2.CV_8U)
    outside = (from_x < 0) | (from_x >= w) | (from_y < 0) | (from_y >= h)
    levels[outside] = np.repeat(fill, t)
    return cv2.transpose(levels.reshape(-1, t)).reshape(frames.shape)


def _cubic_taps(
    position: Float[np.ndarray, " N"], size: int
) -> tuple[Int[np.ndarray, "n N"], Float[np.ndarray, "n N"]]:
    """The n = 4 pixels around each position along one axis, and their weights.

    n = 1 if all positions are pixel centres, as along the y axis in a horizontal shear.
    """
    position = position - 0.5
    first = np.floor(position)
    d = (position - first).astype(np.float32)
    first = first.astype(np.int32)
    if not d.any():
        return np.clip(first, 0, size - 1)[None], np.ones((1, len(d)), np.float32)
    indices = np.clip(first + np.arange(-1, 3, dtype=np.int32)[:, None], 0, size - 1)
    weights = np.empty((4, len(d)), np.float32)
    rest, square = 1 - d, d * d
    weights[0] = -d * rest * rest
    weights[1] = 1 - square * (1 + rest)
    weights[2] = d + square * rest
    weights[3] = -square * rest
    return indices, weights


def _rotation(degrees: float, height: int, width: int) -> Matrix:
    """About the centre; positive angles are anticlockwise."""
    return cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1.0)


def _geometric(matrix: Callable[[float, int, int], Matrix]) -> Apply:
    """The operation with the matrix of (argument, height, width)."""
    return lambda frames, x, fill: _affine(frames, matrix(x, *frames.shape[1:3]), fill)


def _enhancement(strength: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.9 * strength)


def _signed(most: float) -> Callable[[float, int], float]:
    return lambda strength, sign: sign * most * strength


@dataclass(frozen=True)
class Operation:
    """`argument` maps a strength in 0..1 and a sign to the argument of `apply`."""

    argument: Callable[[float, int], float]
    apply: Apply


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": Operation(lambda *_: 0.0, _auto_contrast),
    "equalize": Operation(lambda *_: 0.0, _equalize),
    "invert": Operation(lambda *_: 0.0, lambda frames, *_: np.bitwise_not(frames)),
    "rotate": Operation(_signed(30), _geometric(_rotation)),
    "posterize": Operation(lambda strength, _: 4.0 - int(4 * strength), _posterize),
    "solarize": Operation(lambda strength, _: 256.0 - int(256 * strength), _solarize),
    "solarize_add": Operation(lambda strength, _: float(int(110 * strength)), _solarize_add),
    "color": Operation(_enhancement, _color),
    "contrast": Operation(_enhancement, _contrast),
    "brightness": Operation(_enhancement, lambda f, x, _: _look_up(f, _blend_levels(0, x))),
    "sharpness": Operation(_enhancement, _sharpness),
    "shear_x": Operation(_signed(0.3), _geometric(lambda x, h, w: ((1, x, 0), (0, 1, 0)))),
    "shear_y": Operation(_signed(0.3), _geometric(lambda x, h, w: ((1, 0, 0), (x, 1, 0)))),
    "translate_x": Operation(_signed(0.45), _geometric(lambda x, h, w: ((1, 0, x * w), (0, 1, 0)))),
    "translate_y": Operation(_signed(0.45), _geometric(lambda x, h, w: ((1, 0, 0), (0, 1, x * h)))),
}
