"""An image as a video of one frame."""

from collections.abc import Iterator

import numpy as np

from hiera_video.video.reader import Deadline, VideoError, VideoReader

IMAGE_DURATION_SEC = 0.04  # one frame at 25 fps, as in libavformat


class ImageReader(VideoReader):
    """See `VideoReader`. The EXIF orientation is applied; transparency is dropped."""

    backend = "pillow"

    def __init__(self, path: str, deadline_sec: float) -> None:
        from PIL import Image, ImageOps

        super().__init__(path, deadline_sec)
        self.frame_times_sec = np.zeros(1)
        self.end_sec = IMAGE_DURATION_SEC
        try:
            with Image.open(path) as image:
                self._frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # Pillow's decoders raise many types
            raise VideoError(
                path, "not_a_video", f"does not decode as an image ({error}); replace the file"
            ) from error

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            yield position, self._frame.copy()
