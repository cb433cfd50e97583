"""An image as a video of one frame."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hiera_video.settings.video import Decoding
from hiera_video.video.reader import Cause, Deadline, VideoError, VideoReader

_bound_lock = threading.Lock()
IMAGE_DURATION_SEC = 0.04  # one frame at 25 fps, as in libavformat


@contextmanager
def opened_image(path: str, file: BinaryIO | None = None) -> Iterator[Image.Image]:
    """An image whose header has been read; errors of Pillow become VideoErrors.

    Args:
        path: names the file in errors, and is opened if there is no `file`.
    """
    try:
        with _bound_lock:
            bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # readers have their own
            try:
                opened = Image.open(file or path)
            finally:
                Image.MAX_IMAGE_PIXELS = bound
        with opened as image:
            yield image
    except (VideoError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many types
        is_refused = isinstance(error, UnidentifiedImageError | ValueError)  # whole, but unknown
        cause: Cause = "not_a_video" if is_refused else "truncated"
        raise VideoError(
            path, cause, f"does not decode as an image ({error}); replace the file"
        ) from error


def upright_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] with the EXIF orientation applied and without transparency."""
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


class ImageReader(VideoReader):
    """See `VideoReader`. The EXIF orientation is applied; transparency is dropped."""

    backend = "pillow"

    def __init__(self, path: str, limits: Decoding) -> None:
        super().__init__(path, limits)
        self.frame_times_sec = np.zeros(1)
        self.end_sec = IMAGE_DURATION_SEC
        with opened_image(path) as image:
            self.check_size(image.height, image.width)
            self._frame = upright_rgb(image)

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            yield position, self._frame.copy()
