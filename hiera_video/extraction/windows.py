"""Windows of a video: which frames make them and when, and their pixels in one pass.

A window is a clip with a place in time. docs/extraction.md gives the number of windows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from hiera_video.settings.video import ClipRule, LastWindow, Windowing
from hiera_video.video.clips import ClipSampler
from hiera_video.video.reader import VideoReader
from hiera_video.video.sampling import FRAME_TIME_TOLERANCE_SEC, clip_indices


@dataclass(frozen=True)
class Windows:
    """The windows of one video, in the order of time."""

    indices: Int64[np.ndarray, "N T"]  # source frames
    start_sec: Float[np.ndarray, " N"]  # at which the first frame appears
    end_sec: Float[np.ndarray, " N"]  # at which the last frame disappears
    is_short: bool  # the video is shorter than a clip: other frames replace missing ones


WindowSampler = Callable[[VideoReader], Windows]
"""Chooses the windows of an opened video."""


@dataclass(frozen=True)
class DenseWindows:
    """Windows at a fixed distance over a whole video.

    With `clip_stride_sec`, window k starts with the frame that is on screen k strides after the
    first.

    Args:
        sampler: chooses the frames of a clip; of sampling "clip".
        windows: the distance, and what happens at the end of the video (see `window_starts`).
    """

    sampler: ClipSampler
    windows: Windowing

    def __call__(self, video: VideoReader) -> Windows:
        timeline = self.sampler.timeline(video)
        num_frames = len(timeline)
        length = int(self.sampler.length(video, num_frames, self.sampler.sampling_rate))
        times = _times(self.sampler, video, num_frames)
        settings = self.windows
        if settings.clip_stride_sec is None:
            stride = length if settings.clip_stride is None else settings.clip_stride
            regular = np.arange(0, num_frames, stride)
        else:
            seconds = times[-1] - times[0] - FRAME_TIME_TOLERANCE_SEC
            count = max(1, math.ceil(seconds / settings.clip_stride_sec))
            at = times[0] + settings.clip_stride_sec * np.arange(count) + FRAME_TIME_TOLERANCE_SEC
            regular = np.searchsorted(times[:-1], at, side="right") - 1
        starts = window_starts(num_frames, length, regular, settings.last_window)
        is_short = num_frames < length
        how = (self.sampler.num_frames, self.sampler.sampling_rate, self.sampler.spacing)
        policy = self.sampler.end_policy if is_short else "repeat_last"
        clips = [clip_indices(start, *how, num_frames, policy) for start in starts.tolist()]
        ends = np.minimum(starts + length, num_frames)
        return Windows(timeline[np.stack(clips)], times[starts], times[ends], is_short)


@dataclass(frozen=True)
class ViewWindows:
    """The temporal clips of multi-view evaluation."""

    sampler: ClipSampler
    num_clips: int
    clip_rule: ClipRule = "offset"

    def __call__(self, video: VideoReader) -> Windows:
        indices = self.sampler.uniform_clips(video, self.num_clips, self.clip_rule)
        times = np.append(video.frame_times_sec, video.end_sec)
        frames, step = self.sampler.grid(video)
        is_segments = self.sampler.sampling == "segments"
        needed = (
            self.sampler.length(video, len(frames), step) if not is_segments else indices.shape[1]
        )
        first, last = indices.min(axis=1), indices.max(axis=1)
        return Windows(indices, times[first], times[last + 1], is_short=len(frames) <= needed - 1)


def window_starts(
    video_frames: int,
    length: int,
    regular: Int64[np.ndarray, " S"],
    last_window: LastWindow,
) -> Int64[np.ndarray, " N"]:
    """First frames of the windows of `length` frames of a video of `video_frames`.

    These are the `regular` starts (ascending, the first 0, all below `video_frames`) whose window
    lies in the video. If frames remain after the last of these windows,
      "pad":   adds the next regular start, whose window reaches past the end;
      "shift": adds a window that ends with the video;
      "drop":  leaves them out.
    A video shorter than a window has one window, at 0.
    """
    whole = regular[regular <= video_frames - length]
    if len(whole) == 0:
        return np.zeros(1, np.int64)
    if last_window == "drop" or whole[-1] + length == video_frames:
        return whole
    if last_window == "pad":
        return regular[: len(whole) + 1]
    return np.append(whole, video_frames - length)


def _times(sampler: ClipSampler, video: VideoReader, num_frames: int) -> Float[np.ndarray, " F+1"]:
    """Times at which the frames of the video as sampled appear, and the last one disappears."""
    if sampler.target_fps is None or len(video) == 1:
        return np.append(video.frame_times_sec, video.end_sec)
    times = video.frame_times_sec[0] + np.arange(num_frames) / sampler.target_fps
    return np.append(times, max(video.end_sec, float(times[-1])))


def stream_windows(
    frames: Iterator[tuple[int, np.ndarray]], indices: Int64[np.ndarray, "N T"]
) -> Iterator[list[np.ndarray]]:
    """Yields the frames of each window in turn, from one pass over all needed frames.

    A frame is released as soon as no later window needs it, so that memory is bounded by the
    overlap of windows, not by the length of the video.

    Args:
        frames: (index, frame) for the unique `indices`, ascending.
    """
    complete_at = np.maximum.accumulate(indices.max(axis=1))
    needed_from = np.minimum.accumulate(indices.min(axis=1)[::-1])[::-1]
    held: dict[int, np.ndarray] = {}
    n = 0
    for index, frame in frames:
        held[index] = frame
        while n < len(indices) and complete_at[n] <= index:
            yield [held[i] for i in indices[n].tolist()]
            n += 1
        while held and n < len(indices) and (oldest := next(iter(held))) < needed_from[n]:
            del held[oldest]
