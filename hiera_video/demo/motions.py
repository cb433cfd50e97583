"""The generated demo data set: bright figures over dark textures, whose classes are motions.

Every scene (background, figures, frame size, frame rate, length, speed) is rendered once for each
class, so that only the motion differs, and the first picture is the same for all classes. Later
single pictures do not identify the class either: the picture is a torus, on which a figure that
leaves on one side enters on the other, and sizes are cyclic too. Positions and phases of the size
are uniform at the start, and therefore at any time and for any motion.

`hiera_video.demo.actions` renders the same figures, each with its own motion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from hiera_video.files import write_text
from hiera_video.runtime.progress import Progress
from hiera_video.video.writer import write_video

DIRECTIONS = {  # pixels grow to the right and down
    "moving_down": (0, 1),
    "moving_left": (-1, 0),
    "moving_right": (1, 0),
    "moving_up": (0, -1),
}
GROWTH = {"growing": 1, "shrinking": -1}
CLASSES = tuple(sorted(["circling", "standing_still", *DIRECTIONS, *GROWTH]))

# Height and width.
FRAME_SIZES = ((96, 128), (120, 160), (144, 192), (128, 128), (128, 96), (144, 176))
FRAME_RATES = (Fraction(25, 2), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
DURATION_SEC = (1.5, 4.0)
NUM_FIGURES = (2, 4)
# Lengths are fractions of the short side; speed: short sides, turns or cycles of sizes per second.
SPEED = (0.35, 0.6)
RADIUS = (0.08, 0.24)
ORBIT_RADIUS = 0.12
TURNS = 1.6  # per unit of speed, so that a circling figure is about as fast as a moving one
DIM = 0.6  # brightness of a blinking figure, as a fraction of its colour, when it is not bright
SPLITS = ("train", "val")

SUBPIXEL_BITS = 4  # fractional bits of the coordinates that OpenCV draws
# Slower presets use x264's macroblock tree, with which the same pictures give different files.
ENCODER = {"crf": "16", "preset": "superfast", "threads": "1"}


@dataclass(frozen=True)
class Figure:
    """One figure at time 0, and what it does."""

    position_px: Float[np.ndarray, 2]  # x, y
    size_phase: float  # 0..1, in the cycle of sizes
    orbit_phase: float  # 0..1, on the circle of a circling figure
    outline: Float[np.ndarray, "corners 2"]  # around (0, 0), within a radius of 1
    colour: tuple[int, int, int]
    motion: str
    blink_period_sec: float = math.inf  # infinite: it does not blink
    blink_phase: float = 0.0  # 0..1; bright in the first half of a period

    @property
    def blinks(self) -> bool:
        return self.blink_period_sec < math.inf

    def is_bright(self, time_sec: float) -> bool:
        return (self.blink_phase + time_sec / self.blink_period_sec) % 1 < 0.5


@dataclass(frozen=True)
class Scene:
    """The content of a video; later figures hide earlier ones."""

    background: UInt8[np.ndarray, "H W 3"]
    figures: tuple[Figure, ...]
    fps: Fraction
    num_frames: int
    speed: float
    turning: int  # 1 or -1: clockwise or anticlockwise, for circling figures
    margin_px: int = 0  # by which the torus is larger than the picture on each side


class DemoData:
    """Paths of the parts of the data set; `example` is a validation video."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.val = folder / "train.csv", folder / "val.csv"
        self.class_names = folder / "class_names.txt"
        self.example = folder / _video_name("val", "growing", 0)


def generate(data: DemoData, *, seed: int, train_scenes: int = 48, val_scenes: int = 12) -> None:
    """Writes lists of `path label`, class names and H.264 videos, which depend on the seed only.

    Existing videos are kept, so that an interrupted call can be resumed.
    """
    scenes = numbered(train_scenes, val_scenes)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for (split, number), (label, motion) in Progress(
        [*product(scenes, enumerate(CLASSES))], unit="video"
    ):
        name = _video_name(split, motion, number)
        write_missing_video(data.folder / name, draw_scene(seed, split, number, motion))
        lines[split].append(f"{name} {label}")
    write_lines(data.class_names, CLASSES)
    write_lines(data.train, lines["train"])
    write_lines(data.val, lines["val"])


def numbered(train: int, val: int) -> list[tuple[str, int]]:
    """The split of each video and its number there."""
    return [(split, i) for split, n in zip(SPLITS, (train, val), strict=True) for i in range(n)]


def write_missing_video(path: Path, scene: Scene) -> None:
    """Writes a video unless it exists."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, render(scene), scene.fps, options=ENCODER)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replaces a file by lines of text."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def draw_scene(seed: int, split: str, number: int, motion: str) -> Scene:
    """Draws scene `number` of a split; all figures have the same motion."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    height, width = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    return Scene(
        background=draw_background(height, width, rng),
        figures=tuple(
            draw_figure(height, width, rng, motion=motion)
            for _ in range(rng.integers(*NUM_FIGURES, endpoint=True))
        ),
        fps=fps,
        num_frames=round(rng.uniform(*DURATION_SEC) * fps),
        speed=rng.uniform(*SPEED),
        turning=int(rng.choice([-1, 1])),
    )


def place(scene: Scene, figure: Figure, time_sec: float) -> tuple[np.ndarray, float]:
    """Position (x, y) and radius of a figure at a time, in pixels."""
    height, width = scene.background.shape[:2]
    short_side = min(height, width)
    distance = scene.speed * time_sec
    direction = np.array(DIRECTIONS.get(figure.motion, (0, 0)))
    position = figure.position_px + short_side * distance * direction
    if figure.motion == "circling":
        start = 2 * np.pi * figure.orbit_phase
        angle = start + 2 * np.pi * scene.turning * TURNS * distance
        moved = np.array([np.cos(angle) - np.cos(start), np.sin(angle) - np.sin(start)])
        position = position + short_side * ORBIT_RADIUS * moved
    phase = (figure.size_phase + GROWTH.get(figure.motion, 0) * distance) % 1
    smallest, largest = RADIUS
    radius = short_side * smallest * (largest / smallest) ** phase
    margin = scene.margin_px
    torus = np.array([width + 2 * margin, height + 2 * margin])
    return (position + margin) % torus - margin, radius


def render(scene: Scene) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Renders the frames of a video."""
    for index in range(scene.num_frames):
        yield picture_at(scene, float(index / scene.fps))


def picture_at(scene: Scene, time_sec: float) -> UInt8[np.ndarray, "H W 3"]:
    """The frame at a time."""
    picture = scene.background.copy()
    for figure in scene.figures:
        level = 1.0 if figure.is_bright(time_sec) else DIM
        colour = [round(level * part) for part in figure.colour]
        paint(picture, scene, figure, time_sec, colour)
    return picture


def paint(
    picture: UInt8[np.ndarray, "H W *channels"],
    scene: Scene,
    figure: Figure,
    time_sec: float,
    colour: Sequence[int],
) -> None:
    """Draws a figure at a time, also where it crosses the edges of the torus."""
    height, width = (side + 2 * scene.margin_px for side in scene.background.shape[:2])
    position, radius = place(scene, figure, time_sec)
    corners = radius * figure.outline + position
    for shift in product((-width, 0, width), (-height, 0, height)):
        fill(picture, corners + np.array(shift), colour)


def fill(
    picture: UInt8[np.ndarray, "H W *channels"],
    corners: Float[np.ndarray, "corners 2"],
    colour: Sequence[int],
) -> None:
    """Draws a polygon with corners (x, y) in fractions of pixels."""
    points = np.rint(corners * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(picture, [points], colour, cv2.LINE_AA, SUBPIXEL_BITS)


def draw_background(
    height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """A dark gradient with random blotches."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    direction = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + (np.cos(direction) * x + np.sin(direction) * y)[..., None] / 2**1.5
    dark, light = rng.uniform(10, 90, (2, 3))
    grain = int(rng.choice([3, 6, 12, 24]))
    cells = rng.uniform(-1, 1, (height // grain + 2, width // grain + 2, 3)).astype(np.float32)
    blotches = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = dark + ramp * (light - dark) + rng.uniform(5, 30) * blotches
    return np.clip(picture, 0, 120).astype(np.uint8)


def draw_figure(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    motion: str = "standing_still",
    margin_px: int = 0,
) -> Figure:
    """A bright, randomly rotated figure: a triangle, a square, a star, or nearly a disc."""
    corners = int(rng.choice([3, 4, 5, 24]))
    is_star = corners == 5
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(
        0, 2 * np.pi, corners * (1 + is_star), endpoint=False
    )
    reach = np.where(np.arange(len(angles)) % 2, 0.5, 1.0) if is_star else 1.0
    colour = rng.uniform(150, 255, 3)
    red, green, blue = (round(float(c)) for c in colour * 255 / colour.max())
    return Figure(
        position_px=rng.uniform(-margin_px, (width + margin_px, height + margin_px)),
        size_phase=rng.uniform(),
        orbit_phase=rng.uniform(),
        outline=np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1),
        colour=(red, green, blue),
        motion=motion,
    )


def _video_name(split: str, motion: str, number: int) -> str:
    """Path of a video in the lists."""
    return f"videos/{motion}/{split}_{number:03d}.mp4"
