"""The generated demo data set: bright figures over dark textures; only motion tells the classes.

Every scene (background, figures, frame size, frame rate, length, speed) is filmed once for each
class, so that nothing but the motion differs, and the first picture is the same in all of them. Nor
does a later one tell: the picture is a torus, on which a figure that leaves on one side enters on
the other, and sizes run in a cycle too. A position that starts uniform on the torus is uniform at
any time, whatever the motion, and so is the place in the cycle of sizes.

`demo_ava` films the same figures, each with a motion of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from hiera_video.files import write_text
from hiera_video.video.writer import write_video

CLASSES = (
    "circling",
    "growing",
    "moving_down",
    "moving_left",
    "moving_right",
    "moving_up",
    "shrinking",
    "standing_still",
)
DIRECTIONS = {  # pixels grow to the right and down
    "moving_down": (0, 1),
    "moving_left": (-1, 0),
    "moving_right": (1, 0),
    "moving_up": (0, -1),
}
GROWTH = {"growing": 1, "shrinking": -1}

FRAME_SIZES = (
    (96, 128),
    (120, 160),
    (144, 192),
    (128, 128),
    (128, 96),
    (144, 176),
)  # height, width
FRAME_RATES = (Fraction(25, 2), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
DURATION_SEC = (1.5, 4.0)
NUM_FIGURES = (2, 4)
# Lengths are fractions of the short side; speed: short sides, turns or cycles of sizes a second.
SPEED = (0.35, 0.6)
RADIUS = (0.08, 0.24)
ORBIT_RADIUS = 0.12
TURNS = 1.6  # for each unit of speed; on its orbit a figure is then about as fast as on a line
SPLITS = ("train", "val")

SUBPIXEL_BITS = 4  # of the coordinates that OpenCV draws at
# Slower presets use x264's macroblock tree, with which the same pictures gave several files.
ENCODER = {"crf": "16", "preset": "superfast", "threads": "1"}


@dataclass(frozen=True)
class Figure:
    """One figure at time 0."""

    position_px: Float[np.ndarray, 2]  # x, y
    size_phase: float  # 0..1, place in the cycle of sizes
    orbit_phase: float  # 0..1, where on its circle it is, if it circles
    outline: Float[np.ndarray, "corners 2"]  # around (0, 0), within a radius of 1
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """All that the videos of one scene share; only the motion is left to the class."""

    background: UInt8[np.ndarray, "H W 3"]
    figures: tuple[Figure, ...]
    fps: Fraction
    num_frames: int
    speed: float
    turning: int  # 1 or -1: clockwise or not, for the class that circles
    margin_px: int = 0  # by which the torus is larger than the picture, on each side


@dataclass(frozen=True)
class DemoData:
    """Where the parts of a data set lie."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.csv"

    @property
    def val(self) -> Path:
        return self.folder / "val.csv"

    @property
    def class_names(self) -> Path:
        return self.folder / "class_names.txt"

    @property
    def example(self) -> Path:
        """A validation video."""
        return self.folder / _video_name("val", "growing", 0)


def generate(data: DemoData, *, seed: int, train_scenes: int = 48, val_scenes: int = 12) -> None:
    """Writes lists of `path label`, class names and H.264 videos; a function of the seed.

    Videos that are there already are kept, so that it goes on where it stopped.
    """
    scenes = {"train": train_scenes, "val": val_scenes}
    for motion in CLASSES:
        (data.folder / "videos" / motion).mkdir(parents=True, exist_ok=True)
    with tqdm(total=sum(scenes.values()) * len(CLASSES), unit="video", disable=None) as bar:
        for split in SPLITS:
            for number in range(scenes[split]):
                scene = draw_scene(seed, split, number)
                for motion in CLASSES:
                    path = data.folder / _video_name(split, motion, number)
                    if not path.exists():
                        write_video(path, render(scene, motion), scene.fps, options=ENCODER)
                    bar.update()
    write_text(data.class_names, "".join(f"{name}\n" for name in CLASSES))
    for split in SPLITS:
        lines = (
            f"{_video_name(split, motion, number)} {label}\n"
            for number in range(scenes[split])
            for label, motion in enumerate(CLASSES)
        )
        write_text(data.folder / f"{split}.csv", "".join(lines))


def draw_scene(seed: int, split: str, number: int) -> Scene:
    """Scene `number` of a split, at random."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    height, width = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    fps = FRAME_RATES[rng.integers(len(FRAME_RATES))]
    return Scene(
        background=draw_background(height, width, rng),
        figures=tuple(
            draw_figure(height, width, rng)
            for _ in range(rng.integers(*NUM_FIGURES, endpoint=True))
        ),
        fps=fps,
        num_frames=round(rng.uniform(*DURATION_SEC) * fps),
        speed=rng.uniform(*SPEED),
        turning=int(rng.choice([-1, 1])),
    )


def place(scene: Scene, figure: Figure, motion: str, time_sec: float) -> tuple[np.ndarray, float]:
    """Position (x, y) and radius of a figure at a time, in pixels of the picture."""
    height, width = scene.background.shape[:2]
    short_side = min(height, width)
    way = scene.speed * time_sec
    position = figure.position_px + short_side * way * np.array(DIRECTIONS.get(motion, (0, 0)))
    if motion == "circling":
        start = 2 * np.pi * figure.orbit_phase
        angle = start + 2 * np.pi * scene.turning * TURNS * way
        moved = np.array([np.cos(angle) - np.cos(start), np.sin(angle) - np.sin(start)])
        position = position + short_side * ORBIT_RADIUS * moved
    phase = (figure.size_phase + GROWTH.get(motion, 0) * way) % 1
    smallest, largest = RADIUS
    radius = short_side * smallest * (largest / smallest) ** phase
    margin = scene.margin_px
    torus = np.array([width + 2 * margin, height + 2 * margin])
    return (position + margin) % torus - margin, radius


def render(scene: Scene, motion: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of a scene in which the figures move as the class says."""
    for index in range(scene.num_frames):
        picture = scene.background.copy()
        for figure in scene.figures:
            paint(picture, scene, figure, motion, float(index / scene.fps), figure.colour)
        yield picture


def paint(
    picture: UInt8[np.ndarray, "H W *channels"],
    scene: Scene,
    figure: Figure,
    motion: str,
    time_sec: float,
    colour: Sequence[int],
) -> None:
    """Draws a figure where it is at a time, and again beyond each seam of the torus."""
    height, width = (side + 2 * scene.margin_px for side in scene.background.shape[:2])
    position, radius = place(scene, figure, motion, time_sec)
    corners = radius * figure.outline + position
    for shift in product((-width, 0, width), (-height, 0, height)):
        fill(picture, corners + np.array(shift), colour)


def fill(
    picture: UInt8[np.ndarray, "H W *channels"],
    corners: Float[np.ndarray, "corners 2"],
    colour: Sequence[int],
) -> None:
    """Draws a polygon whose corners (x, y) may lie between pixels."""
    points = np.rint(corners * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(picture, [points], colour, cv2.LINE_AA, SUBPIXEL_BITS)


def draw_background(
    height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """A dark gradient under blotches of random grain."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    direction = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + (np.cos(direction) * x + np.sin(direction) * y)[..., None] / 2**1.5
    dark, light = rng.uniform(10, 90, (2, 3))
    grain = int(rng.choice([3, 6, 12, 24]))
    cells = rng.uniform(-1, 1, (height // grain + 2, width // grain + 2, 3)).astype(np.float32)
    blotches = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = dark + ramp * (light - dark) + rng.uniform(5, 30) * blotches
    return np.clip(picture, 0, 120).astype(np.uint8)


def draw_figure(height: int, width: int, rng: np.random.Generator, *, margin_px: int = 0) -> Figure:
    """A bright figure: a polygon from triangle to nearly a disc, or a star, turned at random."""
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
    )


def _video_name(split: str, motion: str, number: int) -> str:
    """Path of a video, as written in the lists."""
    return f"videos/{motion}/{split}_{number:03d}.mp4"
