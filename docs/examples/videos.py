"""Generated videos, so that the examples run without data; put your own in their place.

A bar crosses the picture: a tall one slides to the right, a wide one falls. Shape and motion both
show the class, and a small model learns it in seconds.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hiera_video.video.writer import write_video

FPS = 25
CLASSES = ("falling", "sliding")


def moving_bar(label: str, num_frames: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Frames, uint8 [64, 64, 3], of a bright bar over a ground of random colour."""
    ground = rng.integers(20, 120, 3, dtype=np.uint8)
    place = rng.integers(64)
    for step in range(num_frames):
        frame = np.tile(ground, (64, 64, 1))
        lines = (place + 2 * step + np.arange(12)) % 64  # what leaves at one side enters again
        if label == "sliding":
            frame[:, lines] = 230
        else:
            frame[lines] = 230
        yield frame


def make_videos(folder: Path, num_videos: int, seed: int = 0, crf: int = 23) -> None:
    """Writes FOLDER/CLASS/NUMBER.mp4: of each class `num_videos`, of one second.

    Args:
        seed: decides colours and places.
        crf: quality of x264, from 0 (the best) to 51.
    """
    options = {"crf": str(crf), "threads": "1"}
    rng = np.random.default_rng(seed)
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(num_videos):
            frames = moving_bar(label, FPS, rng)
            write_video(folder / label / f"{i}.mp4", frames, FPS, options=options)
