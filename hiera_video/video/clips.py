"""Choosing the frames of a clip, and reading them, each decoded once."""

from __future__ import annotations

import numpy as np

from hiera_video.settings.base import Count
from hiera_video.settings.video import ClipRule, Clips, FrameSampling
from hiera_video.video.reader import VideoError, VideoReader
from hiera_video.video.sampling import (
    FRAME_TIME_TOLERANCE_SEC,
    clip_indices,
    clip_length,
    keyframe_indices,
    random_clip_start,
    resample_indices,
    segment_clips_indices,
    segment_indices,
    uniform_clip_starts,
)


class ClipSampler(Clips):
    """Chooses the frames of clips by the settings `Clips`.

    Rates and lengths are in frames of the video, or of the video at `target_fps` if that is set. A
    video that is shorter than a clip raises VideoError if `end_policy` is "error".
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
        timeline = self.timeline(video)
        if self.sampling == "segments":
            clips = [segment_indices(len(timeline), self.num_frames, rng) for _ in range(num_clips)]
        else:
            length = self.length(video, len(timeline))
            clips = [
                self.clip(random_clip_start(len(timeline), length, rng), len(timeline))
                for _ in range(num_clips)
            ]
        return timeline[np.stack(clips)]

    def uniform_clips(
        self, video: VideoReader, num_clips: int, rule: ClipRule = "offset"
    ) -> np.ndarray:
        """Source frame indices of the clips of multi-view evaluation, int64 [num_clips, T]."""
        timeline = self.timeline(video)
        if self.sampling == "segments":
            clips = segment_clips_indices(len(timeline), self.num_frames, num_clips)
        else:
            length = self.length(video, len(timeline))
            starts = uniform_clip_starts(len(timeline), length, num_clips, rule)
            clips = [self.clip(start, len(timeline)) for start in starts]
        return timeline[np.stack(clips)]

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
                message += "; data.start_sec is the second of the annotations at which files begin"
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

    def length(self, video: VideoReader, video_frames: int) -> int:
        """Frames of the timeline that a clip covers."""
        length = clip_length(self.num_frames, self.sampling_rate, self.spacing)
        if self.end_policy == "error" and video_frames < length:
            raise VideoError(
                video.path,
                "too_short",
                f"{video_frames} frames, a clip covers {length}: lower clips.sampling_rate or set "
                "clips.end_policy to repeat_last or wrap",
            )
        return length

    def clip(self, start: float, video_frames: int) -> np.ndarray:
        """Frames of the timeline in the clip that begins at `start`, int64 [T]."""
        return clip_indices(
            start, self.num_frames, self.sampling_rate, self.spacing, video_frames, self.end_policy
        )


def read_frames(video: VideoReader, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes each frame of `indices` once.

    Returns:
        The unique frames, uint8 [U, H, W, C], and positions in them, of the shape of `indices`.
    """
    unique, positions = np.unique(indices, return_inverse=True)
    return video.frames(unique), positions.reshape(indices.shape)
