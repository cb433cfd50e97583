"""Samples and batches that decoding processes pass to the process of the model.

Pixels are uint8 `[..., T, H, W, C]` until they are on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hiera_video.errors import OTHER_WEIGHTS
from hiera_video.runtime.workers import Death
from hiera_video.settings.training import Arithmetic

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Failure:
    """A video that could not be read, or whose results are not finite numbers."""

    name: str  # as in its list
    path: str
    cause: str  # one of the causes of `VideoError`, or "crashed", "hung", "error", "not_finite"
    message: str

    @classmethod
    def of(cls, record: Any, cause: str, sentence: str) -> Failure:
        """The failure of a record (with `name` and `path`), whose message names the path."""
        return cls(record.name, record.path, cause, f"{record.path}: {sentence}")

    @classmethod
    def not_finite(
        cls, record: Any, what: str, precision: Arithmetic, dtype: torch.dtype = torch.float32
    ) -> Failure:
        """The failure of a record whose results are not finite.

        Args:
            what: the results and a verb, "its scores are".
            precision: the arithmetic of the model.
            dtype: in which the results are kept.
        """
        is_half = dtype == torch.float16
        changes = ["dtype=float32 (float16 ends at 65504)"] * is_half
        changes += ["precision=fp32"] * (precision in ("bf16", "fp16"))
        changes.append(OTHER_WEIGHTS)
        form = "float16" if is_half else precision
        sentence = f"{what} not finite in {form}; use {' or '.join(changes)}"
        return cls.of(record, "not_finite", sentence)

    @classmethod
    def of_death(cls, record: Any, death: Death) -> Failure:
        """The failure of a record whose process died or hung."""
        return cls.of(record, death.cause, death.sentence)


@dataclass(frozen=True)
class ClipSample:
    """The clips of one training video."""

    name: str
    labels: tuple[int, ...]
    clips: np.ndarray  # uint8 [num_repeats, T, H, W, C]
    visible: np.ndarray | None = None  # bool [num_repeats, M] of mask units, in pretraining


@dataclass
class ClipBatch:
    """The clips of several training videos, and the videos that could not be read."""

    clips: Tensor  # uint8 [B, T, H, W, C]; B is the number of clips
    labels: list[tuple[int, ...]]  # B label sets
    names: list[str]  # B video names; empty if no video of the batch could be read
    failures: list[Failure] = field(default_factory=list)
    visible: Tensor | None = None  # bool [B, M] of mask units, in pretraining; stays on the host

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_targets(self) -> int:
        """Number of clips, over which the loss is averaged."""
        return len(self)

    num_dropped = 0  # targets outside of their crop


@dataclass(frozen=True)
class BoxedClip:
    """One training clip around a key frame, and the boxes inside its crop."""

    name: str  # of the key frame
    clip: np.ndarray  # uint8 [T, H, W, C]
    boxes: np.ndarray  # float32 [n, 4], x1 y1 x2 y2 as fractions of the clip's frames
    actions: list[tuple[int, ...]]  # n sets of action ids
    num_dropped: int  # boxes outside of the crop


@dataclass
class DetectionBatch:
    """The clips of several key frames, their boxes, and the key frames that could not be read."""

    clips: Tensor  # uint8 [B, T, H, W, C]; B is the number of clips
    boxes: Tensor  # float32 [R, 4], x1 y1 x2 y2 as fractions of the clip's frames; R may be 0
    clip_of_box: Tensor  # int64 [R]
    actions: list[tuple[int, ...]]  # R sets of action ids, from 1; () if a box has none
    names: list[str]  # B key frames; empty if no key frame of the batch could be read
    failures: list[Failure] = field(default_factory=list)
    num_dropped: int = 0  # boxes outside of their crop

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_targets(self) -> int:
        """Number of boxes, over which the loss is averaged."""
        return len(self.boxes)


@dataclass(frozen=True)
class InstanceSample:
    """One training picture and its objects, placed on the input of the model."""

    name: str
    clip: np.ndarray  # uint8 [1, H, W, C]
    boxes: np.ndarray  # float32 [n, 4], x1 y1 x2 y2, pixels of `clip`
    labels: np.ndarray  # int64 [n], from 1
    masks: np.ndarray  # uint8 [n, H, W]
    num_dropped: int  # objects of which the crop left nothing


@dataclass
class InstanceBatch:
    """Several training pictures, their objects, and the pictures that could not be read."""

    clips: Tensor  # uint8 [B, 1, H, W, C]
    targets: list[dict[str, Tensor]]  # B times `boxes`, `labels` and `masks`, as in the sample
    names: list[str]  # B pictures; empty if no picture of the batch could be read
    failures: list[Failure] = field(default_factory=list)
    num_dropped: int = 0  # objects of which the crop left nothing

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_targets(self) -> int:
        """Number of pictures, over which the loss is averaged."""
        return len(self)


@dataclass(frozen=True)
class PictureSample:
    """A picture whose objects are looked for, placed on the input of the model."""

    index: int  # of the record
    clip: Tensor  # uint8 [1, H, W, C]
    shape: tuple[int, int]  # height and width of the picture on it
    size: tuple[int, int]  # height and width of the picture itself
    backend: str  # the library that decoded


@dataclass(frozen=True)
class KeyframeSample:
    """The clip around a key frame whose boxes are scored."""

    index: int  # of the record
    clip: Tensor  # uint8 [T, H, W, C]
    boxes: Tensor  # float32 [n, 4], the record's boxes, clipped to the crop
    num_outside: int  # boxes outside of the crop
    backend: str  # the library that decoded


@dataclass(frozen=True)
class ViewSample:
    """All views of one video, as its unique frames and the positions of views in them."""

    index: int  # of the record
    frames: Tensor  # uint8 [U, H, W, C], each needed frame once, short side resized
    clip_positions: np.ndarray  # int64 [num_clips, T], positions in `frames`
    crop_offsets: list[tuple[int, int]]  # num_crops of (top, left), pixels
    backend: str  # the library that decoded

    @property
    def num_views(self) -> int:
        return len(self.clip_positions) * len(self.crop_offsets)

    def view(self, frames: Tensor, i: int, size: tuple[int, int]) -> Tensor:
        """View `i`, ordered by clip and then by crop: uint8 [T, h, w, C].

        Args:
            frames: the frames of the sample, possibly moved to another device.
            size: height and width of a crop, pixels.
        """
        clip, place = divmod(i, len(self.crop_offsets))
        top, left = self.crop_offsets[place]
        positions = torch.from_numpy(self.clip_positions[clip])
        positions = positions.to(frames.device, non_blocking=True)
        crop = frames[:, top : top + size[0], left : left + size[1]]
        return crop.index_select(0, positions)  # 6 times faster than one advanced index


def collate_clips(
    samples: Sequence[ClipSample | Failure], clip_shape: tuple[int, int, int, int]
) -> ClipBatch:
    """Stacks the clips of the videos that were read.

    If there are none, the batch holds one black clip of `clip_shape` [T, H, W, C] and has length 0,
    because every process of a run must call the model equally often.
    """
    read = [s for s in samples if isinstance(s, ClipSample)]
    failures = [s for s in samples if isinstance(s, Failure)]
    if not read:
        return ClipBatch(torch.zeros(1, *clip_shape, dtype=torch.uint8), [()], [], failures)
    clips = torch.from_numpy(np.concatenate([s.clips for s in read]))
    repeated = [s for s in read for _ in range(len(s.clips))]
    labels, names = [s.labels for s in repeated], [s.name for s in repeated]
    masks = [s.visible for s in read if s.visible is not None]
    visible = torch.from_numpy(np.concatenate(masks)) if masks else None
    return ClipBatch(clips, labels, names, failures, visible)


def collate_boxed_clips(
    samples: Sequence[list[BoxedClip] | Failure], clip_shape: tuple[int, int, int, int]
) -> DetectionBatch:
    """Stacks clips as `collate_clips`, and concatenates the boxes of all clips."""
    failures = [s for s in samples if isinstance(s, Failure)]
    clips = [clip for s in samples if not isinstance(s, Failure) for clip in s]
    if not clips:
        black, none = torch.zeros(1, *clip_shape, dtype=torch.uint8), torch.zeros(0, 4)
        return DetectionBatch(black, none, torch.zeros(0, dtype=torch.int64), [], [], failures)
    counts = torch.tensor([len(clip.boxes) for clip in clips])
    return DetectionBatch(
        clips=torch.from_numpy(np.stack([clip.clip for clip in clips])),
        boxes=torch.from_numpy(np.concatenate([clip.boxes for clip in clips])),
        clip_of_box=torch.repeat_interleave(torch.arange(len(clips)), counts),
        actions=[actions for clip in clips for actions in clip.actions],
        names=[clip.name for clip in clips],
        failures=failures,
        num_dropped=sum(clip.num_dropped for clip in clips),
    )


def collate_instances(
    samples: Sequence[list[InstanceSample] | Failure], clip_shape: tuple[int, int, int, int]
) -> InstanceBatch:
    """Stacks pictures as `collate_clips`, each with its objects."""
    failures = [s for s in samples if isinstance(s, Failure)]
    pictures = [picture for s in samples if not isinstance(s, Failure) for picture in s]
    if not pictures:
        none = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, *clip_shape[1:3], dtype=torch.uint8),
        }
        return InstanceBatch(torch.zeros(1, *clip_shape, dtype=torch.uint8), [none], [], failures)
    keys = ("boxes", "labels", "masks")
    return InstanceBatch(
        clips=torch.from_numpy(np.stack([picture.clip for picture in pictures])),
        targets=[{k: torch.from_numpy(getattr(p, k)) for k in keys} for p in pictures],
        names=[picture.name for picture in pictures],
        failures=failures,
        num_dropped=sum(picture.num_dropped for picture in pictures),
    )
