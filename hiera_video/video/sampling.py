"""Index arithmetic of sampling: frames of clips, sizes of frames and offsets of crops.

A video is represented by its number of frames, `video_frames`, and a frame by its position in
presentation order, 0 to `video_frames - 1`. The formulas are those behind the published accuracies:
SlowFast's for Kinetics, SSv2 and AVA, VideoMAE's for two clips on SSv2, mmaction2's for strided
clips. Wrong arguments raise `ValueError` with the argument, its value and what is allowed.
"""

import math
from fractions import Fraction
from numbers import Integral
from typing import get_args

import numpy as np
from jaxtyping import Float, Int64

from hiera_video.settings.video import ClipRule, EndPolicy, Spacing

FRAME_TIME_TOLERANCE_SEC = 1e-3  # time stamps in milliseconds are rounded by up to 0.5 ms
MAX_RESAMPLED_FRAMES = 10_000_000  # nearly four days at 30 frames per second


def resample_indices(
    frame_times_sec: Float[np.ndarray, " F"], end_sec: float, target_fps: float
) -> Int64[np.ndarray, " V"]:
    """The source frame of each frame of a video that is resampled to `target_fps`.

    Resampled frame k is the frame displayed `k / target_fps` seconds after the first one; there are
    V = max(1, round((end_sec - first) * target_fps)) of them. A frame that begins at most a
    millisecond later (and at most a quarter of a resampled frame) counts as displayed, so that
    rounded time stamps neither double nor drop frames: a video of constant frame rate is unchanged
    by resampling to that rate.

    Args:
        frame_times_sec: time at which each frame begins, ascending.
        end_sec: time at which the last frame ends.
        target_fps: resampled frames per second.
    """
    virtual_frames = max(1, round((end_sec - frame_times_sec[0]) * target_fps))
    if virtual_frames > MAX_RESAMPLED_FRAMES:
        raise ValueError(
            f"end_sec={end_sec} at target_fps={target_fps} makes {virtual_frames} frames, over "
            f"{MAX_RESAMPLED_FRAMES}: the time stamps of this video look broken"
        )
    shown_at = frame_times_sec[0] + np.arange(virtual_frames) / target_fps
    shown_by = shown_at + _tolerance_sec(target_fps)
    return (np.searchsorted(frame_times_sec, shown_by, side="right") - 1).astype(np.int64)


def constant_rate(frame_times_sec: Float[np.ndarray, " F"]) -> Fraction | None:
    """Frames per second of a video whose frames are equally far apart; None for other videos.

    Time stamps may be a millisecond off, because files round them. Whole rates, 1000/1001 of them
    (29.97) and halves are returned exactly, so that products with them can be rounded down.
    """
    gaps = len(frame_times_sec) - 1
    seconds = float(frame_times_sec[-1] - frame_times_sec[0])
    if seconds <= 0:
        return None
    mean = gaps / seconds
    usual = Fraction(round(mean)), Fraction(round(mean * 1.001) * 1000, 1001)
    others = Fraction(round(mean * 2), 2), Fraction(mean)
    for rate in (*sorted(usual, key=lambda rate: abs(rate - mean)), *others):
        if rate:
            times = frame_times_sec[0] + np.arange(gaps + 1) / float(rate)
            if np.abs(times - frame_times_sec).max() <= _tolerance_sec(float(rate)):
                return rate
    return None


def clip_length(
    num_frames: int, sampling_rate: float | Fraction, spacing: Spacing
) -> float | Fraction:
    """Source frames that a clip covers, first and last included.

    "linspace": num_frames * sampling_rate, as in SlowFast (16x4 covers 64), at least 1. The rate
                may be a fraction: 16x4 at 30 frames per second is 16 x 10/3 in a video of 25.
    "strided": (num_frames - 1) * sampling_rate + 1, from the first sampled frame to the last (61).
    """
    _check_counts(num_frames=num_frames)
    _check_choice("spacing", spacing, Spacing)
    if spacing == "linspace":
        if not sampling_rate > 0:
            raise ValueError(f"sampling_rate={sampling_rate} must be above 0")
        return max(1, num_frames * sampling_rate)
    _check_counts(sampling_rate=sampling_rate)
    return (num_frames - 1) * sampling_rate + 1


def random_clip_start(
    video_frames: int, length: float | Fraction, rng: np.random.Generator
) -> float:
    """Start of a training clip of `length` frames: uniform over [0, video_frames - length].

    0 if the video is shorter. Not an integer: `clip_indices` rounds the frames of the clip.
    """
    return float(rng.uniform(0.0, float(_slack(video_frames, length))))


def uniform_clip_starts(
    video_frames: int,
    length: float | Fraction,
    num_clips: int,
    rule: ClipRule = "offset",
    spacing: Spacing = "linspace",
) -> list[float]:
    """Starts of the `num_clips` test clips of `length` frames.

    With slack = max(video_frames - length, 0), clip k of K starts at
      "offset":   k * floor(slack / (K - 1)), from the beginning to the end; a single clip at
                  floor(slack / 2). Used by SlowFast's MViT and masked-pretraining configs. With
                  "strided" spacing round(k * slack / (K - 1)), halves to even, as in mmaction2.
      "interval": k * slack / K, which never reaches the end. SlowFast's default.
    5 clips of 64 frames in a video of 300 start at 0, 59, 118, 177, 236 with "offset", and at 0,
    47.2, 94.4, 141.6, 188.8 with "interval"; 5 strided clips of 61 at 0, 60, 120, 179, 239.
    """
    slack = _slack(video_frames, length)
    _check_counts(num_clips=num_clips)
    _check_choice("rule", rule, ClipRule)
    _check_choice("spacing", spacing, Spacing)
    if rule == "interval":
        return [float(slack * k / num_clips) for k in range(num_clips)]
    if num_clips == 1:
        return [float(slack // 2)]
    if spacing == "strided":
        return [float(round(k * (slack / (num_clips - 1)))) for k in range(num_clips)]
    return [float(k * (slack // (num_clips - 1))) for k in range(num_clips)]


def clip_indices(
    start: float,
    num_frames: int,
    sampling_rate: float | Fraction,
    spacing: Spacing,
    video_frames: int,
    end_policy: EndPolicy,
) -> Int64[np.ndarray, " T"]:
    """The T = `num_frames` frames of the clip that begins at `start`, which may be fractional.

    Positions, rounded down to frames at the end:
      "linspace": T points spread evenly from start to start + clip_length - 1, as in SlowFast; 16x4
                  from 0 gives 0, 4, 8, 12, 16, 21, 25, ... 63, 4.2 apart.
      "strided":  floor(start) + i * sampling_rate; 16x4 from 0 gives 0, 4, 8, ... 60.

    `end_policy` applies to positions outside the video. For a video of 10 frames, the strided clip
    4x4 from 2 has positions 2, 6, 10, 14, which become
      "repeat_last": 2, 6, 6, 6; the last of its positions in the video, as in mmaction2. Linspace
                     positions 2, 7, 12, 17 become 2, 7, 9, 9, limited to 0 ... 9 as in SlowFast;
      "wrap":        2, 6, 0, 4; the video begins again;
      "error":       a ValueError.
    """
    length = clip_length(num_frames, sampling_rate, spacing)
    _check_counts(video_frames=video_frames)
    _check_choice("end_policy", end_policy, EndPolicy)
    if not math.isfinite(start):
        raise ValueError(f"start={start} must be finite")
    last = video_frames - 1
    if spacing == "linspace":
        # The division comes last, so that whole positions are exact before they are rounded down.
        parts = max(num_frames - 1, 1)
        positions = [math.floor(start + i * (length - 1) / parts) for i in range(num_frames)]
    else:
        positions = [math.floor(start) + i * int(sampling_rate) for i in range(num_frames)]
        last = max((i for i in positions if i < video_frames), default=last)
    if end_policy == "repeat_last":
        positions = [max(min(i, last), 0) for i in positions]
    if end_policy == "wrap":
        positions = [i % video_frames for i in positions]
    elif positions[0] < 0 or positions[-1] >= video_frames:
        raise ValueError(
            f"start={start}: the clip takes frames {positions[0]} to {positions[-1]} of a video of "
            f"{video_frames}; start earlier, use fewer frames or a lower sampling_rate, or set "
            "end_policy to 'repeat_last' or 'wrap'"
        )
    return np.array(positions, dtype=np.int64)


def segment_indices(
    video_frames: int, num_frames: int, rng: np.random.Generator | None
) -> Int64[np.ndarray, " T"]:
    """One frame from each of T = `num_frames` equal parts of the video, as SlowFast on SSv2.

    The parts meet at round(i * (video_frames - 1) / T), halves to even. With `rng` (training) a
    frame of each part is drawn, both ends included; without it (testing) the middle is taken,
    rounded down: 100 frames and T = 16 give 3, 9, 15, 22, 28, 34, 40, 46, 53, 59, 65, 71, 77, 83,
    90, 96. Frames repeat if the video has fewer than T.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames)
    bounds = np.round((video_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    first, last = bounds[:-1], bounds[1:]
    if rng is None:
        return (first + last) // 2
    return rng.integers(first, last, endpoint=True)


def segment_clips_indices(
    video_frames: int, num_frames: int, num_clips: int
) -> list[Int64[np.ndarray, " T"]]:
    """Test clips by segments: one as in `segment_indices` without `rng`, or VideoMAE's two.

    The sorted frames floor(x * L / T) and floor((x + 1/2) * L / T), x < T, go to the two clips in
    turn: L = 8 frames and T = 4 give 0, 2, 4, 6 and 1, 3, 5, 7. The clips are the same only if the
    video has at most T frames. More clips are refused: SlowFast's would repeat the same frames, and
    no others have been published.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames)
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
    """The clip around an annotated frame, with frames `sampling_rate` apart, as SlowFast on AVA.

    It begins num_frames * sampling_rate // 2 before the key frame: 16x4 spans keyframe - 32 to
    keyframe + 28, and the key frame is the ninth. Positions outside the video repeat its first or
    last frame; a key frame outside the video is a ValueError.
    """
    _check_counts(num_frames=num_frames, sampling_rate=sampling_rate, video_frames=video_frames)
    if not 0 <= keyframe_index < video_frames:
        raise ValueError(f"keyframe_index={keyframe_index} must be 0 to {video_frames - 1}")
    first = keyframe_index - num_frames * sampling_rate // 2
    return (first + sampling_rate * np.arange(num_frames, dtype=np.int64)).clip(0, video_frames - 1)


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after resizing the shorter side to `short_side`, as SlowFast does for AVA.

    The longer side is rounded down: (340, 256) at 224 becomes (297, 224). See `scaled_shape`.
    """
    _check_counts(height=height, width=width, short_side=short_side)
    if min(height, width) == short_side:
        return height, width
    # Floats, in this order: SlowFast loses a pixel if the quotient is whole but inexact, which
    # happens for 5 in 100,000 sizes.
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def scaled_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after resizing the shorter side to `short_side`, as SlowFast's decoder does.

    The longer side is rounded: (340, 256) at 224 becomes (298, 224).
    """
    _check_counts(height=height, width=width, short_side=short_side)
    short, long = sorted((height, width))
    long_side = (2 * long * short_side + short) // (2 * short)
    return (long_side, short_side) if width < height else (short_side, long_side)


def covering_short_side(height: int, width: int, size: tuple[int, int]) -> int:
    """The smallest short side at which `resized_shape` covers `size`, (height, width) in pixels.

    For a square `size` it is the side of the square.
    """
    crop_height, crop_width = size
    _check_counts(height=height, width=width, size=min(crop_height, crop_width))
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
    """(top, left) of each test crop, as in SlowFast.

    1 crop is the centre. 3 crops lie along the longer side, at 0, ceil((side - size) / 2) and
    side - size, and in the middle of the shorter: crops of 224 in 224 x 298 are at (0, 0), (0, 37)
    and (0, 74). If the picture has exactly the size of the crop, all three are the same.

    Args:
        size: side of a square crop, or (height, width), in pixels.
    """
    crop_height, crop_width = (size, size) if not isinstance(size, tuple) else size
    _check_counts(height=height, width=width, size=min(crop_height, crop_width))
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


def _check_counts(**arguments: float | Fraction) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name}={value!r} must be an integer")
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} must be one of {', '.join(get_args(choices))}")


def _slack(video_frames: int, length: float | Fraction) -> float | Fraction:
    _check_counts(video_frames=video_frames)
    if not length >= 1:
        raise ValueError(f"length={length} must be at least 1")
    return max(video_frames - length, 0)


def _tolerance_sec(fps: float) -> float:
    """How late a frame may begin and still count as being on screen."""
    return min(FRAME_TIME_TOLERANCE_SEC + 1e-6, 0.25 / fps)
