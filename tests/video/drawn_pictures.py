"""Writers of animated PNG and WebP files and of TIFF pages, and what their frames are.

The files are put together byte by byte, so that size, place, time, disposal and blending of each
frame are known; `composed` states the pictures by the rules that both formats share.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

KEEP, CLEAR, RESTORE = range(3)  # what happens to the frame before the next one (WebP: first two)
SIZE = (20, 30)


@dataclass(frozen=True)
class Part:
    """A frame of an animation: `pixels` uint8 [h, w, 4] that are put at (x, y)."""

    pixels: np.ndarray
    x: int
    y: int
    ms: int
    disposal: int
    is_blended: bool


def random_parts(seed: int, count: int = 12, *, disposals: int = 3) -> list[Part]:
    """Frames at random (even) places; the first and the middle one have full size."""
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(count):
        is_full = number in (0, count // 2)
        h, w = SIZE if is_full else rng.integers(3, 13, 2).tolist()
        x, y = (2 * int(rng.integers(0, room // 2 + 1)) for room in (SIZE[1] - w, SIZE[0] - h))
        pixels = rng.integers(0, 256, (h, w, 4)).astype(np.uint8)
        pixels[..., 3] = 255 * (rng.integers(0, 2, (h, w)) if number else 1)
        ms, disposal = int(rng.integers(20, 200)), int(rng.integers(0, disposals))
        parts.append(Part(pixels, x, y, ms, disposal if number else KEEP, bool(rng.integers(2))))
    return parts


def composed(parts: list[Part]) -> list[np.ndarray]:
    """What is seen at each frame: uint8 [H, W, 4]; every pixel is opaque or transparent."""
    canvas = np.zeros((*SIZE, 4), np.uint8)
    frames = []
    for part in parts:
        before = canvas.copy()
        height, width = part.pixels.shape[:2]
        region = canvas[part.y : part.y + height, part.x : part.x + width]
        is_set = part.pixels[..., 3] > 0 if part.is_blended else np.ones((height, width), bool)
        region[is_set] = part.pixels[is_set]
        frames.append(canvas.copy())
        if part.disposal == CLEAR:
            region[:] = 0
        elif part.disposal == RESTORE:
            canvas = before
    return frames


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_pixels(pixels: np.ndarray) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))


def png_bytes(
    parts: list[Part], *, before: bytes = b"", default: np.ndarray | None = None, depth: int = 8
) -> bytes:
    """An animated PNG.

    Args:
        before: text that stands before the number of frames.
        default: a picture for programs that do not show animations.
        depth: bits of a channel, 8 or 16.
    """
    height, width = SIZE
    data = b"\x89PNG\r\n\x1a\n" + _png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 6, 0, 0, 0)
    )
    if before:
        data += _png_chunk(b"tEXt", b"Comment\0" + before)
    data += _png_chunk(b"acTL", struct.pack(">II", len(parts), 0))
    if default is not None:
        data += _png_chunk(b"IDAT", _png_pixels(default))
    sequence = 0
    for number, part in enumerate(parts):
        h, w = part.pixels.shape[:2]
        control = struct.pack(">IIIIIHH", sequence, w, h, part.x, part.y, part.ms, 1000)
        data += _png_chunk(b"fcTL", control + bytes([part.disposal, part.is_blended]))
        sequence += 1
        packed = _png_pixels(part.pixels.repeat(depth // 8, axis=-1))
        if number == 0 and default is None:
            data += _png_chunk(b"IDAT", packed)
        else:
            data += _png_chunk(b"fdAT", struct.pack(">I", sequence) + packed)
            sequence += 1
    return data + _png_chunk(b"IEND", b"")


def _riff_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _uint24(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


def webp_bytes(
    parts: list[Part], *, size: tuple[int, int] = SIZE, orientation: int | None = None
) -> bytes:
    """A lossless WebP animation."""
    height, width = size
    flags = 0x12 | (8 if orientation else 0)  # animation, alpha, EXIF
    body = _riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _uint24(width - 1) + _uint24(height - 1))
    body += _riff_chunk(b"ANIM", bytes(6))
    for part in parts:
        file = io.BytesIO()
        Image.fromarray(part.pixels).save(file, "WEBP", lossless=True, exact=True)
        picture = file.getvalue()[12:]
        if picture.startswith(b"VP8X"):
            picture = picture[18:]
        h, w = part.pixels.shape[:2]
        numbers = (part.x // 2, part.y // 2, w - 1, h - 1, part.ms)
        header = b"".join(map(_uint24, numbers))
        header += bytes([(0 if part.is_blended else 2) | part.disposal])
        body += _riff_chunk(b"ANMF", header + picture)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        body += _riff_chunk(b"EXIF", exif.tobytes())
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def write_tiff(path: Path, pages: list[np.ndarray], tags: list[dict[int, int]]) -> Path:
    """Pages uint8 [h, w, 3] with more tags, which are numbered as in TIFF 6.0."""
    with TiffImagePlugin.AppendingTiffWriter(path, True) as file:
        for pixels, own in zip(pages, tags, strict=True):
            entries = TiffImagePlugin.ImageFileDirectory_v2()
            for tag, value in own.items():
                entries[tag] = value
            Image.fromarray(pixels).save(file, format="TIFF", tiffinfo=entries)
            file.newFrame()
    return path
