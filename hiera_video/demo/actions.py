"""The generated demo data set for action detection, in AVA's own files.

The figures of `demo`, each with a motion of its own, and some of them blinking: every figure has
one or two actions, and a single picture tells none of them. Motions start uniform on a torus, so
that places and sizes are spread alike at any time whatever the motion. This torus is larger than
the picture by the largest radius: a figure leaves on one side whole before it enters on the other,
and about half of the figures are in the picture. A figure that does not blink is bright or dim
throughout, one as likely as the other; one that blinks is bright half of the time.

A box encloses what is seen of a figure in that frame, exactly. A figure of which less than half is
seen, for the picture's edge or for figures before it, has no box, as if the annotators of AVA had
left it out. Frame rates are whole, so that each key frame is a frame of its video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from hiera_video.demo import motions as demo
from hiera_video.demo.motions import Figure, Scene
from hiera_video.files import write_text
from hiera_video.video.writer import write_video

BLINKING = "blinking"
ACTIONS = (*demo.CLASSES, BLINKING)  # action ids count from 1

FRAME_RATES = (12, 15, 24, 25, 30)
DURATION_SEC = (3.0, 5.0)
KEYFRAME_MARGIN_SEC = 1  # from a key frame to the start and the end of its video, at least
NUM_FIGURES = (3, 5)  # on a torus of about twice the picture's area
SEEN_FRAC = 0.5  # of a figure with a box, more than this
BLINKING_FRAC = 0.25
BLINK_PERIOD_SEC = (0.4, 0.6)
DIM = 0.6  # of the bright colour

# Proposals, which stand for what a person detector finds.
MISSED_FRAC = 0.08
FALSE_PER_KEYFRAME = 0.4
JITTER = 0.04  # standard deviation of a corner, sides of the box
EXCLUDED_FRAC = 0.03  # of the key frames


@dataclass(frozen=True)
class Actor:
    """A figure and what it does."""

    figure: Figure
    motion: str
    blinks: bool
    blink_period_sec: float
    blink_phase: float  # 0..1, at time 0; bright in the first half

    @property
    def actions(self) -> tuple[int, ...]:
        """Action ids, ascending."""
        names = (self.motion, BLINKING) if self.blinks else (self.motion,)
        return tuple(sorted(ACTIONS.index(name) + 1 for name in names))

    def is_bright(self, time_sec: float) -> bool:
        periods = time_sec / self.blink_period_sec if self.blinks else 0.0
        return (self.blink_phase + periods) % 1 < 0.5

    def colour(self, time_sec: float) -> tuple[int, int, int]:
        level = 1.0 if self.is_bright(time_sec) else DIM
        red, green, blue = (round(level * part) for part in self.figure.colour)
        return red, green, blue


@dataclass(frozen=True)
class Play:
    """A scene whose figures act on their own; later actors stand before earlier ones."""

    scene: Scene
    actors: tuple[Actor, ...]

    @property
    def key_seconds(self) -> range:
        duration_sec = self.scene.num_frames / self.scene.fps
        return range(KEYFRAME_MARGIN_SEC, math.floor(duration_sec) - KEYFRAME_MARGIN_SEC + 1)


@dataclass(frozen=True)
class DemoAvaData:
    """Where the parts of a data set lie."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "train.csv"

    @property
    def val(self) -> Path:
        return self.folder / "val.csv"

    @property
    def label_map(self) -> Path:
        return self.folder / "actions.pbtxt"

    @property
    def val_proposals(self) -> Path:
        return self.folder / "val_proposals.csv"

    @property
    def val_excluded(self) -> Path:
        return self.folder / "val_excluded.csv"

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def example(self) -> Path:
        """A validation video."""
        return self.videos / f"{_video_name('val', 0)}.mp4"


def generate(
    data: DemoAvaData, *, seed: int, train_videos: int = 240, val_videos: int = 60
) -> None:
    """Writes annotations, label map, proposals, excluded key frames and H.264 videos.

    All of them are a function of the seed. Videos that are there already are kept, so that it goes
    on where it stopped.
    """
    data.videos.mkdir(parents=True, exist_ok=True)
    numbers = {"train": train_videos, "val": val_videos}
    rows: dict[str, list[str]] = {split: [] for split in demo.SPLITS}
    proposals: list[str] = []
    keyframes: list[str] = []
    with tqdm(total=sum(numbers.values()), unit="video", disable=None) as bar:
        for split in demo.SPLITS:
            for number in range(numbers[split]):
                play, name = draw_play(seed, split, number), _video_name(split, number)
                path = data.videos / f"{name}.mp4"
                if not path.exists():
                    write_video(path, render(play), play.scene.fps, options=demo.ENCODER)
                rng = np.random.default_rng([seed, demo.SPLITS.index(split), number, 1])
                for second in play.key_seconds:
                    keyframe, boxes = f"{name},{second:04d}", boxes_at(play, second)
                    for person, box in boxes.items():
                        rows[split] += [
                            f"{keyframe},{_corners(box)},{action},{person}"
                            for action in play.actors[person].actions
                        ]
                    if split == "val":
                        keyframes.append(keyframe)
                        proposals += [
                            f"{keyframe},{_corners(box)},,{score:.6f}"
                            for box, score in draw_proposals(boxes, rng)
                        ]
                bar.update()
    excluded = np.random.default_rng([seed, len(demo.SPLITS)]).permutation(len(keyframes))
    excluded = np.sort(excluded[: math.ceil(EXCLUDED_FRAC * len(keyframes))])
    _write_lines(data.val_excluded, [keyframes[i] for i in excluded])
    _write_lines(data.val_proposals, proposals)
    _write_lines(
        data.label_map,
        [f'item {{\n  name: "{name}"\n  id: {i}\n}}' for i, name in enumerate(ACTIONS, start=1)],
    )
    for split in demo.SPLITS:
        _write_lines(data.folder / f"{split}.csv", rows[split])


def draw_play(seed: int, split: str, number: int) -> Play:
    """Video `number` of a split, at random."""
    rng = np.random.default_rng([seed, demo.SPLITS.index(split), number])
    height, width = demo.FRAME_SIZES[rng.integers(len(demo.FRAME_SIZES))]
    fps = Fraction(FRAME_RATES[rng.integers(len(FRAME_RATES))])
    margin_px = math.ceil(demo.RADIUS[1] * min(height, width)) + 2  # 2 for the blurred edge
    actors = tuple(
        Actor(
            figure=demo.draw_figure(height, width, rng, margin_px=margin_px),
            motion=demo.CLASSES[rng.integers(len(demo.CLASSES))],
            blinks=bool(rng.uniform() < BLINKING_FRAC),
            blink_period_sec=rng.uniform(*BLINK_PERIOD_SEC),
            blink_phase=rng.uniform(),
        )
        for _ in range(rng.integers(*NUM_FIGURES, endpoint=True))
    )
    scene = Scene(
        background=demo.draw_background(height, width, rng),
        figures=tuple(actor.figure for actor in actors),
        fps=fps,
        num_frames=round(rng.uniform(*DURATION_SEC) * fps),
        speed=rng.uniform(*demo.SPEED),
        turning=int(rng.choice([-1, 1])),
        margin_px=margin_px,
    )
    return Play(scene, actors)


def render(play: Play) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of a video."""
    for index in range(play.scene.num_frames):
        yield picture_at(play, float(index / play.scene.fps))


def picture_at(play: Play, time_sec: float) -> UInt8[np.ndarray, "H W 3"]:
    picture = play.scene.background.copy()
    for actor in play.actors:
        colour = actor.colour(time_sec)
        demo.paint(picture, play.scene, actor.figure, actor.motion, time_sec, colour)
    return picture


def boxes_at(play: Play, time_sec: float) -> dict[int, Float[np.ndarray, 4]]:
    """Corners (x1, y1, x2, y2), fractions of the picture, of the actors that are seen well enough.

    A box encloses every pixel that shows something of its actor, the blurred edge included.
    """
    height, width = play.scene.background.shape[:2]
    hidden = np.zeros((height, width), bool)
    boxes = {}
    for person in reversed(range(len(play.actors))):
        cover = coverage(play, person, time_sec)
        seen = np.where(hidden, 0.0, cover)
        hidden |= cover == 1
        if seen.sum() > SEEN_FRAC * area_px(play, person, time_sec):
            y, x = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
            corners_px = np.array([x[0], y[0], x[-1] + 1, y[-1] + 1])
            boxes[person] = corners_px / (width, height, width, height)
    return dict(sorted(boxes.items()))


def coverage(play: Play, person: int, time_sec: float) -> Float[np.ndarray, "H W"]:
    """How much of each pixel an actor covers, 0..1, whoever stands before it."""
    cover = np.zeros(play.scene.background.shape[:2], np.uint8)
    actor = play.actors[person]
    demo.paint(cover, play.scene, actor.figure, actor.motion, time_sec, (255,))
    return cover / 255


def area_px(play: Play, person: int, time_sec: float) -> float:
    """Pixels that the whole of an actor covers, in the picture or not, counted as `coverage`."""
    actor = play.actors[person]
    position, radius = demo.place(play.scene, actor.figure, actor.motion, time_sec)
    centre = math.ceil(radius) + 2
    cover = np.zeros((2 * centre + 1, 2 * centre + 1), np.uint8)
    demo.fill(cover, radius * actor.figure.outline + centre + position % 1, (255,))
    return float(cover.sum()) / 255


def draw_proposals(
    boxes: dict[int, Float[np.ndarray, 4]], rng: np.random.Generator
) -> list[tuple[Float[np.ndarray, 4], float]]:
    """What a detector may find in a key frame: boxes and scores, the best first.

    Some boxes are missed, the others a little off; false ones mostly have lower scores.
    """
    found = []
    for box in boxes.values():
        sides = np.tile(box[2:] - box[:2], 2)
        jittered = np.clip(box + JITTER * sides * rng.standard_normal(4), 0, 1)
        score = 1 - 0.25 * rng.uniform() ** 2
        if rng.uniform() >= MISSED_FRAC:
            found.append((jittered, score))
    for _ in range(rng.poisson(FALSE_PER_KEYFRAME)):
        sides = rng.uniform(0.15, 0.5, 2)
        start = rng.uniform(0, 1 - sides)
        found.append((np.concatenate([start, start + sides]), rng.uniform(0.05, 0.95)))
    return sorted(found, key=lambda proposal: -proposal[1])


def _video_name(split: str, number: int) -> str:
    """The name of a video in the csv files."""
    return f"{split}_{number:03d}"


def _corners(box: Float[np.ndarray, 4]) -> str:
    """With three decimals, as in AVA: a fifth of a pixel here."""
    return ",".join(f"{corner:.3f}" for corner in box)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))
