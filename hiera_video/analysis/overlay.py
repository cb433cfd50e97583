"""Drawing the boxes and actions of people onto a video.

Small frames are enlarged, so that labels fit. Labels avoid one another if there is space, and do
not leave a picture that is large enough for them.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from hiera_video.data.boxes.table import common_area
from hiera_video.errors import printable
from hiera_video.video.reader import VideoReader
from hiera_video.video.writer import write_video

Picture = UInt8[np.ndarray, "H W 3"]
Rectangle = tuple[float, float, float, float]  # x1 y1 x2 y2

LEGIBLE_PX = 360  # frames are enlarged by a whole factor to a short side of at least this,
PLAYABLE_PX = 4096  # and to a long side of at most this, up to which most players decode H.264
LARGEST_PX = 16384  # sides that x264 encodes
BACKGROUND = (0, 0, 0, 170)  # of labels, RGBA
TEXT_COLOUR = (255, 255, 255)
COLOURS = (  # of people, visible on light and dark frames
    (255, 196, 0),
    (0, 200, 255),
    (255, 90, 90),
    (120, 230, 80),
    (255, 120, 230),
    (150, 150, 255),
    (255, 150, 50),
    (60, 230, 190),
)


@dataclass(frozen=True)
class Person:
    """A box and its label."""

    box: Rectangle  # fractions of the frame
    actions: tuple[tuple[str, float], ...]  # names and scores, in the order of the label
    mask: Bool[np.ndarray, "H W"] | None = None  # pixels of the frame to tint


Keyframe = tuple[float, Sequence[Person]]
"""Seconds since the first frame of the video, and people, whose colours follow their order."""


def write_overlay(
    path: str | os.PathLike[str],
    video: VideoReader,
    keyframes: Sequence[Keyframe],
    *,
    interval_sec: float,
) -> int:
    """Writes the whole video with people drawn onto it as mp4; returns the number of frames.

    Memory does not grow with the length of the video.

    Args:
        keyframes: in ascending order of time.
        interval_sec: time between key frames; each is shown from half of it before to half after.

    Raises:
        VideoError: a frame does not decode; no file is written.
    """
    frames = overlay_frames(video, keyframes, interval_sec=interval_sec)
    return write_video(path, frames, video.fps, options={"crf": "20"})


def overlay_frames(
    video: VideoReader, keyframes: Sequence[Keyframe], *, interval_sec: float
) -> Iterator[Picture]:
    """Every frame of a video, with the people of the nearest key frame drawn onto it."""
    times_sec = video.frame_times_sec - video.frame_times_sec[0]
    shown = nearest_keyframes(times_sec, [time_sec for time_sec, _ in keyframes], interval_sec)
    for index, frame in video.stream(np.arange(len(video))):
        yield draw_people(frame, keyframes[shown[index]][1] if shown[index] >= 0 else ())


def nearest_keyframes(
    times_sec: np.ndarray, keyframes_sec: Sequence[float], interval_sec: float
) -> np.ndarray:
    """The index of the key frame within half an interval of each frame; -1 if there is none."""
    if not keyframes_sec:
        return np.full(len(times_sec), -1)
    centres = np.asarray(keyframes_sec)
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, times_sec, side="right")
    is_near = np.abs(times_sec - centres[nearest]) <= interval_sec / 2
    return np.where(is_near, nearest, -1)


def draw_people(frame: Picture, people: Sequence[Person]) -> Picture:
    """Draws masks, boxes and labels onto a frame, which is enlarged if it is small.

    An odd last row or column is cut off, or a single one is doubled, because video needs even
    sides.
    """
    frame = tinted(frame, people)
    short, long = sorted(frame.shape[:2])
    factor: float = min(math.ceil(LEGIBLE_PX / short), PLAYABLE_PX // long)
    if factor < 2:
        factor = min(1, LARGEST_PX / long)
    if factor != 1:
        kind = cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA
        frame = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=kind)
    frame = np.repeat(frame, 2, axis=0) if len(frame) == 1 else frame
    frame = np.repeat(frame, 2, axis=1) if frame.shape[1] == 1 else frame
    full_height, full_width = frame.shape[:2]
    picture = Image.fromarray(frame[: full_height // 2 * 2, : full_width // 2 * 2])
    if not people:
        return np.asarray(picture)
    size = picture.size
    draw = ImageDraw.Draw(picture, "RGBA")
    font_px = max(14, min(size) // 32)
    font = ImageFont.load_default(size=font_px)
    line_px = max(2, font_px // 7)
    fractions = np.array([person.box for person in people])
    boxes = (fractions * (full_width, full_height, full_width, full_height)).tolist()
    for (x1, y1, x2, y2), colour in zip(boxes, cycle(COLOURS), strict=False):
        right, bottom = min(x2, size[0]) - 1, min(y2, size[1]) - 1
        draw.rectangle((x1, y1, max(x1, right), max(y1, bottom)), outline=colour, width=line_px)
    taken: list[Rectangle] = []
    for person, box, colour in zip(people, boxes, cycle(COLOURS), strict=False):
        if not person.actions:
            continue
        text = "\n".join(fit_lines(person.actions, font, size, line_px))
        _, _, width, height = draw.textbbox((3 * line_px, line_px), text, font, spacing=line_px)
        block = (math.ceil(width) + 2 * line_px, math.ceil(height) + line_px)
        taken.append(place_label(block, box, size, taken))
        x1, y1, x2, y2 = taken[-1]
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=BACKGROUND)
        draw.rectangle((x1, y1, x1 + 2 * line_px - 1, y2 - 1), fill=colour)
        draw.text((x1 + 3 * line_px, y1 + line_px), text, TEXT_COLOUR, font, spacing=line_px)
    return np.asarray(picture)


def tinted(frame: Picture, people: Sequence[Person]) -> Picture:
    """The frame with the pixels of each mask half in the colour of its box."""
    if all(person.mask is None for person in people):
        return frame
    frame = frame.copy()
    for person, colour in zip(people, cycle(COLOURS), strict=False):
        if person.mask is not None:
            frame[person.mask] = (frame[person.mask] // 2) + np.array(colour, np.uint8) // 2
    return frame


def fit_lines(
    actions: Sequence[tuple[str, float]],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    line_px: int,
) -> list[str]:
    """Formats each action as `name 0.87`; "..." replaces what does not fit into the picture."""
    width = size[0] - 5 * line_px
    lines = []
    for name, score in actions:
        name = printable(" ".join(name.split()))
        line = f"{name} {score:.2f}"
        shorter = len(name)
        while font.getlength(line) > width and shorter:
            shorter -= 1
            line = f"{name[:shorter]}... {score:.2f}"
        lines.append(line)
    most = max(1, (size[1] // 2) // (round(font.size) + line_px))
    return lines if len(lines) <= most else [*lines[: most - 1], "..."]


def place_label(
    block: tuple[int, int], box: Rectangle, size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """The rectangle of a label of size `block` (width, height) near its box, in pixels.

    Of several places, the first above the box, the one that covers the least of other labels.

    Args:
        box: x1 y1 x2 y2, pixels.
        size: (width, height) of the picture.
        taken: rectangles of other labels.
    """
    width, height = block
    x1, y1, x2, y2 = box
    beside = [(x, y) for y in (y1, y2 - height) for x in (x2, x1 - width)]
    tried = [(x1, y1 - height), (x1, y2), *beside, (x1, y1), (x2 - width, y2 - height)]
    # Then below and above the other labels.
    tried += [(x1, other[3]) for other in taken] + [(x1, other[1] - height) for other in taken]
    sides = np.array(block)
    corners = np.clip(tried, 0, np.array(size) - sides).round()
    places = np.concatenate([corners, corners + sides], axis=1)
    covered = common_area(places, np.reshape(taken, (-1, 4))).sum(axis=1)
    x1, y1, x2, y2 = places[covered.argmin()].tolist()
    return x1, y1, x2, y2
