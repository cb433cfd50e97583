"""What processes of their own do with videos; without torch, whose import takes seconds."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video

SIZE, FPS = (256, 340), 30


def picture_at(seed: int, num_frames: int) -> Iterator[np.ndarray]:
    """Frames of a camera that turns over a picture of squares."""
    h, w = SIZE
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 255, (h // 4, w // 4, 3), dtype=np.uint8)
    picture = np.kron(squares, np.ones((8, 8, 1), np.uint8))
    for i in range(num_frames):
        y = round((picture.shape[0] - h) / 2 * (1 + np.sin(i / 20 + seed)))
        x = round((picture.shape[1] - w) / 2 * (1 + np.cos(i / 15)))
        yield np.ascontiguousarray(picture[y : y + h, x : x + w])


def write_one(path: Path, seed: int, num_frames: int) -> None:
    options = {"crf": "23", "preset": "veryfast", "g": "60", "threads": "1"}
    write_video(path, picture_at(seed, num_frames), FPS, options=options)


def read_clips(paths: list[str], backend: str, span: int, seconds: float, seed: int) -> float:
    """Clips per second of this process."""
    rng = np.random.default_rng(seed)
    count, start = -1, 0.0  # the first clip warms up
    while count < 1 or time.perf_counter() - start < seconds:
        with open_video(paths[rng.integers(len(paths))], backend) as video:
            if video.backend != backend:
                raise RuntimeError(f"{backend} refused the file, and {video.backend} read it")
            first = int(rng.integers(len(video) - span))
            video.frames(list(range(first, first + span, 4)))
        count += 1
        if not count:
            start = time.perf_counter()
    return count / (time.perf_counter() - start)
