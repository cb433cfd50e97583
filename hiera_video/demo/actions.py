"""The generated demo data set for action detection, in the file formats of AVA.

It has the figures of `hiera_video.demo.motions`, each with its own motion, and some of them blink:
every figure has one or two actions, none of which can be recognised in a single picture. Positions
start uniform on a torus, so that positions and sizes have the same distribution at any time and for
any motion. This torus is larger than the picture by the largest radius: a figure leaves completely
on one side before it enters on the other, and about half of the figures are in the picture. Figures
that do not blink are always bright or always dim, with equal probability; figures that blink are
bright half of the time.

A box encloses the visible part of a figure in its frame exactly. A figure of which less than half
is visible, because of the edge of the picture or of other figures, has no box, as if it had not
been annotated. Frame rates are integers, so that each key frame is a frame of its video.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hiera_video.demo import motions
from hiera_video.demo.motions import Figure, Scene, write_lines
from hiera_video.runtime.progress import Progress

BLINKING = "blinking"
ACTIONS = (*motions.CLASSES, BLINKING)  # action ids count from 1

FRAME_RATES = (12, 15, 24, 25, 30)
DURATION_SEC = (3.0, 5.0)
KEYFRAME_MARGIN_SEC = 1  # at least, from a key frame to the start and the end of its video
NUM_FIGURES = (3, 5)  # on a torus of about twice the picture's area
VISIBLE_FRAC = 0.5  # figures with a larger visible fraction have a box
BLINKING_FRAC = 0.25
BLINK_PERIOD_SEC = (0.4, 0.6)

# Proposals, which imitate the output of a person detector.
MISSED_FRAC = 0.08
FALSE_PER_KEYFRAME = 0.4
JITTER = 0.04  # standard deviation of a corner, as a fraction of the sides of the box
EXCLUDED_FRAC = 0.03  # of the key frames


class DemoAvaData:
    """Paths of the parts of the data set; `example` is a validation video."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.videos = folder, folder / "videos"
        self.train, self.val = folder / "train.csv", folder / "val.csv"
        self.label_map = folder / "actions.pbtxt"
        self.val_proposals = folder / "val_proposals.csv"
        self.val_excluded = folder / "val_excluded.csv"
        self.example = self.videos / f"{_video_name('val', 0)}.mp4"


def generate(
    data: DemoAvaData, *, seed: int, train_videos: int = 240, val_videos: int = 60
) -> None:
    """Writes annotations, label map, proposals, excluded key frames and H.264 videos.

    They depend on the seed only. Existing videos are kept, so that an interrupted call can be
    resumed.
    """
    rows: dict[str, list[str]] = {split: [] for split in motions.SPLITS}
    proposals: list[str] = []
    keyframes: list[str] = []  # of the validation videos
    for split, number in Progress(motions.numbered(train_videos, val_videos), unit="video"):
        scene, name = draw_scene(seed, split, number), _video_name(split, number)
        motions.write_missing_video(data.videos / f"{name}.mp4", scene)
        rng = np.random.default_rng([seed, motions.SPLITS.index(split), number, 1])
        for second in key_seconds(scene):
            keyframe, boxes = f"{name},{second:04d}", boxes_at(scene, second)
            for person, box in boxes.items():
                for action in actions_of(scene.figures[person]):
                    rows[split].append(f"{keyframe},{_corners(box)},{action},{person}")
            if split == "val":
                keyframes.append(keyframe)
                for box, score in draw_proposals(boxes, rng):
                    proposals.append(f"{keyframe},{_corners(box)},,{score:.6f}")
    excluded = np.random.default_rng([seed, len(motions.SPLITS)]).permutation(len(keyframes))
    excluded = np.sort(excluded[: math.ceil(EXCLUDED_FRAC * len(keyframes))])
    write_lines(data.val_excluded, [keyframes[i] for i in excluded])
    write_lines(data.val_proposals, proposals)
    items = (f'item {{\n  name: "{name}"\n  id: {i}\n}}' for i, name in enumerate(ACTIONS, start=1))
    write_lines(data.label_map, items)
    write_lines(data.train, rows["train"])
    write_lines(data.val, rows["val"])


def draw_scene(seed: int, split: str, number: int) -> Scene:
    """Draws video `number` of a split."""
    rng = np.random.default_rng([seed, motions.SPLITS.index(split), number])
    height, width = motions.FRAME_SIZES[rng.integers(len(motions.FRAME_SIZES))]
    fps = Fraction(FRAME_RATES[rng.integers(len(FRAME_RATES))])
    margin_px = math.ceil(motions.RADIUS[1] * min(height, width)) + 2  # 2 for the blurred edge
    figures = []
    for _ in range(rng.integers(*NUM_FIGURES, endpoint=True)):
        figure = motions.draw_figure(height, width, rng, margin_px=margin_px)
        motion = motions.CLASSES[rng.integers(len(motions.CLASSES))]
        blinks, period_sec = rng.uniform() < BLINKING_FRAC, rng.uniform(*BLINK_PERIOD_SEC)
        figures.append(
            replace(
                figure,
                motion=motion,
                blink_period_sec=period_sec if blinks else math.inf,
                blink_phase=rng.uniform(),
            )
        )
    return Scene(
        background=motions.draw_background(height, width, rng),
        figures=tuple(figures),
        fps=fps,
        num_frames=round(rng.uniform(*DURATION_SEC) * fps),
        speed=rng.uniform(*motions.SPEED),
        turning=int(rng.choice([-1, 1])),
        margin_px=margin_px,
    )


def key_seconds(scene: Scene) -> range:
    """Times of the key frames in seconds."""
    duration_sec = scene.num_frames / scene.fps
    return range(KEYFRAME_MARGIN_SEC, math.floor(duration_sec) - KEYFRAME_MARGIN_SEC + 1)


def actions_of(figure: Figure) -> list[int]:
    """Action ids, ascending."""
    names = (figure.motion, BLINKING) if figure.blinks else (figure.motion,)
    return [ACTIONS.index(name) + 1 for name in names]


def boxes_at(scene: Scene, time_sec: float) -> dict[int, Float[np.ndarray, 4]]:
    """Boxes x1 y1 x2 y2, as fractions of the frame, of sufficiently visible figures.

    A box encloses every pixel that its figure covers, including its antialiased edge.
    """
    height, width = scene.background.shape[:2]
    hidden = np.zeros((height, width), bool)
    boxes = {}
    for person, figure in reversed([*enumerate(scene.figures)]):
        cover = coverage(scene, figure, time_sec)
        visible = np.where(hidden, 0.0, cover)
        hidden |= cover == 1
        if visible.sum() > VISIBLE_FRAC * area_px(scene, figure, time_sec):
            y, x = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
            corners_px = np.array([x[0], y[0], x[-1] + 1, y[-1] + 1])
            boxes[person] = corners_px / (width, height, width, height)
    return dict(sorted(boxes.items()))


def coverage(scene: Scene, figure: Figure, time_sec: float) -> Float[np.ndarray, "H W"]:
    """Fraction of each pixel that a figure covers, without the other figures."""
    cover = np.zeros(scene.background.shape[:2], np.uint8)
    motions.paint(cover, scene, figure, time_sec, (255,))
    return cover / 255


def area_px(scene: Scene, figure: Figure, time_sec: float) -> float:
    """Area of a figure in pixels, including parts outside of the frame."""
    position, radius = motions.place(scene, figure, time_sec)
    centre = math.ceil(radius) + 2
    cover = np.zeros((2 * centre + 1, 2 * centre + 1), np.uint8)
    motions.fill(cover, radius * figure.outline + centre + position % 1, (255,))
    return float(cover.sum()) / 255


def draw_proposals(
    boxes: dict[int, Float[np.ndarray, 4]], rng: np.random.Generator
) -> list[tuple[Float[np.ndarray, 4], float]]:
    """Draws boxes and scores of a person detector in a key frame, in descending order of score.

    Some boxes are missing, the others have small errors; false boxes mostly have lower scores.
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
    """Name of a video in the csv files."""
    return f"{split}_{number:03d}"


def _corners(box: Float[np.ndarray, 4]) -> str:
    """A box with three decimals, as in AVA, which are at most a fifth of a pixel."""
    return ",".join(f"{corner:.3f}" for corner in box)
