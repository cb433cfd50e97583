"""Records to samples: which frames, their pixels (each decoded once), the transform.

A sample is a pure function of (seed, epoch, index). A video that cannot be read becomes a
`Failure`, never another video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from hiera_video.data.batches import (
    BoxedClip,
    ClipSample,
    DetectionSample,
    Failure,
    KeyframeSample,
    ViewSample,
)
from hiera_video.data.boxes.keyframes import KeyframeRecord
from hiera_video.data.transforms import Boxes, Frames, centre_crop, resize_short_side
from hiera_video.data.videos.records import VideoRecord
from hiera_video.video.clips import ClipSampler, read_frames
from hiera_video.video.open import OpenVideo, open_video
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import (
    ClipRule,
    crop_offsets,
)

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
BoxTransform = Callable[[Frames, Boxes, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Masking = Callable[[np.random.Generator], np.ndarray]


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
