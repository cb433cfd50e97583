"""Extraction: cost of overlapping windows, peak memory by length of video, use of the model.

    python tools/benchmark_extraction.py VIDEO [--repeats 5]

* reading: dense windows of 16x4 frames, a quarter of their span apart, to uint8 [16, 224, 224, 3].
  Ours (each frame decoded once) is compared with decord opened for each window, and with one pass
  of the same reader over all frames without windows. One thread, taking turns, medians.
* memory: `hiera-video extract` on generated videos of 1 and 60 minutes. The sum of the highest
  resident sizes of all processes, from the kernel.
* model: `hiera-video extract` with hiera_tiny_16x224 in one thread on copies of VIDEO, compared
  with the same model on the same number of clips in memory.

Needs decord and Linux. Writes into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from hiera_video import create_model, open_video, save_model
from hiera_video.data.transforms import Crops
from hiera_video.extraction.features import FeatureExtractor
from hiera_video.extraction.windows import DenseWindows, stream_windows
from hiera_video.models.normalize import Normalize
from hiera_video.models.variants import KINETICS_MEAN, KINETICS_STD
from hiera_video.settings.video import Windowing
from hiera_video.video.clips import ClipSampler
from hiera_video.video.writer import write_video

CROPS = Crops((224, 224), 1, 256)
WINDOWS = DenseWindows(
    ClipSampler(num_frames=16, sampling_rate=4), Windowing(clip_stride=16, last_window="drop")
)
MINUTES = (1, 60)
FPS = 25


def ours(path: str) -> int:
    """Number of windows."""
    with open_video(path) as video:
        indices = WINDOWS(video).indices
        frames = ((i, CROPS(frame[None])) for i, frame in video.stream(np.unique(indices)))
        windows = [np.concatenate(window, axis=1) for window in stream_windows(frames, indices)]
    return len(windows)


def window_by_window(path: str) -> int:
    import decord

    with open_video(path) as video:
        indices = WINDOWS(video).indices
    for clip in indices:
        frames = decord.VideoReader(path, num_threads=1).get_batch(clip).asnumpy()
        CROPS(frames)
    return len(indices)


def one_pass(path: str) -> int:
    with open_video(path) as video:
        return sum(1 for _ in video.stream(range(len(video))))


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def reading(path: str, repeats: int) -> None:
    ways = {"ours": ours, "decord": window_by_window, "one pass": one_pass}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(seconds(lambda way=way: way(path)))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"reading {ours(path)} windows of {path}: ours {1000 * median['ours']:.0f} ms")
    print(f"  decord opened for each window {median['decord'] / median['ours']:.1f}x")
    print(f"  ours / one pass over the file {median['ours'] / median['one pass']:.2f}")


def texture() -> Iterator[np.ndarray]:
    """An endless sequence of frames uint8 [96, 128, 3] of a moving texture."""
    grain = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    picture = cv2.GaussianBlur(grain, (9, 9), 3)
    for i in range(10**9):
        yield np.roll(picture, i % 128, axis=1)


def first(count: int, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    return (frame for _, frame in zip(range(count), frames, strict=False))


def extract(folder: Path, video: Path, *settings: str) -> subprocess.Popen[str]:
    """Starts a run with one decoding process and one thread for the model."""
    command = [sys.executable, "-m", "hiera_video", "extract", str(video), "--json", "device=cpu"]
    command += [f"output_dir={folder}", "data.num_workers=1", *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def peak_mib(process: subprocess.Popen[str]) -> float:
    """Sum of the highest resident sizes of a process and its descendants, after it has ended."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        parents, sizes = {}, {}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except (OSError, ValueError):
                continue  # it has just ended
            pid = int(status.parent.name)
            parents[pid] = int(fields["PPid"])
            sizes[pid] = int(fields.get("VmHWM", "0 kB").split()[0])
        family = {process.pid}
        for _ in range(3):  # fork server, decoding processes
            family |= {pid for pid, parent in parents.items() if parent in family}
        for pid in family & sizes.keys():
            peaks[pid] = max(peaks.get(pid, 0), sizes[pid])
        time.sleep(0.1)
    return sum(peaks.values()) / 1024


def memory(folder: Path) -> None:
    small = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
    save_model(folder / "small", create_model("hiera_tiny_16x224", image_size=96, **small))
    peaks = []
    for minutes in MINUTES:
        video = folder / f"{minutes}.mp4"
        count = minutes * 60 * FPS
        write_video(video, first(count, texture()), FPS, options={"preset": "ultrafast"})
        run = extract(folder / f"{minutes}", video, f"checkpoint={folder / 'small'}")
        peaks.append(peak_mib(run))
        assert run.wait() == 0
        print(f"memory: {minutes} minutes of video, {peaks[-1]:.0f} MiB in all processes")
    print(f"  ratio {peaks[1] / peaks[0]:.3f}")


def model_use(folder: Path, path: str) -> None:
    torch.set_num_threads(1)
    model = create_model("hiera_tiny_16x224").eval()
    save_model(folder / "tiny", model)
    videos = folder / "videos"
    videos.mkdir()
    for i in range(3):
        shutil.copy(path, videos / f"{i}{Path(path).suffix}")
    run = extract(
        folder / "tiny_out",
        videos,
        *(f"checkpoint={folder / 'tiny'}", "windows.clip_stride=16", "batch_size=8"),
    )
    out, _ = run.communicate()
    report = json.loads(out)["this_process"]
    extractor = FeatureExtractor(
        model,
        layer="pre_logits",
        normalize=Normalize(KINETICS_MEAN, KINETICS_STD),
        device=torch.device("cpu"),
    )
    batch = torch.randint(0, 255, (8, 16, 224, 224, 3), dtype=torch.uint8)
    extractor(batch)
    alone = 8 / statistics.median(seconds(lambda: extractor(batch)) for _ in range(5))
    whole = report["clips"] / report["wall_sec"]
    print(f"model: {report['clips']} clips at {whole:.2f} clips/s, the model alone {alone:.2f}")
    print(
        f"  utilisation {whole / alone:.2f}; by the run's own count "
        f"{report['model_sec'] / report['wall_sec']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    reading(args.video, args.repeats)
    with tempfile.TemporaryDirectory() as name:
        model_use(Path(name), args.video)
        memory(Path(name))


if __name__ == "__main__":
    main()
