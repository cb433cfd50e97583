"""From decoded frames to the clip that a model sees: crops, flips, augmentation.

Frames are uint8 `[T, H, W, 3]`, RGB, until they are on the device, where
`hiera_video.models.normalize.Normalize` makes the input of the model of them. A training transform
is a pure function of the frames and of its random generator, and treats all frames of a clip in the
same way. The steps are those of SlowFast's masked_ssl recipes, which the Hiera paper follows:
random resized crop, horizontal flip, RandAugment, random erasing. One order differs: SlowFast
augments whole frames and crops afterwards; cropping first is much faster, and makes translations
and shears relative to the crop.

Videos are shrunk to a short side by averaging areas, as the decoder of SlowFast's loader does. What
comes after that, and everything in detection, is bilinear without antialiasing there, and here.

The kernels are OpenCV's because torchvision's, also on uint8, are several times slower
(docs/benchmarks.md), but for areas, which swscale averages four times as fast. OpenCV starts its
own threads; workers of loaders therefore call `cv2.setNumThreads`.
"""

import math
from collections.abc import Callable, Sequence

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from hiera_video.data.randaugment import RandAugment
from hiera_video.errors import ConfigError, ModelError
from hiera_video.settings.training import Augment, Crop, DetectionAugment
from hiera_video.video.sampling import (
    covering_short_side,
    crop_offsets,
    resized_shape,
    scaled_shape,
)

Frames = UInt8[np.ndarray, "T H W 3"]
Clip = UInt8[np.ndarray, "T height width 3"]
Boxes = Float[np.ndarray, "n 4"]  # x1 y1 x2 y2 as fractions of a picture
Range = tuple[float, float]
Box = tuple[int, int, int, int]  # top, left, height, width

MAX_ASPECT = 8  # long to short side of frames that are resized whole
SHORT_SIDE = 256 / 224  # of frames, relative to a crop in training, or to a single one in testing
MIN_SCALED, MAX_SCALE = 8, 64  # swscale errs in smaller pictures, and has filters of 256 pixels
CROP_TRIES = 10
ERASING_AREA = (0.02, 1 / 3)  # fraction of the frame
ERASING_ASPECT = (0.3, 1 / 0.3)  # height / width
ERASING_TRIES = 100


class PretrainTransform:
    """Random resized crop and flip, the augmentation of masked pretraining (paper, Tab. 11a).

    Args:
        size: size of the output in pixels: a side or (height, width).
        crop: area and aspect ratio of the crop, and whether half of the clips are mirrored.

    Attributes:
        short_side: to which larger videos are shrunk before they are cropped, 256 for 224 pixels.
    """

    def __init__(self, size: int | tuple[int, int], crop: Crop) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        self.short_side = round(max(self.size) * SHORT_SIDE)
        self.crop = crop
        if min(self.size) < 1:
            raise ValueError(f"size is {size}; allowed: 1 or more pixels")

    def __call__(self, frames: Frames, rng: np.random.Generator) -> Clip:
        """A new, contiguous array. Large videos are first shrunk, for which see `shrink_to`."""
        check_frames(frames)
        if len(frames) > 1:  # a crop of an image is taken from all of its pixels
            frames = shrink_to(frames, self.short_side)
        area, aspect = self.crop.crop_area, self.crop.crop_aspect
        box = random_crop_box(frames.shape[1], frames.shape[2], area, aspect, rng)
        clip = resized_crop(frames, box, *self.size)
        if self.crop.flip and rng.random() < 0.5:
            clip = cv2.flip(clip.reshape(-1, clip.shape[2], 3), 1).reshape(clip.shape)
        return clip


class FinetuneTransform:
    """Random resized crop, flip, RandAugment and random erasing (paper, Tab. 11b; SlowFast).

    Args:
        size: as for `PretrainTransform`.
        augment: settings of augmentation; mixup and cutmix are not applied here.
        mean: mean colour, RGB in 0..1, for random erasing and for the border that RandAugment's
            geometric operations uncover.
        std: standard deviation of the colours, RGB in 0..1, for random erasing.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        augment: Augment,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.crop_and_flip = PretrainTransform(size, augment)
        self.short_side = self.crop_and_flip.short_side
        self.rand_augment = None
        if augment.rand_augment_magnitude is not None:
            self.rand_augment = RandAugment(
                mean,
                magnitude=augment.rand_augment_magnitude,
                magnitude_std=augment.rand_augment_std,
            )
        self.erasing_prob = augment.erasing_prob
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, frames: Frames, rng: np.random.Generator) -> Clip:
        """A new, contiguous array."""
        clip = self.crop_and_flip(frames, rng)
        if self.rand_augment is not None:
            clip = self.rand_augment(clip, rng)
        if rng.random() < self.erasing_prob:
            erase_random_box(clip, self.mean, self.std, rng)
        return clip


class DetectionTransform:
    """Resizes, crops and flips a clip with boxes at random, as in SlowFast's training on AVA.

    Args:
        size: (height, width) of the output, pixels.
        augment: range of sizes of the resized frames, and whether half of the clips are mirrored.
    """

    def __init__(self, size: tuple[int, int], augment: DetectionAugment) -> None:
        self.size, self.augment = size, augment

    def __call__(
        self, frames: Frames, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Clip, Boxes]:
        """A new clip, and the boxes as fractions of its frames; they may extend beyond 0..1."""
        height, width = self.size
        short_side = covering_short_side(frames.shape[1], frames.shape[2], self.size)
        short_side = round(short_side * rng.uniform(*self.augment.zoom))
        rows, columns = resized_shape(frames.shape[1], frames.shape[2], short_side)
        top = int(rng.integers(rows - height, endpoint=True))
        left = int(rng.integers(columns - width, endpoint=True))
        clip, boxes = _crop(frames, boxes, short_side, (top, left), self.size)
        if self.augment.flip and rng.random() < 0.5:
            clip, boxes = clip[:, :, ::-1], boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
        return np.ascontiguousarray(clip), boxes


class Crops:
    """The test crops of a clip: `[T, H, W, 3]` to uint8 `[S, T, h, w, 3]`, resized and cut.

    Args:
        size: height and width of a crop, pixels.
        num_crops: S, 1 (centre) or 3 (along the longer side).
        short_side: of the resized frames, pixels. None: the larger side of the crop with three
            crops, and 256/224 of it with one (256 for crops of 224, as in SlowFast).
        key: name of the setting of the short side, for errors.

    Raises:
        ConfigError: the short side is smaller than a side of the crop.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_crops: int,
        short_side: int | None = None,
        key: str = "views.short_side",
    ) -> None:
        if short_side is None:
            short_side = round(max(size) * (SHORT_SIDE if num_crops == 1 else 1))
        if short_side < max(size):
            raise ConfigError(
                f"{key} is {short_side}; it must be at least {max(size)}, the size of a crop"
            )
        self.size, self.num_crops, self.short_side = size, num_crops, short_side

    def __call__(self, frames: Frames) -> UInt8[np.ndarray, "S T h w 3"]:
        frames, offsets = self.resized(frames)
        height, width = self.size
        return np.stack([frames[:, y : y + height, x : x + width] for y, x in offsets])

    def resized(self, frames: Frames) -> tuple[Clip, list[tuple[int, int]]]:
        """The resized frames, and (top, left) of each crop in them.

        Of frames more than `MAX_ASPECT` times as long as wide the crops alone, side by side.
        """
        check_frames(frames)
        shape = scaled_shape(frames.shape[1], frames.shape[2], self.short_side)
        offsets = crop_offsets(*shape, self.size, self.num_crops)
        return _resized(frames, self.short_side, offsets, self.size, resize_short_side)


def centre_crop(frames: Frames, boxes: Boxes, size: tuple[int, int]) -> tuple[Clip, Boxes]:
    """Resizes frames to the smallest size that covers `size`, and takes the centre crop.

    Returns:
        The clip, and the boxes as fractions of its frames; they may extend beyond 0..1.
    """
    short_side = covering_short_side(frames.shape[1], frames.shape[2], size)
    shape = resized_shape(frames.shape[1], frames.shape[2], short_side)
    (offset,) = crop_offsets(*shape, size, 1)
    clip, boxes = _crop(frames, boxes, short_side, offset, size)
    return np.ascontiguousarray(clip), boxes


def _crop(
    frames: Frames, boxes: Boxes, short_side: int, offset: tuple[int, int], size: tuple[int, int]
) -> tuple[Clip, Boxes]:
    """The crop at `offset` of resized frames, maybe a view, and boxes as fractions of it."""
    (top, left), (height, width) = offset, size
    rows, columns = resized_shape(frames.shape[1], frames.shape[2], short_side)
    scale = np.array([columns / width, rows / height] * 2)
    boxes = boxes * scale - np.array([left / width, top / height] * 2)
    frames, ((top, left),) = _resized(frames, short_side, [offset], size, _resize_for_boxes)
    return frames[:, top : top + height, left : left + width], boxes


def _resized(
    frames: Frames,
    short_side: int,
    offsets: list[tuple[int, int]],
    size: tuple[int, int],
    resize: Callable[[Frames, int], Clip],
) -> tuple[Clip, list[tuple[int, int]]]:
    """Frames resized to `short_side`, and (top, left) of crops of `size`, at `offsets`, in them.

    A picture of 8 x 10,000 pixels would take 240 MB at a short side of 256. Of long frames each
    crop is therefore resized by itself, and the result is the crops side by side.
    """
    height, width = size
    rows, columns = frames.shape[1:3]
    if max(rows, columns) <= MAX_ASPECT * min(rows, columns):
        return resize(frames, short_side), offsets
    crops = []
    for top, left in offsets:
        # Along the longer side, from squares of the frame that become squares of `short_side`:
        # those that the crop meets, and one more at each end, which its edges are interpolated of.
        place, length = (top, height) if rows > columns else (left, width)
        first = max(0, place // short_side - 1)
        end = (place + length) // short_side + 2
        taken = slice(first * min(rows, columns), end * min(rows, columns))
        part = frames[:, taken] if rows > columns else frames[:, :, taken]
        part = resize(part, short_side)
        place -= first * short_side
        top, left = (place, left) if rows > columns else (top, place)
        top, left = min(top, part.shape[1] - height), min(left, part.shape[2] - width)
        crops.append(part[:, top : top + height, left : left + width])
    return np.concatenate(crops, axis=2), [(0, i * width) for i in range(len(crops))]


def check_frames(frames: np.ndarray) -> None:
    """Raises ModelError unless frames are uint8 [T, H, W, 3] and not empty."""
    if not isinstance(frames, np.ndarray):
        raise ModelError(
            f"the frames are a {type(frames).__name__}: expected a NumPy array, uint8 [T, H, W, "
            "3], as open_video gives them"
        )
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ModelError(
            f"the frames are {frames.dtype} of shape {frames.shape}; allowed: uint8 [T, H, W, 3], "
            "with frames and pixels"
        )


def random_crop_box(
    height: int, width: int, area: Range, aspect: Range, rng: np.random.Generator
) -> Box:
    """A random box inside the frame, with uniform area and log-uniform aspect ratio.

    If none of ten boxes fits, the largest central box of an allowed aspect ratio.

    Args:
        area: range of the area, as fractions of the frame.
        aspect: range of width / height.
    """
    for _ in range(CROP_TRIES):
        box_height, box_width = _random_shape(height * width, area, aspect, rng)
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height, endpoint=True))
            left = int(rng.integers(width - box_width, endpoint=True))
            return top, left, box_height, box_width
    narrowest, widest = aspect
    box_height = min(height, max(1, round(width / narrowest)))
    box_width = min(width, max(1, round(height * widest)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _random_shape(
    pixels: int, area: Range, aspect: Range, rng: np.random.Generator
) -> tuple[int, int]:
    """Height and width of a random box whose area is a fraction in `area` of `pixels`."""
    target = pixels * rng.uniform(*area)
    width_to_height = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    return round(math.sqrt(target / width_to_height)), round(math.sqrt(target * width_to_height))


def resized_crop(frames: Frames, box: Box, height: int, width: int) -> Clip:
    """Crops a box from all frames and resizes it as SlowFast does: bilinear, not antialiased.

    A single frame, an image, is shrunk by averaging, because photographs are many times as large
    as the crop.
    """
    top, left, box_height, box_width = box
    cropped = frames[:, top : top + box_height, left : left + box_width]
    if len(frames) == 1 and box_height > height and box_width > width:
        return _averaged(cropped, height, width)
    return _resize(cropped, height, width, cv2.INTER_LINEAR)


def resize_short_side(frames: Frames, short_side: int) -> Clip:
    """Resizes frames to a short side of `short_side` pixels, as SlowFast's decoder does.

    Frames are shrunk by averaging areas and enlarged bilinearly, rounded to grey levels. Those that
    already have the size are returned unchanged.
    """
    check_frames(frames)
    height, width = frames.shape[1:3]
    if min(height, width) >= short_side:
        return shrink_to(frames, short_side)
    return _resize(frames, *scaled_shape(height, width, short_side), cv2.INTER_LINEAR)


def shrink_to(frames: Frames, short_side: int) -> Clip:
    """Shrinks frames of a longer short side, as `resize_short_side`; others are unchanged."""
    height, width = frames.shape[1:3]
    if min(height, width) <= short_side:
        return frames
    return _averaged(frames, *scaled_shape(height, width, short_side))


def _resize_for_boxes(frames: Frames, short_side: int) -> Clip:
    """Resizes frames to a short side as SlowFast does for AVA, see `resized_crop`."""
    height, width = frames.shape[1:3]
    new_height, new_width = resized_shape(height, width, short_side)
    if (new_height, new_width) == (height, width):
        return frames
    return resized_crop(frames, (0, 0, height, width), new_height, new_width)


def _averaged(frames: Frames, height: int, width: int) -> Clip:
    """Shrinks frames: each pixel is the mean of the area that it covers, rounded to a grey level.

    By swscale, as in SlowFast's decoder, but each colour by itself: of RGB, swscale may take the
    colour of pairs of pixels. OpenCV is more exact and takes four times as long, but if areas are
    whole pixels.
    """
    rows, columns = frames.shape[1:3]
    is_whole = rows % height == columns % width == 0
    is_extreme = min(height, width) < MIN_SCALED or max(rows / height, columns / width) > MAX_SCALE
    if is_whole or is_extreme:
        return _resize(frames, height, width, cv2.INTER_AREA)
    # swscale may read some bytes past the end of a plane.
    planes = np.empty(3 * rows * columns + 64, np.uint8)[:-64].reshape(3, rows, columns)
    pictures = [av.VideoFrame.from_numpy_buffer(plane, "gray") for plane in planes]
    scaler = VideoReformatter()
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, shrunk in zip(frames, out, strict=True):
        cv2.split(frame, list(planes))  # much slower into planes with gaps between rows
        scaled = (
            scaler.reformat(picture, width, height, interpolation="AREA", threads=1)
            for picture in pictures
        )
        # Rows with the bytes behind them: OpenCV merges planes without gaps 5 times as fast.
        rows = [
            np.frombuffer(memoryview(picture.planes[0]), np.uint8).reshape(height, -1)
            for picture in scaled
        ]
        shrunk[:] = cv2.merge(rows)[:, :width]
    return out


def _resize(frames: Frames, height: int, width: int, interpolation: int) -> Clip:
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, resized in zip(frames, out, strict=True):
        cv2.resize(frame, (width, height), dst=resized, interpolation=interpolation)
    return out


def erase_random_box(
    clip: Frames, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator
) -> None:
    """Random erasing (arXiv 1708.04896) in place: noise in one box, the same box in all frames.

    The noise is normal in normalised units, drawn for each pixel of each frame, as in SlowFast's
    "cube" mode, and clipped to black and white. The clip is unchanged if none of 100 boxes fits.
    """
    frames, height, width, channels = clip.shape
    for _ in range(ERASING_TRIES):
        box_height, box_width = _random_shape(height * width, ERASING_AREA, ERASING_ASPECT, rng)
        if 0 < box_height < height and 0 < box_width < width:
            break
    else:
        return
    top = int(rng.integers(height - box_height, endpoint=True))
    left = int(rng.integers(width - box_width, endpoint=True))
    noise = rng.standard_normal((frames, box_height, box_width, channels), dtype=np.float32)
    noise *= 255 * np.asarray(std, np.float32)
    noise += 255 * np.asarray(mean, np.float32) + 0.5  # rounds when the fraction is cut off
    box = clip[:, top : top + box_height, left : left + box_width]
    box[...] = np.clip(noise, 0, 255, out=noise)
