"""Data sets of pictures with objects."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch

from hiera_video.data.batches import InstanceSample, PictureSample, collate_instances
from hiera_video.data.datasets import RecordDataset
from hiera_video.data.instances.coco import InstanceRecord, masks
from hiera_video.data.instances.transforms import Picture, ScaleJitter, fitted
from hiera_video.video.open import OpenVideo, open_video
from hiera_video.video.reader import VideoError, VideoReader


@dataclass
class TrainingPictures(RecordDataset):
    """Pictures with their objects for training: a list of `InstanceSample` for each key.

    Objects that are crowds, or whose boxes have no area, are left out.

    Args:
        num_repeats: random crops of each picture.
    """

    records: Sequence[InstanceRecord]
    transform: ScaleJitter
    _: KW_ONLY
    num_repeats: int
    seed: int
    open_video: OpenVideo = open_video
    collate = staticmethod(collate_instances)

    def sample(
        self, video: VideoReader, record: InstanceRecord, key: tuple[int, int, int]
    ) -> list[InstanceSample]:
        rng = np.random.default_rng([self.seed, *key])
        picture = picture_of(video, record)
        objects = np.flatnonzero(record.is_trainable)
        samples = []
        for _ in range(self.num_repeats):
            # One at a time: 50 masks of a photograph of 12 million pixels have 600 MB.
            bitmaps = (masks(record, [place])[0] for place in objects.tolist())
            canvas, target = self.transform(picture, bitmaps, rng)
            labels = record.labels[objects[target.kept]]
            lost = len(objects) - len(target.kept)
            samples.append(
                InstanceSample(record.name, canvas[None], target.boxes, labels, target.masks, lost)
            )
        return samples


@dataclass
class WholePictures(RecordDataset):
    """Pictures fitted to the input of a model: a `PictureSample` for each.

    Args:
        size: height and width of the input.
    """

    records: Sequence[InstanceRecord]
    _: KW_ONLY
    size: tuple[int, int]
    open_video: OpenVideo = open_video

    def sample(self, video: VideoReader, record: InstanceRecord, key: int) -> PictureSample:
        picture = picture_of(video, record)
        canvas, shape = fitted(picture, self.size)
        size = picture.shape[0], picture.shape[1]
        return PictureSample(key, torch.from_numpy(canvas[None]), shape, size, video.backend)


def picture_of(video: VideoReader, record: InstanceRecord) -> Picture:
    """The pixels of a record's file.

    Raises:
        VideoError: it has several frames, or another size than the record states.
    """
    if len(video) != 1:
        raise VideoError(record.path, "not_a_video", f"has {len(video)} frames: expected a picture")
    picture = video.frames([0])[0]
    stated = record.height, record.width
    if picture.shape[:2] != stated:
        remedy = "correct the list, or fetch the picture again"
        if picture.shape[1::-1] == stated:
            remedy = (
                "pictures are turned upright if they state an orientation (EXIF), and their list "
                "must be of upright pictures; correct it, or remove the orientation"
            )
        raise VideoError(
            record.path,
            "not_a_video",
            f"is {picture.shape[0]} x {picture.shape[1]} pixels (height x width), and image "
            f"{record.image_id} of its list {stated[0]} x {stated[1]}: {remedy}",
        )
    return picture
