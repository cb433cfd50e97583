"""Data sets that read the samples of records: they choose, decode and transform frames.

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
from hiera_video.errors import ConfigError
from hiera_video.settings.video import Views
from hiera_video.video.clips import ClipSampler, read_frames
from hiera_video.video.open import OpenVideo, open_video
from hiera_video.video.reader import VideoError, VideoReader
from hiera_video.video.sampling import crop_offsets

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
BoxTransform = Callable[[Frames, Boxes, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Masking = Callable[[np.random.Generator], np.ndarray]


class TrainingClips(Dataset[ClipSample | Failure]):
    """Random clips of videos, indexed by (epoch, index of the record, number of the draw).

    The number of the draw is 0 unless balanced classes repeat a video in an epoch.

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
        read = read_clips(
            record, self.open_video, lambda v: self.sampler.random_clips(v, self.num_repeats, rng)
        )
        if isinstance(read, Failure):
            return read
        frames, positions, _ = read
        clips = np.stack([self.transform(frames[clip], rng) for clip in positions])
        visible = None
        if self.masking is not None:
            visible = np.stack([self.masking(rng) for _ in positions])
        return ClipSample(record.name, record.labels, clips, visible)


class EvaluationViews(Dataset[ViewSample | Failure]):
    """All views of videos for evaluation; each video is decoded in one pass.

    Args:
        crop_size: height and width of a view, pixels.
        views: numbers of clips and crops, and the size of the resized frames.

    Raises:
        ConfigError: crops are larger than the short side.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        sampler: ClipSampler,
        *,
        crop_size: tuple[int, int],
        views: Views,
        open_video: OpenVideo = open_video,
    ) -> None:
        self.records, self.sampler, self.views = records, sampler, views
        self.crop_size = crop_size
        self.short_side = checked_short_side(views.short_side, crop_size, views.num_crops)
        self.open_video = open_video

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ViewSample | Failure:
        record = self.records[index]
        views = self.views
        read = read_clips(
            record,
            self.open_video,
            lambda v: self.sampler.uniform_clips(v, views.num_clips, views.clip_rule),
        )
        if isinstance(read, Failure):
            return read
        frames, positions, backend = read
        frames = resize_short_side(frames, self.short_side)
        height, width = frames.shape[1:3]
        offsets = crop_offsets(height, width, self.crop_size, views.num_crops)
        return ViewSample(index, torch.from_numpy(frames), positions, offsets, backend)


class TrainingKeyframes(Dataset[DetectionSample | Failure]):
    """Clips around key frames, with boxes, for training; indexed as `TrainingClips`.

    Args:
        num_repeats: random crops of each key frame's clip.
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
        read = read_clips(
            record,
            self.open_video,
            lambda v: self.sampler.keyframe_clip(v, record.second, self.start_sec),
        )
        if isinstance(read, Failure):
            return read
        frames = read[0][read[1]]
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

    Boxes are clipped to the crop, as in SlowFast.

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
        read = read_clips(
            record,
            self.open_video,
            lambda v: self.sampler.keyframe_clip(v, record.second, self.start_sec),
        )
        if isinstance(read, Failure):
            return read
        frames, positions, backend = read
        clip, boxes = centre_crop(frames[positions], record.boxes, self.size)
        boxes = boxes.clip(0, 1)
        outside = int((boxes[:, 2:] <= boxes[:, :2]).any(axis=1).sum())
        return KeyframeSample(
            index,
            torch.from_numpy(clip),
            torch.from_numpy(boxes.astype(np.float32)),
            outside,
            backend,
        )


def checked_short_side(
    short_side: int | None,
    crop_size: tuple[int, int],
    num_crops: int,
    key: str = "views.short_side",
) -> int:
    """The short side to which frames are resized, pixels.

    Args:
        short_side: the setting. None: the larger side of the crop with three crops, and 256/224 of
            it with one (256 for crops of 224, as in SlowFast).
        key: name of the setting, for errors.

    Raises:
        ConfigError: the short side is smaller than a side of the crop.
    """
    if short_side is None:
        short_side = max(crop_size)
        if num_crops == 1:
            short_side = round(short_side * 256 / 224)
    if short_side < max(crop_size):
        raise ConfigError(
            f"{key} is {short_side}: needed is at least {max(crop_size)}, the size of a crop"
        )
    return short_side


def read_clips(
    record: VideoRecord | KeyframeRecord,
    open_video: OpenVideo,
    choose: Callable[[VideoReader], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, str] | Failure:
    """Reads the frames of a video that `choose` returns, each decoded once.

    Args:
        choose: maps the open video to source frame indices of any shape.

    Returns:
        The unique frames, uint8 [U, H, W, C], positions in them of the shape of the indices, and
        the backend; or a `Failure` if the video cannot be read.
    """
    try:
        with open_video(record.path) as video:
            frames, positions = read_frames(video, choose(video))
            return frames, positions, video.backend
    except VideoError as error:
        return Failure(record.name, record.path, error.cause, str(error))
