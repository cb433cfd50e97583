"""Reading a 16x4 clip at a random start, compared with decord and torchcodec.

    python tools/benchmark_reading.py [FILE ...] [--trials 20]

Prints ratios from one run: in each trial all readers open the file and read the same clip, with one
thread, in an order that changes from trial to trial; all clips must be identical pixel for pixel.
Then the cost of 4 clips of one video in one call of `frames`, against 4 separate reads.

Without files, three are generated: 340x256, 10 s, H.264 with B-frames, textures that pan and zoom.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import decord
import numpy as np
import torch
from torchcodec.decoders import VideoDecoder

from hiera_video.video.open import open_video
from hiera_video.video.writer import write_video

NUM_FRAMES, SAMPLING_RATE, NUM_REPEATS = 16, 4, 4
TARGETS = {"decord": 1.4, "torchcodec": 1.25}
TARGET_REPEATED_COST = 0.6

Read = Callable[[str, list[int]], np.ndarray]


def read_ours(path: str, indices: list[int]) -> np.ndarray:
    with open_video(path) as reader:
        return reader.frames(indices)


def read_decord(path: str, indices: list[int]) -> np.ndarray:
    return decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()


def read_torchcodec(path: str, indices: list[int]) -> np.ndarray:
    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at(indices).data.numpy()


READERS: dict[str, Read] = {
    "ours": read_ours,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
}


def timed(read: Read, path: str, indices: list[int]) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    clip = read(path, indices)
    return time.perf_counter() - begin, clip


def benchmark_clips(path: str, trials: int, rng: np.random.Generator) -> dict[str, float]:
    """Median milliseconds per clip, by reader, after checking that all clips are identical."""
    with open_video(path) as reader:
        num_frames = len(reader)
    times: dict[str, list[float]] = {name: [] for name in READERS}
    for trial in range(trials + 1):
        indices = clip_at_random(num_frames, rng)
        names = list(READERS)
        clips = {}
        for name in names[trial % 3 :] + names[: trial % 3]:
            seconds, clips[name] = timed(READERS[name], path, indices)
            if trial:  # the first one warms up
                times[name].append(1e3 * seconds)
        for name, clip in clips.items():
            if not np.array_equal(clip, clips["ours"]):
                raise SystemExit(f"{path}: {name} gives other pixels for frames {indices}")
    return {name: statistics.median(of_reader) for name, of_reader in times.items()}


def benchmark_repeats(path: str, trials: int, rng: np.random.Generator) -> float:
    """Cost of 4 clips in one call, as a fraction of 4 separate reads."""
    with open_video(path) as reader:
        num_frames = len(reader)
    together, apart = [], []
    for trial in range(trials):
        clips = [clip_at_random(num_frames, rng) for _ in range(NUM_REPEATS)]

        def read_together(clips: list[list[int]] = clips) -> None:
            seconds, _ = timed(read_ours, path, [i for clip in clips for i in clip])
            together.append(seconds)

        def read_apart(clips: list[list[int]] = clips) -> None:
            apart.append(sum(timed(read_ours, path, clip)[0] for clip in clips))

        for read in (read_together, read_apart)[:: 1 if trial % 2 else -1]:
            read()
    return statistics.median(together) / statistics.median(apart)


def clip_at_random(num_frames: int, rng: np.random.Generator) -> list[int]:
    span = (NUM_FRAMES - 1) * SAMPLING_RATE + 1
    start = int(rng.integers(max(num_frames - span, 0) + 1))
    return [min(start + SAMPLING_RATE * k, num_frames - 1) for k in range(NUM_FRAMES)]


def generate_video(path: str, seed: int) -> None:
    """300 frames of texture at several scales that pans and zooms, three moving figures, grain."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((768, 1020, 3), np.float32)
    for cells in (6, 24, 96):
        noise = rng.normal(size=(cells * 3 // 4, cells, 3)).astype(np.float32)
        texture += cv2.resize(noise, (1020, 768), interpolation=cv2.INTER_CUBIC) * 40 / cells**0.3
    texture = np.clip(texture + 128, 0, 255)
    figures = rng.uniform(0.2, 0.8, (3, 2)), rng.normal(size=(3, 2)), rng.integers(0, 255, (3, 3))

    def frames():
        for t in range(300):
            zoom = 1.6 + 0.4 * np.sin(t / 40 + seed)
            left, top = 150 + 120 * np.sin(t / 50), 120 + 90 * np.cos(t / 37)
            matrix = np.array([[zoom, 0, left], [0, zoom, top]], np.float32)
            frame = cv2.warpAffine(texture, matrix, (340, 256), flags=cv2.WARP_INVERSE_MAP | 1)
            for start, direction, colour in zip(*figures, strict=True):
                x, y = (start + 0.25 * np.sin(t / 15 * direction)) * (340, 256)
                cv2.circle(frame, (int(x), int(y)), 28, colour.tolist(), -1)
            grain = rng.normal(scale=3, size=frame.shape)
            yield np.clip(frame + grain, 0, 255).astype(np.uint8)

    write_video(path, frames(), 30, options={"crf": "23", "preset": "medium"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="H.264 files with B-frames")
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    decord.logging.set_level(decord.logging.QUIET)
    rng = np.random.default_rng(0)
    ratios: dict[str, list[float]] = {name: [] for name in TARGETS}
    costs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files
        for seed in range(0 if files else 3):
            files = [*files, str(Path(folder) / f"generated_{seed}.mp4")]
            generate_video(files[-1], seed)
        print(f"{'file':28s} {'ours ms':>9s} {'decord':>9s} {'torchcodec':>11s} {'4 clips':>9s}")
        for path in files:
            medians = benchmark_clips(path, arguments.trials, rng)
            for name, of_file in ratios.items():
                of_file.append(medians[name] / medians["ours"])
            costs.append(benchmark_repeats(path, max(arguments.trials // 2, 3), rng))
            print(
                f"{Path(path).name[-28:]:28s} {medians['ours']:9.1f} {ratios['decord'][-1]:8.2f}x "
                f"{ratios['torchcodec'][-1]:10.2f}x {costs[-1]:9.2f}"
            )
    for name, target in TARGETS.items():
        print(f"median: {statistics.median(ratios[name]):.2f} x {name} (target {target})")
    print(
        f"median: {NUM_REPEATS} clips of one video cost {statistics.median(costs):.2f} of "
        f"{NUM_REPEATS} separate reads (target at most {TARGET_REPEATED_COST})"
    )


if __name__ == "__main__":
    main()
