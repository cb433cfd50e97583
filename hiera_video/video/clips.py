"""Choosing the frames of a clip, and reading them, each decoded once."""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np

from hiera_video.errors import counted
from hiera_video.settings.base import Count
from hiera_video.settings.video import ClipRule, Clips, FrameSampling
from hiera_video.video.reader import VideoError, VideoReader
from hiera_video.video.sampling import (
    FRAME_TIME_TOLERANCE_SEC,
    clip_indices,
    clip_length,
    constant_rate,
    keyframe_indices,
    random_clip_start,
    resample_indices,
    segment_clips_indices,
    segment_indices,
    uniform_clip_starts,
)


class ClipSampler(Clips):
    """Chooses the frames of clips by the settings `Clips`.

    Rates and lengths are in frames of the video, or of the video at `target_fps` if that is set:
    see `grid`. A video that is shorter than a clip raises VideoError if `end_policy` is "error".
    """

    num_frames: Count
    """Frames of a clip."""

    @classmethod
    def of(cls, clips: FrameSampling, num_frames: int) -> ClipSampler:
        """The sampler of clips of `num_frames` frames."""
        return cls(num_frames=num_frames, **dict(clips))

    def random_clips(
        self, video: VideoReader, num_clips: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Source frame indices of `num_clips` independent clips, int64 [num_clips, T]."""
        frames, step = self.grid(video)
        if self.sampling == "segments":
            clips = [segment_indices(len(frames), self.num_frames, rng) for _ in range(num_clips)]
        else:
            length = self.length(video, len(frames), step)
            starts = [random_clip_start(len(frames), length, rng) for _ in range(num_clips)]
            clips = [self.clip(start, len(frames), step) for start in starts]
        return frames[np.stack(clips)]

    def uniform_clips(
        self, video: VideoReader, num_clips: int, rule: ClipRule = "offset"
    ) -> np.ndarray:
        """Source frame indices of the clips of multi-view evaluation, int64 [num_clips, T]."""
        frames, step = self.grid(video)
        if self.sampling == "segments":
            clips = segment_clips_indices(len(frames), self.num_frames, num_clips)
        else:
            length = self.length(video, len(frames), step)
            starts = uniform_clip_starts(len(frames), length, num_clips, rule, self.spacing)
            clips = [self.clip(start, len(frames), step) for start in starts]
        return frames[np.stack(clips)]

    def keyframe_clip(
        self, video: VideoReader, second: float, start_sec: float | None = None
    ) -> np.ndarray:
        """Source frame indices of the clip around a key frame, int64 [T]; `spacing` is not used.

        Args:
            second: time of the key frame in the annotations.
            start_sec: time in the annotations of the first frame (data.start_sec). None: 0, because
                there is no annotation offset.

        Raises:
            VideoError: the key frame lies outside of the video.
        """
        begin, first = float(video.frame_times_sec[0]), start_sec or 0.0
        time_sec, duration_sec = second - first, video.end_sec - begin
        tolerance = FRAME_TIME_TOLERANCE_SEC
        if not -tolerance <= time_sec <= duration_sec + tolerance:
            message = (
                f"key frame at {second:g} s, but the video covers {first:g} to "
                f"{first + duration_sec:.3f} s"
            )
            if start_sec is not None:
                message += (
                    "; start_sec (data.start_sec in commands) is the second of the annotations at "
                    "which files begin"
                )
            raise VideoError(video.path, "timestamps", message)
        timeline = self.timeline(video)
        if self.target_fps is not None:
            keyframe = round(time_sec * self.target_fps)
        else:  # the frame displayed at that time
            shown_at = begin + time_sec + tolerance
            keyframe = int(np.searchsorted(video.frame_times_sec, shown_at, side="right")) - 1
        # A video resampled to target_fps may end up to one of its frames before the file does.
        keyframe = min(max(keyframe, 0), len(timeline) - 1)
        clip = keyframe_indices(keyframe, self.num_frames, self.sampling_rate, len(timeline))
        return timeline[clip]

    def grid(self, video: VideoReader) -> tuple[np.ndarray, float | Fraction]:
        """The frames that clips are chosen from, int64 [V], and their distance in a clip.

        SlowFast counts in source frames: 16x4 at `target_fps=30` is 16 frames, 10/3 apart, of a
        video of 25. So are linspace clips of videos of constant rate. Other videos have no such
        count: their frames are those of the `timeline`, `sampling_rate` apart.
        """
        if isinstance(video, str | os.PathLike):  # of which the letters could be counted
            raise TypeError(f"video is the path {video}: expected open_video({os.fspath(video)!r})")
        if self.target_fps is not None and (self.sampling, self.spacing) == ("clip", "linspace"):
            rate = constant_rate(video.frame_times_sec)
            if rate is not None:
                step = self.sampling_rate * rate / Fraction(self.target_fps)
                return np.arange(len(video)), step
        return self.timeline(video), self.sampling_rate

    def timeline(self, video: VideoReader) -> np.ndarray:
        """Source frame of each frame of the video at `target_fps`, int64 [V].

        Without `target_fps`, all frames of the video.
        """
        if self.target_fps is None or len(video) == 1:
            return np.arange(len(video))
        try:
            return resample_indices(video.frame_times_sec, video.end_sec, self.target_fps)
        except ValueError as error:
            raise VideoError(video.path, "timestamps", str(error)) from None

    def length(
        self, video: VideoReader, video_frames: int, step: float | Fraction
    ) -> float | Fraction:
        """Frames that a clip covers, of the `video_frames` that it is chosen from."""
        length = clip_length(self.num_frames, step, self.spacing)
        if self.end_policy == "error" and video_frames <= length - 1:
            raise VideoError(
                video.path,
                "too_short",
                f"{counted(video_frames, 'frame')}, a clip covers {float(length):g}: lower "
                "sampling_rate, or set end_policy to repeat_last or wrap (clips.sampling_rate and "
                "clips.end_policy in commands)",
            )
        return length

    def middle_clip(self, video: VideoReader) -> tuple[np.ndarray, list[float]]:
        """The clip of the middle of a video.

        Returns:
            Frames uint8 [T, H, W, 3], and when each appears, T seconds.

        Raises:
            VideoError: see `VideoReader.frames`.
        """
        (indices,) = self.uniform_clips(video, 1)
        return video.frames(indices), video.frame_times_sec[indices].tolist()

    def clip(self, start: float, video_frames: int, step: float | Fraction) -> np.ndarray:
        """The clip that begins at `start`, int64 [T], in frames as for `length`."""
        return clip_indices(
            start, self.num_frames, step, self.spacing, video_frames, self.end_policy
        )


def read_frames(video: VideoReader, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes each frame of `indices` once.

    Returns:
        The unique frames, uint8 [U, H, W, C], and positions in them, of the shape of `indices`.
    """
    unique, positions = np.unique(indices, return_inverse=True)
    return video.frames(unique), positions.reshape(indices.shape)
