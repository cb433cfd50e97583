"""Our clips and transforms in pytorchvideo's datasets, and their batches for our models.

`pytorchvideo/data/labeled_video_dataset.py` asks its sampler for seconds, takes the frames that
come up in [start, end), and hands them to its transform. `PytorchvideoSampler` tells frames as
seconds, the transforms `TrainingClip` and `EvaluationView` take those frames out of what arrives,
and `clip_batch` makes a `ClipBatch` of what a DataLoader makes of the samples.

Of pytorchvideo, `data` alone is imported: its `transforms` need a torchvision of 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from hiera_video.data.batches import ClipBatch
from hiera_video.data.datasets import Transform, checked_short_side
from hiera_video.data.transforms import resize_short_side
from hiera_video.video.clips import ClipSampler
from hiera_video.video.reader import VideoReader
from hiera_video.video.sampling import FRAME_TIME_TOLERANCE_SEC, crop_offsets

Indices = Int64[np.ndarray, "N T"]
Rate = float | Fraction


class HasIndices(Protocol):
    """The clips of a video as source frames: `hiera_video.extraction.windows.Windows`."""

    @property
    def indices(self) -> Indices: ...


class PytorchvideoSampler:
    """Our samplers as a `ClipSampler` of `pytorchvideo/data/clip_sampling.py`.

    Told the duration of a video alone, it takes frames to come up at a constant rate from 0 on. Its
    seconds begin half a frame before the first frame of a clip and end half a frame after the last,
    so that rounding adds and loses none. One sampler serves one dataset: `asked` holds, for the
    transform that is called next, positions int64 [T] of the clip in the frames that should arrive,
    their number, and the rate.

    Args:
        clips: a `ClipSampler` for one random clip a video, drawn from torch's random state; a
            `ViewWindows` or `DenseWindows` of `hiera_video.extraction.windows` for all its clips.
        fps: frames a second of all videos. None: each has its own, "fps" in its annotation.
        num_crops: 1, or 3: each clip comes three times, told apart by `aug_index`.

    Raises:
        ImportError: pytorchvideo is not installed.
    """

    def __init__(
        self,
        clips: ClipSampler | Callable[[VideoReader], HasIndices],
        fps: Rate | None = None,
        *,
        num_crops: int = 1,
    ) -> None:
        try:
            from pytorchvideo.data import clip_sampling
        except ImportError as error:
            sentence = (
                "PytorchvideoSampler needs pytorchvideo: pip install 'hiera-video[pytorchvideo]'"
            )
            raise ImportError(sentence) from error
        if num_crops not in (1, 3):
            raise ValueError(f"num_crops={num_crops} must be 1 (centre) or 3")
        clip_sampling.ClipSampler.register(type(self))  # a subclass made here could not be pickled
        self._clip_info = clip_sampling.ClipInfo
        self.clips, self.num_crops = clips, num_crops
        self.fps = None if fps is None else _frame_rate(fps)
        self.asked: tuple[np.ndarray, int, Fraction] | None = None
        self.reset()

    def reset(self) -> None:
        """The next call begins a new video."""
        self._of_video: tuple[Indices, Fraction] | None = None
        self._view = 0

    def __call__(self, last_clip_end_sec: Rate, video_sec: Rate, annotation: dict) -> Any:
        """The next clip of a video of `video_sec`: `ClipInfo`; an end of 0 begins a new video.

        Raises:
            ValueError: no frame rate, or one at which the video has no whole number of frames.
            VideoError: the video is shorter than a clip, and `end_policy` is "error".
        """
        if not last_clip_end_sec:
            self.reset()
        if self._of_video is None:
            self._of_video = self._choose(Fraction(video_sec), annotation)
        clips, fps = self._of_video
        clip_index, aug_index = divmod(self._view, self.num_crops)
        first, last = int(clips[clip_index].min()), int(clips[clip_index].max())
        self.asked = clips[clip_index] - first, last - first + 1, fps
        self._view += 1
        is_last = self._view == len(clips) * self.num_crops
        if is_last:
            self.reset()
        half = Fraction(1, 2)
        start_sec = max((first - half) / fps, Fraction(0))
        return self._clip_info(start_sec, (last + half) / fps, clip_index, aug_index, is_last)

    def _choose(self, video_sec: Fraction, annotation: dict) -> tuple[Indices, Fraction]:
        """Source frames of all clips of a video, and its frame rate."""
        fps = _frame_rate(annotation.get("fps")) if self.fps is None else self.fps
        num_frames = round(video_sec * fps)
        if num_frames < 1 or abs(video_sec - num_frames / fps) > FRAME_TIME_TOLERANCE_SEC:
            raise ValueError(
                f"fps={float(fps):g} makes {float(video_sec * fps):.2f} frames of the "
                f"{float(video_sec):g} s of the video of annotation {annotation}, not a whole "
                "number: give the video's own rate (Fraction(30000, 1001) for 29.97), and its "
                "dataset decode_audio=False, because sound may last longer"
            )
        frame_times_sec = np.arange(num_frames) / float(fps)
        told = _ToldVideo(f"video of annotation {annotation}", frame_times_sec, float(video_sec))
        video = cast(VideoReader, told)  # samplers ask for no more than it has
        if isinstance(self.clips, ClipSampler):
            return self.clips.random_clips(video, 1, _rng()), fps
        return self.clips(video).indices, fps


@dataclass(frozen=True)
class TrainingClip:
    """A dataset's transform: `video` [C, F, H, W] of its samples becomes uint8 [C, T, h, w].

    A call raises a `ValueError` where not as many frames arrived as the sampler asked for.
    """

    sampler: PytorchvideoSampler  # the dataset's
    transform: Transform  # `PretrainTransform` or `FinetuneTransform`

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        return _with_video(sample, self.transform(_clip(sample, self.sampler), _rng()))


class EvaluationView:
    """As `TrainingClip`, but a sample is a view of `EvaluationViews`, whose sizes these are."""

    def __init__(
        self,
        sampler: PytorchvideoSampler,
        crop_size: tuple[int, int],
        short_side: int | None = None,
    ) -> None:
        self.sampler, self.crop_size = sampler, crop_size
        self.short_side = checked_short_side(short_side, crop_size, sampler.num_crops, "short_side")

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        clip = resize_short_side(_clip(sample, self.sampler), self.short_side)
        (rows, columns), (height, width) = clip.shape[1:3], self.crop_size
        offsets = crop_offsets(rows, columns, self.crop_size, self.sampler.num_crops)
        top, left = offsets[sample["aug_index"]]
        return _with_video(sample, clip[:, top : top + height, left : left + width])


def clip_batch(batch: Mapping[str, Any]) -> ClipBatch:
    """Of pytorchvideo's "video" [B, C, T, H, W] with decoded pixels, "label" [B], "video_name".

    A label of -1, by which its lists say none, becomes the empty set.

    Raises:
        ValueError: video or label has another shape; pixels are scaled or normalised.
    """
    shapes = {key: tuple(torch.as_tensor(batch[key]).shape) for key in ("video", "label")}
    if (len(shapes["video"]), len(shapes["label"])) != (5, 1):
        raise ValueError(f"the batch has {shapes}; needed: video [B, C, T, H, W], label [B]")
    labels: list[tuple[int, ...]] = [(n,) if n >= 0 else () for n in batch["label"].tolist()]
    clips = _as_decoded(batch["video"]).permute(0, 2, 3, 4, 1)
    return ClipBatch(clips, labels, list(batch["video_name"]))


@dataclass(frozen=True)
class _ToldVideo:
    """What is known of a video before it is read."""

    path: str
    frame_times_sec: np.ndarray
    end_sec: float

    def __len__(self) -> int:
        return len(self.frame_times_sec)


def _frame_rate(fps: Any) -> Fraction:
    try:
        rate = Fraction(fps)
    except (TypeError, ValueError, OverflowError):
        rate = Fraction(0)
    if rate <= 0:
        raise ValueError(
            f"fps is {fps!r}: give PytorchvideoSampler, or as 'fps' each video's annotation, the "
            "frames a second, a number above 0"
        )
    return rate


def _rng() -> np.random.Generator:
    """From torch's random state, which a DataLoader seeds anew for each worker and epoch."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def _clip(sample: Mapping[str, Any], sampler: PytorchvideoSampler) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames that the sampler chose, of all that arrived."""
    name, video = sample["video_name"], sample["video"]  # [C, F, H, W]
    if sampler.asked is None:
        raise ValueError(f"{name}: the sampler of the transform is not the dataset's clip_sampler")
    positions, num_frames, fps = sampler.asked
    if video.shape[1] != num_frames:
        raise ValueError(
            f"{name}: {video.shape[1]} frames arrived where fps={float(fps):g} means {num_frames}: "
            "give the video's own rate; leave it out if it is damaged or of variable rate"
        )
    return _as_decoded(video[:, positions]).permute(1, 2, 3, 0).contiguous().numpy()


def _with_video(sample: Mapping[str, Any], clip: np.ndarray) -> dict[str, Any]:
    return {**sample, "video": torch.from_numpy(clip).permute(3, 0, 1, 2)}


def _as_decoded(video: Tensor) -> Tensor:
    """As uint8, of floats that hold whole numbers from 0 to 255."""
    frames = video.to(torch.uint8)
    if not torch.equal(frames.to(video.dtype), video):
        raise ValueError(
            f"video holds values from {video.min():g} to {video.max():g}, not all whole numbers of "
            "0 to 255: leave out what scales or normalises frames before our transforms"
        )
    return frames
