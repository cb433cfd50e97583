"""The samplers and transforms of this package in pytorchvideo's datasets.

`LabeledVideoDataset` of `pytorchvideo/data/labeled_video_dataset.py` asks its sampler for a time
interval, reads the frames that begin in it, and passes them to its transform. `PytorchvideoSampler`
converts the frames of a clip to a time interval, the transforms `TrainingClip` and `EvaluationView`
select these frames, and `clip_batch` converts a batch of the DataLoader to a `ClipBatch`.

Only `pytorchvideo.data` is imported: `pytorchvideo.transforms` needs a torchvision of 2023.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from hiera_video.data.batches import ClipBatch
from hiera_video.data.datasets import Transform
from hiera_video.data.transforms import Crops
from hiera_video.errors import MissingLibrary
from hiera_video.video.clips import ClipSampler
from hiera_video.video.reader import VideoReader
from hiera_video.video.sampling import FRAME_TIME_TOLERANCE_SEC

Indices = Int64[np.ndarray, "N T"]
Rate = float | Fraction


class PytorchvideoSampler:
    """A sampler of this package as a `ClipSampler` of `pytorchvideo/data/clip_sampling.py`.

    It only knows the duration of a video, so it assumes a constant frame rate, from 0 on. Its
    intervals begin half a frame before the first frame of a clip and end half a frame after the
    last, so that rounding neither adds nor loses frames. Each dataset needs its own sampler:
    `requested` holds, for the next call of the transform, the positions int64 [T] of the clip in
    the frames of the interval, the number of these frames, and the frame rate.

    Args:
        clips: a `ClipSampler` for one random clip per video, drawn from torch's random state; or a
            `ViewWindows` or `DenseWindows` of `hiera_video.extraction.windows` for all clips.
        fps: frames per second of all videos. None: "fps" in the annotation of each video.
        num_crops: 1, or 3: each clip is returned three times, with `aug_index` 0 to 2.

    Raises:
        MissingLibrary: pytorchvideo is not installed.
    """

    def __init__(
        self,
        clips: ClipSampler | Callable[[VideoReader], Any],
        fps: Rate | None = None,
        *,
        num_crops: int = 1,
    ) -> None:
        try:
            from pytorchvideo.data import clip_sampling
        except ImportError as error:
            raise MissingLibrary(
                "PytorchvideoSampler needs pytorchvideo: pip install 'hiera-video[pytorchvideo]'"
            ) from error
        if num_crops not in (1, 3):
            raise ValueError(f"num_crops={num_crops} must be 1 (centre) or 3")
        clip_sampling.ClipSampler.register(type(self))  # a local subclass could not be pickled
        self._clip_info = clip_sampling.ClipInfo
        self.clips, self.num_crops = clips, num_crops
        self.fps = None if fps is None else _frame_rate(fps)
        self.requested: tuple[np.ndarray, int, Fraction] | None = None
        self.reset()

    def reset(self) -> None:
        """Begins a new video with the next call."""
        self._chosen: tuple[Indices, Fraction] | None = None  # clips of the video, and its rate
        self._view = 0

    def __call__(self, last_clip_end_sec: Rate, video_sec: Rate, annotation: dict) -> Any:
        """The `ClipInfo` of the next clip of a video of `video_sec` seconds.

        Args:
            last_clip_end_sec: 0 begins a new video.

        Raises:
            ValueError: no frame rate, or one at which the video has no whole number of frames.
            VideoError: the video is shorter than a clip, and `end_policy` is "error".
        """
        if not last_clip_end_sec:
            self.reset()
        if self._chosen is None:
            self._chosen = self._choose(Fraction(video_sec), annotation)
        clips, fps = self._chosen
        clip_index, aug_index = divmod(self._view, self.num_crops)
        first, last = int(clips[clip_index].min()), int(clips[clip_index].max())
        self.requested = clips[clip_index] - first, last - first + 1, fps
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
                "number: set the video's own rate (Fraction(30000, 1001) for 29.97), and "
                "decode_audio=False in the dataset, because sound may last longer"
            )
        frame_times_sec = np.arange(num_frames) / float(fps)
        timeline = _Timeline(f"video of annotation {annotation}", frame_times_sec, float(video_sec))
        video = cast(VideoReader, timeline)  # samplers use nothing else of a reader
        if isinstance(self.clips, ClipSampler):
            return self.clips.random_clips(video, 1, _rng()), fps
        return self.clips(video).indices, fps


@dataclass(frozen=True)
class TrainingClip:
    """The transform of a dataset: turns `video` [C, F, H, W] of samples into uint8 [C, T, h, w].

    A call raises ValueError if the number of frames is not the one that the sampler requested.
    """

    sampler: PytorchvideoSampler  # the dataset's
    transform: Transform  # `PretrainTransform` or `FinetuneTransform`

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        return _with_video(sample, self.transform(_clip(sample, self.sampler), _rng()))


class EvaluationView:
    """A transform as `TrainingClip`, whose samples are views as in `EvaluationViews`."""

    def __init__(
        self,
        sampler: PytorchvideoSampler,
        crop_size: tuple[int, int],
        short_side: int | None = None,
    ) -> None:
        self.sampler = sampler
        self.crops = Crops(crop_size, sampler.num_crops, short_side, "short_side")

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        clip, offsets = self.crops.resized(_clip(sample, self.sampler))
        (top, left), (height, width) = offsets[sample["aug_index"]], self.crops.size
        return _with_video(sample, clip[:, top : top + height, left : left + width])


def clip_batch(batch: Mapping[str, Any]) -> ClipBatch:
    """Converts a batch of pytorchvideo, with decoded pixels, to a `ClipBatch`.

    Args:
        batch: "video" [B, C, T, H, W], "label" [B], where -1 means no label, and "video_name".

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
class _Timeline:
    """The frame times of a video, in the form of a `VideoReader`."""

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
            f"fps is {fps!r}: set fps of PytorchvideoSampler, or 'fps' in each video's annotation, "
            "to the frames per second, a number above 0"
        )
    return rate


def _rng() -> np.random.Generator:
    """A generator seeded from torch's random state, which differs between workers and epochs."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def _clip(sample: Mapping[str, Any], sampler: PytorchvideoSampler) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames of the sample that the sampler requested."""
    name, video = sample["video_name"], sample["video"]  # [C, F, H, W]
    if sampler.requested is None:
        raise ValueError(f"{name}: the sampler of the transform is not the dataset's clip_sampler")
    positions, num_frames, fps = sampler.requested
    if video.shape[1] != num_frames:
        raise ValueError(
            f"{name}: {video.shape[1]} frames were read where fps={float(fps):g} makes "
            f"{num_frames}: set the video's own rate; leave the video out if it is damaged or of "
            "variable rate"
        )
    return _as_decoded(video[:, positions]).permute(1, 2, 3, 0).contiguous().numpy()


def _with_video(sample: Mapping[str, Any], clip: np.ndarray) -> dict[str, Any]:
    return {**sample, "video": torch.from_numpy(clip).permute(3, 0, 1, 2)}


def _as_decoded(video: Tensor) -> Tensor:
    """Converts floats that hold whole numbers from 0 to 255 to uint8."""
    frames = video.to(torch.uint8)
    if not torch.equal(frames.to(video.dtype), video):
        raise ValueError(
            f"video has values from {video.min():g} to {video.max():g}, not only whole numbers of "
            "0 to 255: remove transforms that scale or normalise frames before this one"
        )
    return frames
