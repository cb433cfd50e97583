"""The data path of 5 x 3 evaluation, compared with two other methods for the same views.

    python tools/benchmark_views.py VIDEO [VIDEO ...] [--repeats 5]

All produce 15 uint8 views [16, 224, 224, 3] of each video, in one thread, opening included:

* ours: one pass over the union of the frames, each resized once, views as slices;
* all clips at once (as mmaction2): decord reads the frames of all clips, each is resized, and
  three crops are cut from each;
* each view separately (as SlowFast and VideoMAE): decord opens, reads, resizes and crops for each
  view.

Needs decord and OpenCV. Prints medians and ratios from one run in which the three take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np

from hiera_video.data.batches import ViewSample
from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.videos.records import VideoRecord
from hiera_video.settings.video import Views
from hiera_video.video.clips import ClipSampler
from hiera_video.video.sampling import (
    clip_indices,
    clip_length,
    crop_offsets,
    resized_shape,
    uniform_clip_starts,
)

NUM_FRAMES, SAMPLING_RATE, NUM_CLIPS, NUM_CROPS, SIZE = 16, 4, 5, 3, 224


def ours(path: str) -> list[np.ndarray]:
    views = EvaluationViews(
        [VideoRecord(path, (), path)],
        ClipSampler(num_frames=NUM_FRAMES, sampling_rate=SAMPLING_RATE),
        crop_size=(SIZE, SIZE),
        views=Views(num_clips=NUM_CLIPS, num_crops=NUM_CROPS),
    )
    sample = views[0]
    assert isinstance(sample, ViewSample), sample
    size = (SIZE, SIZE)
    return [sample.view(sample.frames, i, size).numpy() for i in range(sample.num_views)]


def clips_of(video_frames: int) -> np.ndarray:
    """Frame indices int64 [NUM_CLIPS, NUM_FRAMES], the same for all methods."""
    length = clip_length(NUM_FRAMES, SAMPLING_RATE, "linspace")
    starts = uniform_clip_starts(video_frames, length, NUM_CLIPS)
    return np.stack(
        [
            clip_indices(s, NUM_FRAMES, SAMPLING_RATE, "linspace", video_frames, "repeat_last")
            for s in starts
        ]
    )


def resized(frames: np.ndarray) -> np.ndarray:
    height, width = resized_shape(*frames.shape[1:3], SIZE)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, place in zip(frames, out, strict=True):
        cv2.resize(frame, (width, height), dst=place)
    return out


def all_clips_at_once(path: str) -> list[np.ndarray]:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    clips = clips_of(len(reader))
    frames = resized(reader.get_batch(clips.reshape(-1)).asnumpy())
    offsets = crop_offsets(*frames.shape[1:3], SIZE, NUM_CROPS)
    crops = [
        np.split(np.ascontiguousarray(frames[:, y : y + SIZE, x : x + SIZE]), NUM_CLIPS)
        for y, x in offsets
    ]
    return [crop[clip] for clip in range(NUM_CLIPS) for crop in crops]


def each_view_apart(path: str) -> list[np.ndarray]:
    import decord

    views = []
    for view in range(NUM_CLIPS * NUM_CROPS):
        reader = decord.VideoReader(path, num_threads=1)
        frames = resized(reader.get_batch(clips_of(len(reader))[view // NUM_CROPS]).asnumpy())
        y, x = crop_offsets(*frames.shape[1:3], SIZE, NUM_CROPS)[view % NUM_CROPS]
        views.append(np.ascontiguousarray(frames[:, y : y + SIZE, x : x + SIZE]))
    return views


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    ways: dict[str, Callable[[str], list[np.ndarray]]] = {
        "ours": ours,
        "all clips at once": all_clips_at_once,
        "each view apart": each_view_apart,
    }
    print(f"{'video':32} {'ours ms':>8} {'at once':>14} {'apart':>16}  same views")
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for path in args.videos:
        reference = ours(path)
        same = all(
            np.array_equal(view, expected)
            for way in ways.values()
            for view, expected in zip(way(path), reference, strict=True)
        )
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way(path)
                seconds[name].append(time.perf_counter() - start)
        ms = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
        for name in ways:
            ratios[name].append(ms[name] / ms["ours"])
        others = [f"{ms[n]:7.0f} ({ratios[n][-1]:.1f}x)" for n in list(ways)[1:]]
        name = path.rpartition("/")[2]
        print(
            f"{name:32} {ms['ours']:8.0f} {others[0]:>14} {others[1]:>16} {'yes' if same else 'no'}"
        )
    for name in list(ways)[1:]:
        print(f"median over videos: {statistics.median(ratios[name]):.1f}x faster than {name}")


if __name__ == "__main__":
    main()
