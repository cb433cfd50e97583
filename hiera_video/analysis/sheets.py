"""Pictures made of labelled frames, which the commands `visualize ...` write."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hiera_video.files import replacing
from hiera_video.video.writer import write_video

Frames = UInt8[np.ndarray, "t H W 3"]
Picture = UInt8[np.ndarray, "H W 3"]
Colour = tuple[int, int, int]

TILE_PX = 224  # smaller frames are enlarged to about this height
COLUMNS = 8  # frames side by side in a contact sheet; more are below
GAP_PX = 6
TEXT_COLOUR: Colour = (20, 20, 20)
PAPER: Colour = (255, 255, 255)

Row = tuple[list[str], list[Picture], Colour]
"""Labels, their colour, and between them the pictures below the labels: none, or one a column."""


def timed_grid(
    videos: Sequence[tuple[str, Frames, Colour]], times_sec: Sequence[float]
) -> list[Row]:
    """The rows of a contact sheet: frames below one another, with their times above them.

    Args:
        videos: label, frames and text colour of each.
        times_sec: presentation time of each of the t frames.
    """
    grid: list[Row] = []
    for start in range(0, len(times_sec), COLUMNS):
        shown = slice(start, start + COLUMNS)
        grid.append(([f"{time_sec:.2f} s" for time_sec in times_sec[shown]], [], TEXT_COLOUR))
        grid += [([label], [*frames[shown]], ink) for label, frames, ink in videos]
    return grid


def draw_grid(rows: list[Row], notes: Sequence[tuple[str, Colour]]) -> Picture:
    """Draws rows, and below them notes, texts of any length; both sides are even.

    All pictures have the same size; small ones are enlarged to a height of about `TILE_PX`, by
    repeating pixels. The label of a row that has only one may extend over several columns.
    """
    shape = next(pictures[0].shape for _, pictures, _ in rows if pictures)
    factor = max(1, round(TILE_PX / shape[0]))
    tile_height, tile_width = (factor * side for side in shape[:2])
    size = max(16, tile_height // 12)
    font, line_px = ImageFont.load_default(size=size), round(1.4 * size)
    widths = [[round(font.getlength(label)) for label in labels] for labels, _, _ in rows]
    in_columns = (width for row in widths if len(row) > 1 for width in row)
    column_px = max([tile_width, *in_columns]) + GAP_PX
    width = GAP_PX + max(
        column_px * max(len(pictures) for _, pictures, _ in rows),
        max(map(max, widths)) + GAP_PX,
        2 * tile_height,  # for the notes
    )
    rows = [*rows]
    for text, ink in notes:
        rows += [([line], [], ink) for line in _wrapped(text, font, width - 2 * GAP_PX)]
    with_pictures = sum(bool(pictures) for _, pictures, _ in rows)
    height = 2 * GAP_PX + len(rows) * line_px + with_pictures * (tile_height + GAP_PX)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP_PX
    for labels, pictures, ink in rows:
        for column, label in enumerate(labels):
            draw.text((GAP_PX + column * column_px, top), label, ink, font)
        top += line_px
        for column, picture in enumerate(pictures):
            tile = ImageOps.scale(Image.fromarray(picture), factor, Image.Resampling.NEAREST)
            sheet.paste(tile, (GAP_PX + column * column_px, top))
        top += tile_height + GAP_PX if pictures else 0
    return np.asarray(sheet)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def write_png(path: str | os.PathLike[str], picture: Picture) -> None:
    """Writes a picture; an existing file is replaced when the new one is complete."""
    with replacing(path) as part:
        Image.fromarray(picture).save(part, format="png")


def write_pictures(
    path: str | os.PathLike[str], pictures: Iterable[Picture], times_sec: Sequence[float]
) -> None:
    """Writes one picture for each time as mp4, at the speed of the video."""
    write_video(path, pictures, fps_of(times_sec), options={"crf": "18"})


def fps_of(times_sec: Sequence[float]) -> float:
    """The rate of frames with these times, per second; 1 if all times are equal."""
    steps = np.diff(times_sec)
    steps = steps[steps > 0]  # 0 where the last frame of a short video is repeated
    return 1 / float(np.median(steps)) if steps.size else 1.0
