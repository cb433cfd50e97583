"""Which frames make a clip: index arithmetic only, no pictures and no files.

A video is known here by its number of frames, `video_frames`; a frame by its position in
presentation order, 0 to `video_frames - 1`. The formulas are those behind the published numbers:
SlowFast's for Kinetics, SSv2 and AVA, VideoMAE's for two clips on SSv2. Every mistake is a
`ValueError` that names the argument, its value and what is allowed.
"""

from __future__ import annotations

import math
import operator
from typing import get_args

import numpy as np
from jaxtyping import Float, Int64

from hiera_video.settings.video import ClipRule, EndPolicy, Spacing

FRAME_TIME_TOLERANCE_SEC = 1e-3  # where time is counted in milliseconds, each stamp is off by 0.5
MAX_RESAMPLED_FRAMES = 10_000_000  # nearly four days at 30 frames a second: the stamps are broken


def resample_indices(
    frame_times_sec: Float[np.ndarray, " F"], end_sec: float, target_fps: float
) -> Int64[np.ndarray, " V"]:
    """The video as played at `target_fps`: the source frame behind each virtual frame.

    Virtual frame k is the frame on screen `k / target_fps` seconds after the first one; there are
    V = max(1, round((end_sec - first) * target_fps)) of them. A frame that comes up at most a
    millisecond later (and at most a quarter of a virtual frame) counts as on screen, so that
    rounded time stamps neither double nor drop frames: a video of constant frame rate, resampled
    to that rate, is itself.

    Args:
        frame_times_sec: when each frame comes up, ascending.
        end_sec: when the last frame leaves the screen.
        target_fps: virtual frames a second.
    """
    times = np.asarray(frame_times_sec, dtype=np.float64)
    if times.ndim != 1 or not len(times):
        raise ValueError(f"frame_times_sec must hold one time a frame, has shape {times.shape}")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError("frame_times_sec must be finite and ascending")
    if not (math.isfinite(end_sec) and end_sec >= times[-1]):
        raise ValueError(f"end_sec={end_sec} must not precede the last frame, at {times[-1]} s")
    if not (math.isfinite(target_fps) and target_fps > 0):
        raise ValueError(f"target_fps={target_fps} must be above 0")
    virtual_frames = max(1, round((end_sec - times[0]) * target_fps))
    if virtual_frames > MAX_RESAMPLED_FRAMES:
        raise ValueError(
            f"end_sec={end_sec} at target_fps={target_fps} makes {virtual_frames} frames, over "
            f"{MAX_RESAMPLED_FRAMES}: the time stamps of this video look broken"
        )
    shown_at = times[0] + np.arange(virtual_frames) / target_fps
    tolerance = min(FRAME_TIME_TOLERANCE_SEC + 1e-6, 0.25 / target_fps)
    return (np.searchsorted(times, shown_at + tolerance, side="right") - 1).astype(np.int64)


def clip_length(num_frames: int, sampling_rate: int, spacing: Spacing) -> int:
    """Source frames that a clip covers, first and last included.

    "linspace" is SlowFast's num_frames * sampling_rate (16x4 covers 64), "strided" the
    (num_frames - 1) * sampling_rate + 1 from the first frame taken to the last (61).
    """
    num_frames = _integer("num_frames", num_frames, 1)
    sampling_rate = _integer("sampling_rate", sampling_rate, 1)
    _check_choice("spacing", spacing, Spacing)
    if spacing == "linspace":
        return num_frames * sampling_rate
    return (num_frames - 1) * sampling_rate + 1


def random_clip_start(video_frames: int, length: int, rng: np.random.Generator) -> float:
    """Start of a training clip of `length` frames: uniform over [0, video_frames - length].

    0 where the video is shorter. Not an integer: `clip_indices` does the rounding.
    """
    return float(rng.uniform(0.0, _slack(video_frames, length)))


def uniform_clip_starts(
    video_frames: int, length: int, num_clips: int, rule: ClipRule = "offset"
) -> list[float]:
    """Starts of the `num_clips` test clips of `length` frames, by one of SlowFast's two formulas.

    With slack = max(video_frames - length, 0), clip k of K starts at
      "offset":   k * floor(slack / (K - 1)), from the beginning to the end; a single clip at
                  floor(slack / 2). What SlowFast's MViT and masked-pretraining configs use.
      "interval": k * slack / K, which never reaches the end. SlowFast's default.
    5 clips of 64 frames out of 300 start at 0, 59, 118, 177, 236 by the first, at 0, 47.2, 94.4,
    141.6, 188.8 by the second.
    """
    slack = _slack(video_frames, length)
    num_clips = _integer("num_clips", num_clips, 1)
    _check_choice("rule", rule, ClipRule)
    if rule == "interval":
        return [slack * k / num_clips for k in range(num_clips)]
    if num_clips == 1:
        return [float(slack // 2)]
    return [float(k * (slack // (num_clips - 1))) for k in range(num_clips)]


def clip_indices(
    start: float,
    num_frames: int,
    sampling_rate: int,
    spacing: Spacing,
    video_frames: int,
    end_policy: EndPolicy,
) -> Int64[np.ndarray, " T"]:
    """The T = `num_frames` frames of the clip that begins at `start`, maybe between two frames.

    Wanted positions, rounded down to frames at the end:
      "linspace": T points spread evenly from start to start + clip_length - 1, as SlowFast; 16x4
                  from 0 takes 0, 4, 8, 12, 16, 21, 25, ... 63, 4.2 apart.
      "strided":  floor(start) + i * sampling_rate; 16x4 from 0 takes 0, 4, 8, ... 60.

    `end_policy` decides on positions outside the video. Out of a video of 10 frames, the strided
    clip 4x4 from 2 wants 2, 6, 10, 14, and gets
      "repeat_last": 2, 6, 9, 9; positions are limited to 0 ... 9;
      "wrap":        2, 6, 0, 4; the video begins again;
      "error":       a ValueError.
    """
    length = clip_length(num_frames, sampling_rate, spacing)
    video_frames = _integer("video_frames", video_frames, 1)
    _check_choice("end_policy", end_policy, EndPolicy)
    if not math.isfinite(start):
        raise ValueError(f"start={start} must be finite")
    steps = np.arange(num_frames, dtype=np.float64)
    if spacing == "linspace":
        # The division comes last: whole positions stay whole, which the rounding down needs.
        positions = start + steps * (length - 1) / max(num_frames - 1, 1)
    else:
        positions = math.floor(start) + steps * sampling_rate
    if end_policy == "repeat_last":
        positions = positions.clip(0, video_frames - 1)
    indices = np.floor(positions).astype(np.int64)
    if end_policy == "wrap":
        return indices % video_frames
    if indices[0] < 0 or indices[-1] >= video_frames:
        raise ValueError(
            f"start={start}: the clip takes frames {indices[0]} to {indices[-1]} of a video of "
            f"{video_frames}; start within, take fewer frames or a lower sampling_rate, or set "
            "end_policy to 'repeat_last' or 'wrap'"
        )
    return indices


def segment_indices(
    video_frames: int, num_frames: int, rng: np.random.Generator | None
) -> Int64[np.ndarray, " T"]:
    """One frame out of each of T = `num_frames` equal parts of the video: SlowFast on SSv2.

    The parts meet at round(i * (video_frames - 1) / T), halves to even. With `rng` (training) a
    frame of each part is drawn, its ends included; without (testing) it is the middle, rounded
    down: 100 frames and T = 16 give 3, 9, 15, 22, 28, 34, 40, 46, 53, 59, 65, 71, 77, 83, 90, 96.
    A video of fewer than T frames repeats some.
    """
    video_frames = _integer("video_frames", video_frames, 1)
    num_frames = _integer("num_frames", num_frames, 1)
    bounds = np.round((video_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    first, last = bounds[:-1], bounds[1:]
    if rng is None:
        return (first + last) // 2
    return rng.integers(first, last, endpoint=True)


def segment_clips_indices(
    video_frames: int, num_frames: int, num_clips: int
) -> list[Int64[np.ndarray, " T"]]:
    """Test clips by segments: 1 is the centre clip of `segment_indices`, 2 are VideoMAE's.

    The two deal out, in turn, the sorted frames floor(x * L / T) and floor((x + 1/2) * L / T),
    x < T: 8 frames and T = 4 give 0, 2, 4, 6 and 1, 3, 5, 7. They differ unless the video has at
    most T frames, when each shows all of it. More clips are refused: SlowFast's would repeat the
    same frames, and nobody has published others.
    """
    video_frames = _integer("video_frames", video_frames, 1)
    num_frames = _integer("num_frames", num_frames, 1)
    if num_clips == 1:
        return [segment_indices(video_frames, num_frames, None)]
    if num_clips != 2:
        raise ValueError(f"num_clips={num_clips} must be 1 or 2 when frames come from segments")
    part = video_frames / num_frames
    begins = part * np.arange(num_frames)
    frames = np.sort(np.concatenate([begins, part / 2.0 + begins]).astype(np.int64))
    return [frames[0::2], frames[1::2]]


def keyframe_indices(
    keyframe_index: int, num_frames: int, sampling_rate: int, video_frames: int
) -> Int64[np.ndarray, " T"]:
    """The clip around an annotated frame, `sampling_rate` apart: SlowFast on AVA.

    It begins num_frames * sampling_rate // 2 before the key frame: 16x4 takes keyframe - 32 to
    keyframe + 28, the key frame being the ninth. Positions outside the video repeat its first or
    last frame; a key frame outside it is an error.
    """
    num_frames = _integer("num_frames", num_frames, 1)
    sampling_rate = _integer("sampling_rate", sampling_rate, 1)
    video_frames = _integer("video_frames", video_frames, 1)
    keyframe_index = _integer("keyframe_index", keyframe_index, 0)
    if keyframe_index >= video_frames:
        raise ValueError(
            f"keyframe_index={keyframe_index} must be at most {video_frames - 1}, the last frame"
        )
    first = keyframe_index - num_frames * sampling_rate // 2
    return (first + sampling_rate * np.arange(num_frames, dtype=np.int64)).clip(0, video_frames - 1)


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short_side`, the longer rounded down: SlowFast.

    (340, 256) at 224 becomes (297, 224).
    """
    height, width = _integer("height", height, 1), _integer("width", width, 1)
    short_side = _integer("short_side", short_side, 1)
    if min(height, width) == short_side:
        return height, width
    # Floats, in this order: SlowFast loses a pixel where the quotient is whole but inexact, at
    # 5 in 100,000 sizes.
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def covering_short_side(height: int, width: int, size: tuple[int, int]) -> int:
    """The smallest short side at which `resized_shape` covers `size`, (height, width) pixels.

    For a square it is the square's side.
    """
    crop_height, crop_width = _integer("size", size[0], 1), _integer("size", size[1], 1)
    short, long = (crop_height, crop_width) if height <= width else (crop_width, crop_height)
    side = max(short, long * min(height, width) // max(height, width))
    while True:
        rows, columns = resized_shape(height, width, side)
        if rows >= crop_height and columns >= crop_width:
            return side
        side += 1  # once or twice: the longer side is rounded down


def crop_offsets(
    height: int, width: int, size: int | tuple[int, int], num_crops: int
) -> list[tuple[int, int]]:
    """(top, left) of each test crop of `size` pixels, a side or (height, width): SlowFast.

    1 crop is the centre. 3 lie along the longer side, at 0, ceil((side - size) / 2) and
    side - size, and in the middle of the shorter: 224 out of 224 x 298 at (0, 0), (0, 37), (0, 74).
    A picture of exactly the crop's size gives the same crop three times.
    """
    height, width = _integer("height", height, 1), _integer("width", width, 1)
    crop_height, crop_width = (size, size) if not isinstance(size, tuple) else size
    crop_height, crop_width = _integer("size", crop_height, 1), _integer("size", crop_width, 1)
    if crop_height > height or crop_width > width:
        raise ValueError(f"size={size} must fit into the picture, {height} x {width}")
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops={num_crops} must be 1 (centre) or 3 (along the longer side)")
    top, left = (height - crop_height + 1) // 2, (width - crop_width + 1) // 2
    if num_crops == 1:
        return [(top, left)]
    if height > width:
        return [(0, left), (top, left), (height - crop_height, left)]
    return [(top, 0), (top, left), (top, width - crop_width)]


def _integer(name: str, value: int, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be an integer") from None
    if number < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")
    return number


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} must be one of {', '.join(get_args(choices))}")


def _slack(video_frames: int, length: int) -> int:
    return max(_integer("video_frames", video_frames, 1) - _integer("length", length, 1), 0)
