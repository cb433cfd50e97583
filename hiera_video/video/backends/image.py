"""Pictures, and an image as a video of one frame."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from hiera_video.runtime.logging import warnings_about
from hiera_video.settings.video import Decoding
from hiera_video.video.orientation import EXIF_ORIENTATIONS, Orientation, upright
from hiera_video.video.reader import Cause, Deadline, VideoError, VideoReader, warn_once

_bound_lock = threading.Lock()
IMAGE_DURATION_SEC = 0.04  # one frame at 25 fps, as in libavformat
END_OF_JPEG = b"\xff\xd9"
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339  # tags
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the second and of the last
# Pillow's names of big-endian pixels, and of those in the order of this machine.
NATIVE_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


@contextmanager
def opened_image(path: str) -> Iterator[Image.Image]:
    """An image whose header has been read; errors of Pillow become VideoErrors."""
    try:
        # Of a path, Pillow would map the file into memory, and then turns TIFF wrongly.
        with Path(path).open("rb") as file, warnings_about(path):
            with _bound_lock:
                bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # readers have theirs
                try:
                    opened = Image.open(file)
                finally:
                    Image.MAX_IMAGE_PIXELS = bound
            with opened as image:
                yield image
    except (VideoError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many types
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = "a format that Pillow does not know" if is_unknown else error
        is_refused = is_unknown or isinstance(error, ValueError)  # whole, but not readable
        cause: Cause = "not_a_video" if is_refused else "truncated"
        raise VideoError(
            path, cause, f"does not decode as an image ({reason}); replace the file"
        ) from error


def read_picture(path: str, check_size: Callable[[int, int], None]) -> np.ndarray:
    """A picture as `upright_rgb` makes it of Pillow's, for any number of channels and bits.

    Args:
        check_size: is called with height and width before the picture is decoded.

    Raises:
        VideoError: the file does not decode, or its values have no colour.
    """
    with opened_image(path) as image:
        check_size(image.height, image.width)
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            content = Path(path).read_bytes()  # cv2.imread dies of a name that is not UTF-8
            # OpenCV takes half of Pillow's time for the same pixels, but conceals a missing end.
            if content.endswith(END_OF_JPEG):
                flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
                decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
                if decoded is not None:
                    rgb = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
                    return upright(rgb, _orientation(path, image))
        return upright_rgb(path, image)


def upright_rgb(path: str, image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] with the EXIF orientation applied and without transparency.

    Grey pictures of more than 8 bits are scaled by the range of their type: unsigned integers of
    b bits from 0 to 2^b - 1, signed ones from 0 to 2^(b-1) - 1, floats from 0 to 1. Of colours of
    16 bits, Pillow has the upper 8.

    Raises:
        ValueError: values are negative, not finite, or floats above 1.
    """
    if image.format == "TIFF":
        image.tile = [_as_libtiff_returns(tile) for tile in image.tile]
    image.load()
    rgb = np.array(image.convert("RGB") if image.mode[0] not in "IF" else _eight_bits(image))
    return upright(rgb, _orientation(path, image))


def _as_libtiff_returns(tile: Any) -> Any:
    """Pillow's instruction for decoding, by which it swaps no bytes that libtiff has swapped."""
    decoder, extents, offset, args = tile
    if decoder != "libtiff" or args[0] not in NATIVE_MODES:
        return tile
    changed = decoder, extents, offset, (NATIVE_MODES[args[0]], *args[1:])
    return changed if type(tile) is tuple else type(tile)(*changed)  # a class since Pillow 11


def _eight_bits(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of grey integers or floats."""
    values = np.asarray(image)
    bits, is_signed, is_inverted = 16, False, False
    if image.format == "TIFF":
        is_inverted = image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0]
        is_signed = image.tag_v2.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    if bits == 32 and image.mode == "I" and not is_signed:
        values = values.view(np.uint32)  # Pillow has int32 only
    white = 1.0 if image.mode == "F" else 2.0 ** (bits - is_signed) - 1
    grey = np.rint(values * np.float32(255 / white))
    is_negative = image.mode != "F" and values.min() < 0
    if is_negative or not ((grey >= 0) & (grey <= 255)).all():  # nor NaN
        raise ValueError(
            f"its values are {values.min():g} to {values.max():g}; allowed are 0 to {white:g}"
        )
    if is_inverted:
        grey = 255 - grey
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _orientation(path: str, image: Image.Image) -> Orientation:
    """What is left to do: Pillow turns TIFF when it loads it, and then states no orientation."""
    try:
        stated = image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # Pillow raises many types
        warn_once(f"{path}: its EXIF data is damaged ({error}); the picture is not turned")
        return Orientation()
    return EXIF_ORIENTATIONS.get(stated, Orientation())


class ImageReader(VideoReader):
    """See `VideoReader`. The EXIF orientation is applied; transparency is dropped."""

    backend = "pillow"

    def __init__(self, path: str, limits: Decoding) -> None:
        super().__init__(path, limits)
        self.frame_times_sec = np.zeros(1)
        self.end_sec = IMAGE_DURATION_SEC
        self._frame = read_picture(path, self.check_size)

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            yield position, self._frame.copy()
