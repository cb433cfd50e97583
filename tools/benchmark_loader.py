"""The training loader, compared with torch's DataLoader around the same data set, and with
torchcodec and decord with torchvision's transforms.

    python tools/benchmark_loader.py VIDEO [VIDEO ...] [--workers 2] [--clips 96] [--rounds 3]

Random 16x4 clips to uint8 [16, 224, 224, 3]: random resized crop, flip, RandAugment, and random
erasing, which the others lack on uint8. Also the cost of four clips of one decoded video against
four videos. Loaders take turns; clips per second are medians over the rounds, measured after the
first batch. A loader whose library is missing is left out with a message.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hiera_video.data.batches import collate_clips
from hiera_video.data.datasets import TrainingClips
from hiera_video.data.loader import Loader
from hiera_video.data.transforms import FinetuneTransform
from hiera_video.data.videos.records import VideoRecord
from hiera_video.settings.training import Augment
from hiera_video.settings.video import Decoding
from hiera_video.video.clips import ClipSampler

SIZE, NUM_FRAMES, SAMPLING_RATE, BATCH = 224, 16, 4, 4
MEAN, STD = (0.45,) * 3, (0.225,) * 3


class Peer(Dataset[torch.Tensor]):
    """One random clip a video, with torchvision.transforms.v2 on uint8; crop, then RandAugment."""

    def __init__(self, videos: list[str], backend: str) -> None:
        from torchvision.transforms import v2

        self.videos, self.backend = videos, backend
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0), antialias=False),
                v2.RandomHorizontalFlip(),
                v2.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),
            ]
        )

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
        epoch, index, _ = key
        rng = np.random.default_rng([epoch, index])
        path = self.videos[index % len(self.videos)]
        span = NUM_FRAMES * SAMPLING_RATE
        if self.backend == "decord":
            import decord

            reader = decord.VideoReader(path, num_threads=1)
            start = int(rng.integers(max(len(reader) - span, 0) + 1))
            at = np.minimum(start + np.arange(NUM_FRAMES) * SAMPLING_RATE, len(reader) - 1)
            frames = torch.from_numpy(reader.get_batch(at).asnumpy()).permute(0, 3, 1, 2)
        else:
            from torchcodec.decoders import VideoDecoder

            decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="exact")
            count = decoder.metadata.num_frames or 0
            start = int(rng.integers(max(count - span, 0) + 1))
            at = np.minimum(start + np.arange(NUM_FRAMES) * SAMPLING_RATE, count - 1)
            frames = decoder.get_frames_at(at.tolist()).data
        return self.transform(frames)


def our_data(videos: list[str], num_repeats: int) -> TrainingClips:
    records = [VideoRecord(path, (0,), path) for path in videos]
    transform = FinetuneTransform(SIZE, Augment(), mean=MEAN, std=STD)
    sampler = ClipSampler(num_frames=NUM_FRAMES, sampling_rate=SAMPLING_RATE)
    return TrainingClips(
        records,
        sampler,
        transform,
        num_repeats=num_repeats,
        seed=0,
        short_side=transform.short_side,
    )


def one_thread(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def clips_per_second(
    dataset: Dataset[Any], args: argparse.Namespace, num_repeats: int, by_torch: bool
) -> float:
    videos = args.clips // num_repeats
    keys = [(epoch, epoch % len(args.videos), 0) for epoch in range(videos)]
    per_batch = max(1, BATCH // num_repeats)
    batches = [keys[i : i + per_batch] for i in range(0, len(keys), per_batch)]
    collate = partial(collate_clips, clip_shape=(NUM_FRAMES, SIZE, SIZE, 3))
    loader: Any
    if isinstance(dataset, TrainingClips) and not by_torch:
        loader = Loader(dataset, batches, collate, decoding=Decoding(num_workers=args.workers))
    else:
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=args.workers,
            worker_init_fn=one_thread,
            collate_fn=collate if isinstance(dataset, TrainingClips) else None,
        )
    iterator = iter(loader)
    next(iterator)
    start, batches_seen = time.perf_counter(), 0
    for _ in iterator:
        batches_seen += 1
    return batches_seen * per_batch * num_repeats / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    loaders: dict[str, tuple[Dataset[Any], int, bool]] = {
        "ours": (our_data(args.videos, 1), 1, False),
        "ours, by torch's DataLoader": (our_data(args.videos, 1), 1, True),
        "ours, 4 clips a video": (our_data(args.videos, 4), 4, False),
    }
    for backend in ("torchcodec", "decord"):
        if importlib.util.find_spec(backend) is None:
            print(f"{backend} is not installed: left out")
            continue
        loaders[f"{backend} + torchvision"] = (Peer(args.videos, backend), 1, True)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.rounds):
        for name, settings in loaders.items():
            dataset, num_repeats, by_torch = settings
            rates[name].append(clips_per_second(dataset, args, num_repeats, by_torch))
    ours = statistics.median(rates["ours"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:28} {rate:7.1f} clips/s   ours is {ours / rate:.2f}x")
    four = statistics.median(rates["ours, 4 clips a video"])
    print(f"4 clips of one video cost {ours / four:.2f} of 4 videos, transforms included")


if __name__ == "__main__":
    main()
