"""Records to samples: which frames, their pixels (each decoded once), the transform.

A sample is a pure function of (seed, epoch, index). A video that cannot be read becomes a
`Failure`, never another video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from hiera_video.data.annotations import VideoRecord
from hiera_video.data.batches import (
    BoxedClip,
    ClipSample,
    DetectionSample,
    Failure,
    KeyframeSample,
    ViewSample,
)
from hiera_video.data.keyframes import KeyframeRecord
from hiera_video.data.transforms import Boxes, Frames, centre_crop, resize_short_side
from hiera_video.video.reader import VideoError, VideoReader, open_video
from hiera_video.video.sampling import (
    FRAME_TIME_TOLERANCE_SEC,
    ClipRule,
    EndPolicy,
    Spacing,
    clip_indices,
    clip_length,
    crop_offsets,
    keyframe_indices,
    random_clip_start,
    resample_indices,
    segment_clips_indices,
    segment_indices,
    uniform_clip_starts,
)

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
BoxTransform = Callable[[Frames, Boxes, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Masking = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class ClipSampler:
    """Which frames of a video make a clip.

    `sampling` "clip" takes frames at a fixed distance, "segments" one from each of T equal parts.
    Rates and lengths are in frames of the video, or of the video at `target_fps` where that is set.
    """

    num_frames: int
    sampling: Literal["clip", "segments"] = "clip"
    sampling_rate: int = 4
    spacing: Spacing = "linspace"
    target_fps: float | None = None
    end_policy: EndPolicy = "repeat_last"

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
            second: of the key frame.
            start_sec: second of the first frame, as data.start_sec says it. None: 0, for want of
                annotations that could begin elsewhere.

        Raises:
            VideoError: it lies outside of the video.
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
                message += "; data.start_sec says at which second of the annotations files begin"
            raise VideoError(video.path, "timestamps", message)
        timeline = self.timeline(video)
        if self.target_fps is not None:
            keyframe = round(time_sec * self.target_fps)
        else:  # the frame on screen
            shown_at = begin + time_sec + tolerance
            keyframe = int(np.searchsorted(video.frame_times_sec, shown_at, side="right")) - 1
        # A video at target_fps may end up to one of its frames before the file.
        keyframe = min(max(keyframe, 0), len(timeline) - 1)
        clip = keyframe_indices(keyframe, self.num_frames, self.sampling_rate, len(timeline))
        return timeline[clip]

    def timeline(self, video: VideoReader) -> np.ndarray:
        """Source frame behind each frame of the video as sampled, at `target_fps` where set."""
        if self.target_fps is None or len(video) == 1:
            return np.arange(len(video))
        try:
            return resample_indices(video.frame_times_sec, video.end_sec, self.target_fps)
        except ValueError as error:
            raise VideoError(video.path, "timestamps", str(error)) from None

    def length(self, video: VideoReader, video_frames: int) -> int:
        """Frames that a clip covers; a video shorter than that is an error where so asked."""
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
        """Frames of the timeline that make the clip from `start` on, int64 [T]."""
        return clip_indices(
            start, self.num_frames, self.sampling_rate, self.spacing, video_frames, self.end_policy
        )


class OpenVideo(Protocol):
    """`open_video` with its backend and deadline chosen."""

    def __call__(self, path: str) -> VideoReader: ...


def read_frames(video: VideoReader, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unique frames of `indices` uint8 [U, H, W, C], and the positions of `indices` in them."""
    unique, positions = np.unique(indices, return_inverse=True)
    return video.frames(unique), positions.reshape(indices.shape)


class TrainingClips(Dataset[ClipSample | Failure]):
    """Random clips of videos; indexed by (epoch, index of the record, which draw in the epoch).

    A video is drawn more than once in an epoch only where classes are balanced.

    Args:
        masking: draws the visible mask units of a clip, bool [M], for pretraining.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        sampler: ClipSampler,
        transform: Transform,
        *,
        num_repeats: int,
        seed: int,
        masking: Masking | None = None,
        open_video: OpenVideo = open_video,
    ) -> None:
        self.records, self.sampler, self.transform = records, sampler, transform
        self.num_repeats, self.seed, self.masking = num_repeats, seed, masking
        self.open_video = open_video

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int, int]) -> ClipSample | Failure:
        epoch, index, draw = key
        record = self.records[index]
        rng = np.random.default_rng([self.seed, epoch, index, draw])
        try:
            with self.open_video(record.path) as video:
                indices = self.sampler.random_clips(video, self.num_repeats, rng)
                frames, positions = read_frames(video, indices)
        except VideoError as error:
            return _failure(record, error)
        clips = np.stack([self.transform(frames[clip], rng) for clip in positions])
        visible = None
        if self.masking is not None:
            visible = np.stack([self.masking(rng) for _ in positions])
        return ClipSample(record.name, record.labels, clips, visible)


class EvaluationViews(Dataset[ViewSample | Failure]):
    """All views of videos; one pass over a file whatever their number.

    Args:
        crop_size: height and width of a view, pixels.
        short_side: of the resized frames, pixels; None for the crop's with three crops, and 256/224
            of it with one (SlowFast's 256 for crops of 224).

    Raises:
        ValueError: crops are larger than the short side.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        sampler: ClipSampler,
        *,
        crop_size: tuple[int, int],
        num_clips: int,
        num_crops: int,
        short_side: int | None = None,
        clip_rule: ClipRule = "offset",
        open_video: OpenVideo = open_video,
    ) -> None:
        self.records, self.sampler = records, sampler
        short_side = checked_short_side(short_side, crop_size, num_crops)
        self.crop_size, self.short_side = crop_size, short_side
        self.num_clips, self.num_crops, self.clip_rule = num_clips, num_crops, clip_rule
        self.open_video = open_video

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ViewSample | Failure:
        record = self.records[index]
        try:
            with self.open_video(record.path) as video:
                indices = self.sampler.uniform_clips(video, self.num_clips, self.clip_rule)
                frames, positions = read_frames(video, indices)
        except VideoError as error:
            return _failure(record, error)
        frames = resize_short_side(frames, self.short_side)
        height, width = frames.shape[1:3]
        offsets = crop_offsets(height, width, self.crop_size, self.num_crops)
        return ViewSample(index, torch.from_numpy(frames), positions, offsets, video.backend)


class TrainingKeyframes(Dataset[DetectionSample | Failure]):
    """Clips around key frames, with boxes; indexed as `TrainingClips`.

    Args:
        num_repeats: crops of each key frame's clip.
        start_sec: second of the annotations at which the files begin. None: 0.
    """

    def __init__(
        self,
        records: Sequence[KeyframeRecord],
        sampler: ClipSampler,
        transform: BoxTransform,
        *,
        num_repeats: int,
        seed: int,
        start_sec: float | None = None,
        open_video: OpenVideo = open_video,
    ) -> None:
        self.records, self.sampler, self.transform = records, sampler, transform
        self.num_repeats, self.seed, self.start_sec = num_repeats, seed, start_sec
        self.open_video = open_video

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int, int]) -> DetectionSample | Failure:
        epoch, index, draw = key
        record = self.records[index]
        rng = np.random.default_rng([self.seed, epoch, index, draw])
        try:
            with self.open_video(record.path) as video:
                indices = self.sampler.keyframe_clip(video, record.second, self.start_sec)
                frames, positions = read_frames(video, indices)
        except VideoError as error:
            return _failure(record, error)
        frames = frames[positions]
        clips = []
        for _ in range(self.num_repeats):
            clip, boxes = self.transform(frames, record.boxes, rng)
            boxes = boxes.clip(0, 1)
            inside = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
            kept = boxes[inside].astype(np.float32)
            actions = [record.actions[i] for i in inside]
            clips.append(BoxedClip(clip, kept, actions, len(boxes) - len(kept)))
        return DetectionSample(record.name, clips)


class KeyframeClips(Dataset[KeyframeSample | Failure]):
    """The centre crop of the clip around each key frame, and its boxes, for evaluation.

    Boxes are cut off at the crop, as in SlowFast: what reaches out of it is scored by what is seen.

    Args:
        size: (height, width) of a clip, pixels.
        start_sec: second of the annotations at which the files begin. None: 0.
    """

    def __init__(
        self,
        records: Sequence[KeyframeRecord],
        sampler: ClipSampler,
        *,
        size: tuple[int, int],
        start_sec: float | None = None,
        open_video: OpenVideo = open_video,
    ) -> None:
        self.records, self.sampler, self.size = records, sampler, size
        self.start_sec, self.open_video = start_sec, open_video

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> KeyframeSample | Failure:
        record = self.records[index]
        try:
            with self.open_video(record.path) as video:
                indices = self.sampler.keyframe_clip(video, record.second, self.start_sec)
                frames, positions = read_frames(video, indices)
        except VideoError as error:
            return _failure(record, error)
        clip, boxes = centre_crop(frames[positions], record.boxes, self.size)
        boxes = boxes.clip(0, 1)
        outside = int((boxes[:, 2:] <= boxes[:, :2]).any(axis=1).sum())
        return KeyframeSample(
            index,
            torch.from_numpy(clip),
            torch.from_numpy(boxes.astype(np.float32)),
            outside,
            video.backend,
        )


def checked_short_side(
    short_side: int | None,
    crop_size: tuple[int, int],
    num_crops: int,
    key: str = "views.short_side",
) -> int:
    """Of resized frames, pixels: as given, or by default what `EvaluationViews` says.

    Args:
        key: the setting that an error names.

    Raises:
        ValueError: crops are larger.
    """
    if short_side is None:
        short_side = max(crop_size)
        if num_crops == 1:
            short_side = round(short_side * 256 / 224)
    if short_side < max(crop_size):
        raise ValueError(
            f"{key} is {short_side}: needed is at least {max(crop_size)}, the size of a crop"
        )
    return short_side


def _failure(record: VideoRecord | KeyframeRecord, error: VideoError) -> Failure:
    return Failure(record.name, record.path, error.cause, str(error))
