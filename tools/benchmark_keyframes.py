"""Reading clips around key frames of a 15-minute film, compared with decord.

    python tools/benchmark_keyframes.py [FILE] [--keyframes 40]

For random key frames, both read the same 16x4 clip around each, opening the film each time as data
sets do, in alternating order; all clips must be identical pixel for pixel. Then the same with key
frames in the order of time, as in an evaluation. Prints ratios from one run.

Without a file, one of 15 minutes is generated (about two minutes): 640x360, 25 frames per second,
H.264 with B-frames and an intra frame every 250 frames, panning textures.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import decord
import numpy as np

from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video

SAMPLER = ClipSampler(num_frames=16, sampling_rate=4)
FPS, SECONDS, HEIGHT, WIDTH = 25, 900, 360, 640


def read_ours(path: str, second: float) -> np.ndarray:
    with open_video(path) as video:
        return video.frames(SAMPLER.keyframe_clip(video, second))


def read_decord(path: str, second: float) -> np.ndarray:
    video = decord.VideoReader(path, num_threads=1)
    first = round(second * FPS) - 32
    return video.get_batch(np.arange(first, first + 64, 4).clip(0, len(video) - 1)).asnumpy()


READERS = {"ours": read_ours, "decord": read_decord}


def benchmark(path: str, seconds: list[int]) -> dict[str, float]:
    """Median milliseconds per clip, by reader."""
    times: dict[str, list[float]] = {name: [] for name in READERS}
    for turn, second in enumerate(seconds):
        clips = {}
        for name in list(READERS)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            clips[name] = READERS[name](path, second)
            times[name].append(time.perf_counter() - begin)
        if not np.array_equal(clips["ours"], clips["decord"]):
            raise SystemExit(f"{path}: the clips around second {second} differ")
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def film() -> Iterator[np.ndarray]:
    """Scenes of 8 seconds, each a panning texture."""
    rng = np.random.default_rng(0)
    for index in range(FPS * SECONDS):
        if index % (8 * FPS) == 0:
            cells = rng.integers(0, 255, (HEIGHT // 8 + 40, WIDTH // 8 + 60, 3), dtype=np.uint8)
            texture = cv2.resize(cells, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
        top, left = index % (8 * FPS), 2 * (index % (8 * FPS))
        yield texture[top : top + HEIGHT, left : left + WIDTH]


def main() -> None:
    parser = argparse.ArgumentParser(description="Clips around key frames, beside decord.")
    parser.add_argument("file", nargs="?", help="a film of constant 25 frames a second")
    parser.add_argument("--keyframes", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or str(Path(folder) / "film.mp4")
        if arguments.file is None:
            options = {"preset": "veryfast", "crf": "28", "g": "250", "bf": "3"}
            write_video(path, film(), FPS, options=options)
        with open_video(path) as video:
            last = int(video.end_sec) - 2
        rng = np.random.default_rng(0)
        for order in ("random", "ascending"):
            seconds = rng.integers(2, last, arguments.keyframes).tolist()
            if order == "ascending":
                seconds = list(range(100, 100 + arguments.keyframes))
            taken = benchmark(path, seconds)
            print(
                f"{order} key frames: ours {taken['ours']:.0f} ms, decord "
                f"{taken['decord']:.0f} ms, {taken['decord'] / taken['ours']:.2f} x its speed"
            )


if __name__ == "__main__":
    main()
