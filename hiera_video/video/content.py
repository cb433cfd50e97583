"""Which files are pictures, by their first bytes: names are often wrong."""

import os
import re
import struct

from hiera_video.video.reader import IMAGE_SUFFIXES

_PICTURES = re.compile(
    rb"(?P<bmp>BM)|(?P<jpeg>\xff\xd8)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<ppm>P[1-6Ff]\s)"
    rb"|(?P<tiff>II[*+]\0|MM\0[*+])|(?P<webp>RIFF.{4}WEBP)",
    re.DOTALL,
)
MAX_CHUNKS = 10_000  # before the pixels of a PNG: bounds the time for a hostile file


def has_picture_name(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def frame_number(name: str) -> int | None:
    """The number at the end of the name of a picture, which makes it a frame; None without one.

    Hidden files, such as macOS's `._img_1.png`, are no frames.
    """
    if name.startswith("."):
        return None
    stem, suffix = os.path.splitext(name)
    number = re.search(r"\d+$", stem)
    return int(number[0]) if number and suffix.lower() in IMAGE_SUFFIXES else None


def is_frame_folder(path: str) -> bool:
    """Whether a path is that of a folder with numbered pictures."""
    try:
        return any(frame_number(entry.name) is not None for entry in os.scandir(path))
    except OSError:
        return False


def picture_format(path: str) -> str | None:
    """The format of a picture that Pillow reads: bmp, jpeg, png, ppm, tiff or webp.

    None for everything that libav reads, which GIF and animated PNG are, too. So are JPEGs that are
    not named as pictures: Motion JPEG without a container begins as they do.
    """
    with open(path, "rb") as file:
        match = _PICTURES.match(file.read(16))
    found = match.lastgroup if match else None
    if found == "jpeg" and not has_picture_name(path):
        return None
    if found == "png" and png_frames(path) > 1:
        return None
    return found


def png_frames(path: str) -> int:
    """The number of frames that a PNG announces: 1 for one that does not move, 0 for other files.

    Format: https://www.w3.org/TR/png-3/, chunk acTL, which stands before the pixels.
    """
    with open(path, "rb") as file:
        match = _PICTURES.match(file.read(8))
        if not match or match.lastgroup != "png":
            return 0
        for _ in range(MAX_CHUNKS):
            header = file.read(8)
            if len(header) < 8:
                break
            size, kind = struct.unpack(">I4s", header)
            if kind == b"acTL":
                return int.from_bytes(file.read(4), "big") or 1
            if kind == b"IDAT":
                break
            file.seek(size + 4, os.SEEK_CUR)  # 4 bytes of checksum
    return 1
