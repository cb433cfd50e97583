"""Data sets that read the samples of records: they choose, decode and transform frames.

A sample is a pure function of (seed, epoch, index). A video that cannot be read becomes a
`Failure`, never another video.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from hiera_video.data.batches import (
    BoxedClip,
    ClipSample,
    Failure,
    KeyframeSample,
    ViewSample,
    collate_boxed_clips,
    collate_clips,
)
from hiera_video.data.boxes.keyframes import KeyframeRecord
from hiera_video.data.transforms import Boxes, Crops, Frames, centre_crop, shrink_to
from hiera_video.data.videos.records import VideoRecord
from hiera_video.settings.video import Views
from hiera_video.video.clips import ClipSampler, read_frames
from hiera_video.video.open import OpenVideo, open_video
from hiera_video.video.reader import VideoError, VideoReader

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
BoxTransform = Callable[[Frames, Boxes, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Masking = Callable[[np.random.Generator], np.ndarray]


class RecordDataset(ABC, Dataset[Any]):
    """Samples of records, indexed by the key of a sample.

    A key is the index of a record; in training it is (epoch, index of the record, number of the
    draw), where the number is 0 unless balanced classes repeat a record in an epoch. Decoding
    processes call `read` and have no `records`.
    """

    records: Sequence[Any]
    open_video: OpenVideo
    collate: ClassVar[Callable[..., Any]]  # of training data sets: from samples to a batch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Any) -> Any:
        return self.read(self.record(key), key)

    def record(self, key: Any) -> Any:
        """The record of a sample."""
        return self.records[key if isinstance(key, int) else key[1]]

    def read(self, record: Any, key: Any) -> Any:
        """The sample of a record, or a `Failure` if its video cannot be read."""
        try:
            with record.open(self.open_video) as video:
                return self.sample(video, record, key)
        except VideoError as error:
            return Failure(record.name, record.path, error.cause, str(error))

    @abstractmethod
    def sample(self, video: VideoReader, record: Any, key: Any) -> Any:
        """The sample of an open video."""


@dataclass
class TrainingClips(RecordDataset):
    """Random clips of videos: a `ClipSample` for each key.

    Args:
        short_side: of the transform, which shrinks larger frames of clips to it. Given here, too, a
            frame is shrunk once for all clips of a video.
        masking: draws the visible mask units of a clip, bool [M], for pretraining.
    """

    records: Sequence[VideoRecord]
    sampler: ClipSampler
    transform: Transform
    _: KW_ONLY
    num_repeats: int  # clips of each video
    seed: int
    short_side: int | None = None
    masking: Masking | None = None
    open_video: OpenVideo = open_video
    collate = staticmethod(collate_clips)

    def sample(
        self, video: VideoReader, record: VideoRecord, key: tuple[int, int, int]
    ) -> ClipSample:
        rng = np.random.default_rng([self.seed, *key])
        indices = self.sampler.random_clips(video, self.num_repeats, rng)
        frames, positions = read_frames(video, indices)
        if self.short_side is not None and self.sampler.num_frames > 1:
            frames = shrink_to(frames, self.short_side)
        clips = np.stack([self.transform(frames[clip], rng) for clip in positions])
        visible = None
        if self.masking is not None:
            visible = np.stack([self.masking(rng) for _ in positions])
        return ClipSample(record.name, record.labels, clips, visible)


@dataclass
class EvaluationViews(RecordDataset):
    """All views of videos for evaluation: a `ViewSample` for each, decoded in one pass.

    Args:
        crop_size: height and width of a view, pixels.
        views: numbers of clips and crops, and the size of the resized frames.

    Raises:
        ConfigError: crops are larger than the short side.
    """

    records: Sequence[VideoRecord]
    sampler: ClipSampler
    _: KW_ONLY
    crop_size: tuple[int, int]
    views: Views
    open_video: OpenVideo = open_video

    def __post_init__(self) -> None:
        self.crops = Crops(self.crop_size, self.views.num_crops, self.views.short_side)

    def sample(self, video: VideoReader, record: VideoRecord, key: int) -> ViewSample:
        views = self.views
        indices = self.sampler.uniform_clips(video, views.num_clips, views.clip_rule)
        frames, positions = read_frames(video, indices)
        frames, offsets = self.crops.resized(frames)
        return ViewSample(key, torch.from_numpy(frames), positions, offsets, video.backend)


@dataclass
class TrainingKeyframes(RecordDataset):
    """Clips around key frames, with boxes, for training: a list of `BoxedClip` for each key.

    Args:
        num_repeats: random crops of each key frame's clip.
        start_sec: second of the annotations at which the files begin. None: 0.
    """

    records: Sequence[KeyframeRecord]
    sampler: ClipSampler
    transform: BoxTransform
    _: KW_ONLY
    num_repeats: int
    seed: int
    start_sec: float | None = None
    open_video: OpenVideo = open_video
    collate = staticmethod(collate_boxed_clips)

    def sample(
        self, video: VideoReader, record: KeyframeRecord, key: tuple[int, int, int]
    ) -> list[BoxedClip]:
        rng = np.random.default_rng([self.seed, *key])
        frames = video.frames(self.sampler.keyframe_clip(video, record.second, self.start_sec))
        clips = []
        for _ in range(self.num_repeats):
            clip, boxes = self.transform(frames, record.boxes, rng)
            boxes = boxes.clip(0, 1)
            inside = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
            kept = boxes[inside].astype(np.float32)
            actions = [record.actions[i] for i in inside]
            clips.append(BoxedClip(record.name, clip, kept, actions, len(boxes) - len(kept)))
        return clips


@dataclass
class KeyframeClips(RecordDataset):
    """Centre crops of the clips around key frames, with their boxes: a `KeyframeSample` for each.

    Boxes are clipped to the crop, as in SlowFast.

    Args:
        size: (height, width) of a clip, pixels.
        start_sec: second of the annotations at which the files begin. None: 0.
    """

    records: Sequence[KeyframeRecord]
    sampler: ClipSampler
    _: KW_ONLY
    size: tuple[int, int]
    start_sec: float | None = None
    open_video: OpenVideo = open_video

    def sample(self, video: VideoReader, record: KeyframeRecord, key: int) -> KeyframeSample:
        frames = video.frames(self.sampler.keyframe_clip(video, record.second, self.start_sec))
        clip, boxes = centre_crop(frames, record.boxes, self.size)
        boxes = boxes.clip(0, 1)
        outside = int((boxes[:, 2:] <= boxes[:, :2]).any(axis=1).sum())
        return KeyframeSample(
            key,
            torch.from_numpy(clip),
            torch.from_numpy(boxes.astype(np.float32)),
            outside,
            video.backend,
        )
