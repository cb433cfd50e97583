"""Writes `videos/`: the inputs of the golden losses and of the first edition's fixtures.

    python tests/golden/make_videos.py

The files are committed, because extraction compares the size of a video with the size it recorded.
H.264 without loss, in RGB: the decoded frames are those drawn here, whatever the versions of x264
and FFmpeg.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FOLDER = Path(__file__).parent / "videos"
HEIGHT, WIDTH, FPS = 48, 64, 12
CLASSES = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0)}  # rows, columns a frame
APPROACHING = 5  # action of every second figure, beside that of its class
TRAIN = [
    ("down", 22),
    ("left", 24),
    ("right", 30),
    ("up", 19),
    ("down", 28),
    ("left", 17),
    ("right", 21),
    ("up", 26),
]
VAL = [
    ("down", 20),
    ("left", 25),
    ("right", 16),
    ("up", 28),
]


class Scene:
    """A square of random pixels that moves over a coarse ramp of colours, one pixel a frame."""

    def __init__(self, name: str, num_frames: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.num_frames = num_frames
        rows, columns = np.mgrid[:HEIGHT, :WIDTH] // 8 * 8
        ramps = [
            int(start) + rows * int(down) + columns * int(right)
            for start, down, right in rng.integers((0, 0, 0), (256, 3, 3), (3, 3))
        ]
        self.ground = (np.stack(ramps, axis=-1) % 256).astype(np.uint8)
        blocks = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        self.figure = blocks.repeat(3, axis=0).repeat(3, axis=1)  # 15 rows, 12 columns
        self.motion = np.array(CLASSES[name])
        space = np.array([HEIGHT, WIDTH]) - self.figure.shape[:2]
        first = np.where(self.motion < 0, num_frames, 0)
        last = space - np.where(self.motion > 0, num_frames, 0)
        self.start = rng.integers(first, last)

    def place(self, frame: int) -> tuple[int, int]:
        """First row and column of the figure."""
        row, column = self.start + frame * self.motion
        return int(row), int(column)

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [HEIGHT, WIDTH, 3]."""
        height, width = self.figure.shape[:2]
        for number in range(self.num_frames):
            picture = self.ground.copy()
            row, column = self.place(number)
            picture[row : row + height, column : column + width] = self.figure
            yield picture

    def box(self, second: int) -> str:
        """Corners as AVA writes them, fractions of the picture."""
        (row, column), (height, width) = self.place(second * FPS), self.figure.shape[:2]
        corners = column / WIDTH, row / HEIGHT, (column + width) / WIDTH, (row + height) / HEIGHT
        return ",".join(f"{corner:.3f}" for corner in corners)


def write(path: Path, scene: Scene) -> None:
    """A key frame each second, so that reading has to seek."""
    options = {"qp": "0", "preset": "veryslow", "g": str(FPS)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24"
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(scene.frames()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    for split, videos in (("train", TRAIN), ("val", VAL)):
        classes, boxes = ["path,class_name"], []
        for number, (name, num_frames) in enumerate(videos):
            video = f"{split}_{number}"
            scene = Scene(name, num_frames, seed=len(TRAIN) * (split == "val") + number)
            write(FOLDER / f"{video}.mp4", scene)
            classes.append(f"{video}.mp4,{name}")
            actions = [list(CLASSES).index(name) + 1, *[APPROACHING] * (number % 2)]
            for second in range(1, (num_frames - 1) // FPS + 1):
                boxes += [f"{video},{second:04d},{scene.box(second)},{a},0" for a in actions]
        (FOLDER / f"{split}.csv").write_text("\n".join(classes) + "\n")
        (FOLDER / f"{split}_boxes.csv").write_text("\n".join(boxes) + "\n")
    names = [*CLASSES, "approaching"]
    lines = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    (FOLDER / "actions.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
