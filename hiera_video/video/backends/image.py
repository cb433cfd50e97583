"""An image as a video of one frame."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from hiera_video.settings.video import Decoding
from hiera_video.video.reader import Deadline, VideoError, VideoReader

IMAGE_DURATION_SEC = 0.04  # one frame at 25 fps, as in libavformat


@contextmanager
def opened_image(path: str) -> Iterator[Image.Image]:
    """An image whose header has been read; errors of Pillow become VideoErrors."""
    try:
        with Image.open(path) as image:
            yield image
    except VideoError:
        raise
    except Image.DecompressionBombError as error:
        raise VideoError(path, "too_large", f"is refused by Pillow ({error})") from error
    except Exception as error:  # Pillow's decoders raise many types
        raise VideoError(
            path, "not_a_video", f"does not decode as an image ({error}); replace the file"
        ) from error


class ImageReader(VideoReader):
    """See `VideoReader`. The EXIF orientation is applied; transparency is dropped."""

    backend = "pillow"

    def __init__(self, path: str, limits: Decoding) -> None:
        super().__init__(path, limits)
        self.frame_times_sec = np.zeros(1)
        self.end_sec = IMAGE_DURATION_SEC
        with opened_image(path) as image:
            self.check_size(image.height, image.width)
            self._frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            yield position, self._frame.copy()
