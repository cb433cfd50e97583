"""Pictures: WebP animations and TIFF files of several pages as videos, others as one frame.

GIF and animated PNG are read by libav. PyAV's has no demuxer for animated WebP, and Pillow composes
frames of animated PNG wrongly.
"""

import os
import re
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from hiera_video.settings.video import Decoding
from hiera_video.video.backends.image import (
    IMAGE_DURATION_SEC,
    ImageReader,
    opened_image,
    upright_rgb,
)
from hiera_video.video.reader import Deadline, VideoError, VideoReader

MIN_DURATION_MS, USUAL_DURATION_MS = 10, 100  # what browsers make of shorter ones
SUBFILE_TYPE, OLD_SUBFILE_TYPE, WIDTH, LENGTH = 254, 255, 256, 257  # tags
DESCRIPTION, ORIENTATION = 270, 274  # tags
REDUCED, MASK, OLD_REDUCED = 1, 4, 2  # their values: pages that are no pictures of their own


def open_picture(
    path: str, kind: str | None, limits: Decoding, frames_fps: float | None
) -> VideoReader:
    """Opens a picture.

    Args:
        kind: its format, of `picture_format`.
        frames_fps: pages of a TIFF file in a second. None: 25.
    """
    reader: MovingPictureReader
    if kind == "webp":
        reader = WebpReader(path, limits)
    elif kind == "tiff":
        reader = TiffReader(path, limits, frames_fps or 1 / IMAGE_DURATION_SEC)
    else:
        return ImageReader(path, limits)
    return reader if reader.pages != [0] else ImageReader(path, limits)


class MovingPictureReader(VideoReader):
    """See `VideoReader`. The orientation is applied; transparency is dropped.

    Attributes:
        pages: Pillow's numbers of the frames.
    """

    backend = "pillow"
    pages: list[int]
    _needs_earlier: bool  # whether a frame changes the picture before it

    def _read(self, positions: list[int], deadline: Deadline) -> Iterator[tuple[int, np.ndarray]]:
        done = 0  # pages
        with opened_image(self.path) as image:
            for position in positions:
                wanted = self.pages[position]
                for page in range(done, wanted + 1) if self._needs_earlier else [wanted]:
                    deadline.check()
                    image.seek(page)
                    image.load()
                done = wanted + 1
                yield position, upright_rgb(self.path, image)

    def _check_file_size(self) -> None:
        """Raises VideoError if the file, which Pillow reads whole, is larger than a read may be."""
        size, allowed = os.path.getsize(self.path) / 2**30, self.limits.max_read_gib
        if size > allowed:
            raise VideoError(
                self.path,
                "too_large",
                f"is a WebP file of {size:.1f} GiB; max_read_gib={allowed:g} is allowed; "
                "raise it (data.max_read_gib in commands), or leave the file out",
            )


class WebpReader(MovingPictureReader):
    """Frames of a WebP animation. Durations of 10 ms and less count as 100 ms.

    Raises:
        VideoError: the file is cut off, or too large.
    """

    _needs_earlier = True

    def __init__(self, path: str, limits: Decoding) -> None:
        super().__init__(path, limits)
        self._check_file_size()
        durations_ms = self._durations_ms(Deadline(path, limits.deadline_sec))
        ends_ms = np.cumsum(
            [ms if ms > MIN_DURATION_MS else USUAL_DURATION_MS for ms in durations_ms]
        )
        self.pages = list(range(len(ends_ms)))
        self.frame_times_sec = np.concatenate([[0], ends_ms[:-1]]) / 1000
        self.end_sec = float(ends_ms[-1]) / 1000

    def _durations_ms(self, deadline: Deadline) -> list[int]:
        """Durations of all frames, as the file states them, without decoding.

        Pillow allocates the frame when it opens the file, so that the size is checked here.

        Format: RFC 9649.
        """
        durations_ms = []
        with open(self.path, "rb") as file:
            header = file.read(30).ljust(30, b"\0")
            kind = header[12:16]
            if kind == b"VP8X":
                self.check_size(1 + _uint24(header[27:]), 1 + _uint24(header[24:]))
            elif kind == b"VP8L":
                (bits,) = struct.unpack_from("<I", header, 21)
                self.check_size(1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
            elif kind == b"VP8 ":
                width, height = struct.unpack_from("<HH", header, 26)
                self.check_size(height & 0x3FFF, width & 0x3FFF)
            place, end = 12, 8 + int.from_bytes(header[4:8], "little")
            if os.path.getsize(self.path) < end:
                sentence = f"holds {os.path.getsize(self.path)} of {end} bytes; fetch it again"
                raise VideoError(self.path, "truncated", sentence)
            while place + 8 <= end:
                deadline.check()
                file.seek(place)
                kind, size = struct.unpack("<4sI", file.read(8))
                if kind == b"ANMF":
                    durations_ms.append(_uint24(file.read(16)[12:]))
                place += 8 + size + size % 2
        return durations_ms or [0]


class TiffReader(MovingPictureReader):
    """Pages of a TIFF file, without reduced copies and masks, at a constant rate.

    Raises:
        VideoError: pages differ in size, the list of pages is damaged, or the images of an ImageJ
            stack have no pages.
    """

    _needs_earlier = False

    def __init__(self, path: str, limits: Decoding, fps: float) -> None:
        super().__init__(path, limits)
        deadline = Deadline(path, limits.deadline_sec)
        num_images = 0
        sizes: dict[int, tuple[int, int]] = {}  # (width, height) of pages
        with opened_image(path) as image:
            page = 0
            while True:
                deadline.check()
                try:
                    image.seek(page)
                except EOFError:
                    break
                if page == 0:
                    num_images = _imagej_images(image)
                if not _is_subordinate(image):
                    self.check_size(image.height, image.width)
                    sizes[page] = _upright_size(image)
                page += 1
        if num_images > page:
            sentence = (
                f"is an ImageJ stack of {num_images} images, of which its TIFF pages state "
                f"{page}; save it as an image sequence"
            )
            raise VideoError(path, "backend", sentence)
        self.pages = [*sizes] or [0]
        self.frame_times_sec = np.arange(len(self.pages)) / fps
        self.end_sec = len(self.pages) / fps
        if len(set(sizes.values())) > 1:
            first = sizes[self.pages[0]]
            other = next(page for page in sizes if sizes[page] != first)
            raise VideoError(
                path,
                "not_a_video",
                f"has pages of different sizes ({first[0]} x {first[1]} pixels, page {other} "
                f"{sizes[other][0]} x {sizes[other][1]}); save each as a file",
            )


def _is_subordinate(image: Image.Image) -> bool:
    tags = image.tag_v2
    kind, old_kind = tags.get(SUBFILE_TYPE, 0), tags.get(OLD_SUBFILE_TYPE, 1)
    return bool(kind & (REDUCED | MASK)) or old_kind == OLD_REDUCED


def _imagej_images(image: Image.Image) -> int:
    """The number of images that ImageJ, or what writes as it does, states; 0 for other files.

    They may lie behind one another without pages of their own.
    """
    description = str(image.tag_v2.get(DESCRIPTION, ""))
    stated = re.search(r"^images=(\d{1,9})\s*$", description, re.MULTILINE)
    return int(stated[1]) if stated and description.startswith("ImageJ=") else 0


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a page after rotation; versions of Pillow differ in what `size` is."""
    width, height, orientation = (image.tag_v2.get(tag, 1) for tag in (WIDTH, LENGTH, ORIENTATION))
    return (height, width) if orientation > 4 else (width, height)


def _uint24(data: bytes) -> int:
    return int.from_bytes(data[:3], "little")
