"""Scores of a list of videos or key frames, shared out over the processes of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, starmap
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from hiera_video.data.batches import Failure, KeyframeSample, PictureSample, ViewSample
from hiera_video.data.boxes.keyframes import KeyframeRecord
from hiera_video.data.datasets import EvaluationViews, KeyframeClips, RecordDataset
from hiera_video.data.instances.coco import Detections, InstanceList
from hiera_video.data.instances.datasets import WholePictures
from hiera_video.data.instances.masks import encode_masks
from hiera_video.data.loader import evaluation_loader, readable
from hiera_video.evaluation.accuracy import VideoScores
from hiera_video.evaluation.views import Scorer, score_views
from hiera_video.models.detector import ActionDetector
from hiera_video.models.segmenter import MASK_SHIFT, whole_masks
from hiera_video.runtime.distributed import Process, gather_on_main
from hiera_video.runtime.progress import Progress
from hiera_video.runtime.transfer import Fetch, transfer_for
from hiera_video.settings.training import KeyframeData
from hiera_video.settings.video import Decoding, FrameSampling
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener


def validate(
    scorer: Scorer,
    views: EvaluationViews,
    process: Process,
    decoding: Decoding,
    *,
    progress: bool = False,
) -> tuple[list[VideoScores], list[Failure]]:
    """The finite scores of videos, and the videos without any; both in the order of the list.

    Every process takes its share; the main process gets the whole, the others what they did.

    Args:
        decoding: how many processes decode, and how long they may take.
        progress: show how far it has come.
    """

    def scored(samples: Iterator[ViewSample]) -> Iterator[tuple[ViewSample, np.ndarray]]:
        return score_views(scorer, samples, views.crop_size)

    def kept(video: ViewSample, scores: np.ndarray) -> VideoScores:
        return VideoScores(video.index, scores, video.backend)

    return _shared_out(scorer, scored, kept, views, decoding, process, "video", progress)


@dataclass(frozen=True)
class KeyframeScores:
    """What a detector says of the boxes of one key frame."""

    index: int  # of the record
    scores: np.ndarray  # float32 [n, L], probabilities
    num_outside: int  # boxes outside of the clip's picture
    backend: str  # the library that decoded


def keyframe_clips_of(
    records: Sequence[KeyframeRecord], model: ActionDetector, clips: FrameSampling, data: Decoding
) -> KeyframeClips:
    """The clips around key frames for a model; `data` may state where annotations begin."""
    start_sec = data.start_sec if isinstance(data, KeyframeData) else None
    return KeyframeClips(
        records,
        ClipSampler.of(clips, model.encoder.input_size[0]),
        size=model.encoder.input_size[1:],
        start_sec=start_sec,
        open_video=opener(data),
    )


def score_keyframes(
    scorer: Scorer,
    keyframes: KeyframeClips,
    process: Process,
    decoding: Decoding,
    *,
    progress: bool = False,
) -> tuple[list[KeyframeScores], list[Failure]]:
    """`validate` for a detector: the scores of all boxes, and the key frames without any."""
    transfer = transfer_for(scorer.device)

    def launched(samples: Iterator[KeyframeSample]) -> Iterator[tuple[list[KeyframeSample], Fetch]]:
        for batch in iter(lambda: list(islice(samples, scorer.batch_size)), []):
            counts = torch.tensor([len(sample.boxes) for sample in batch])
            clips = torch.stack([sample.clip for sample in batch])
            boxes = torch.cat([sample.boxes for sample in batch])
            clip_of_box = torch.repeat_interleave(torch.arange(len(batch)), counts)
            yield batch, transfer.launch(scorer.probabilities, clips, boxes, clip_of_box)

    def scored(samples: Iterator[KeyframeSample]) -> Iterator[tuple[KeyframeSample, np.ndarray]]:
        for batch, scores in transfer.results(launched(samples)):
            of_samples = scores.split([len(sample.boxes) for sample in batch])
            yield from zip(batch, (of_boxes.numpy() for of_boxes in of_samples), strict=True)

    def kept(keyframe: KeyframeSample, scores: np.ndarray) -> KeyframeScores:
        return KeyframeScores(keyframe.index, scores, keyframe.num_outside, keyframe.backend)

    return _shared_out(scorer, scored, kept, keyframes, decoding, process, "key frame", progress)


@dataclass(frozen=True)
class PictureObjects:
    """What a segmenter finds in one picture, in its pixels; the highest score comes first."""

    index: int  # of the record
    boxes: np.ndarray  # float32 [n, 4], x1 y1 x2 y2
    labels: np.ndarray  # int64 [n], from 1
    scores: np.ndarray  # float32 [n]
    masks: Sequence[Any]  # n in COCO's run lengths
    backend: str  # the library that decoded


def find_objects(
    scorer: Scorer,
    pictures: WholePictures,
    process: Process,
    decoding: Decoding,
    *,
    progress: bool = False,
) -> tuple[list[PictureObjects], list[Failure]]:
    """`validate` for a segmenter: the objects of all pictures, and the pictures without any."""

    def scored(
        samples: Iterator[PictureSample],
    ) -> Iterator[tuple[PictureObjects, np.ndarray]]:
        for batch in iter(lambda: list(islice(samples, scorer.batch_size)), []):
            clips = torch.stack([sample.clip for sample in batch])
            found = scorer.outputs(clips)
            for sample, objects in zip(batch, found, strict=True):
                finite = np.where(objects["is_finite"].cpu().numpy(), 0.0, np.nan)
                yield objects_of(sample, objects), finite

    def kept(objects: PictureObjects, _: np.ndarray) -> PictureObjects:
        return objects

    return _shared_out(scorer, scored, kept, pictures, decoding, process, "picture", progress)


def objects_of(sample: PictureSample, found: Mapping[str, Tensor]) -> PictureObjects:
    """The outputs of a segmenter for a sample, in the pixels of its picture."""
    objects = on_picture(found, sample.shape, sample.size)
    parts = whole_masks(objects["masks"].float(), objects["mask_boxes"], sample.size)
    return PictureObjects(
        sample.index,
        objects["boxes"].cpu().numpy(),
        objects["labels"].cpu().numpy(),
        objects["scores"].float().cpu().numpy(),
        [mask for part in parts for mask in encode_masks(part.cpu().numpy())],
        sample.backend,
    )


def on_picture(
    found: Mapping[str, Tensor], shape: tuple[int, int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """The objects on a canvas with boxes in pixels of the picture, without those beside it.

    `mask_boxes` are the places of the masks, which may leave the picture.

    Args:
        shape: height and width of the picture on the canvas.
        size: its own height and width.
    """
    corners = found["boxes"].float()
    scale = corners.new_tensor([size[1] / shape[1], size[0] / shape[0]] * 2)
    boxes = clip_boxes_to_image(corners * scale, size)
    inside = remove_small_boxes(boxes, min_size=1e-3)
    others = {key: found[key][inside] for key in ("labels", "scores", "masks")}
    places = (corners[inside] + MASK_SHIFT) * scale
    return {"boxes": boxes[inside], "mask_boxes": places, **others}


def detections_of(
    truth: InstanceList, found: Sequence[PictureObjects], source: str = "detections"
) -> Detections:
    """The objects of pictures as COCO has them, with the ids of `truth`.

    Args:
        source: names them in reports.
    """
    image_ids = np.array([truth.records[picture.index].image_id for picture in found], np.int64)
    category_ids = np.array([category.id for category in truth.categories], np.int64)
    corners = np.concatenate([np.zeros((0, 4)), *(picture.boxes for picture in found)])
    labels = np.concatenate([np.zeros(0, np.int64), *(picture.labels for picture in found)])
    return Detections(
        source=source,
        image_id=np.repeat(image_ids, [len(picture.labels) for picture in found]),
        category_id=category_ids[labels - 1],
        score=np.concatenate([np.zeros(0), *(picture.scores for picture in found)]),
        boxes_xywh=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        segmentations=[mask for picture in found for mask in picture.masks],
    )


def _shared_out(
    scorer: Scorer,
    scored: Callable[[Iterator[Any]], Iterator[tuple[Any, np.ndarray]]],
    kept: Callable[[Any, np.ndarray], Any],
    dataset: RecordDataset,
    decoding: Decoding,
    process: Process,
    unit: str,
    progress: bool,
) -> tuple[list[Any], list[Failure]]:
    """What `validate` returns.

    Args:
        scored: from the samples that this process read to pairs of samples and scores.
        kept: what to keep of such a pair.
    """
    failures: list[Failure] = []
    loader = evaluation_loader(dataset, decoding, process)
    bar = Progress(loader, unit=unit, enabled=progress)
    finite = scorer.finite(scored(readable(bar, failures)), dataset.records, failures)
    own = list(starmap(kept, finite)), failures
    gathered = gather_on_main(own) or [own]
    place = {record.name: i for i, record in enumerate[Any](dataset.records)}
    return (
        sorted((s for part, _ in gathered for s in part), key=lambda s: s.index),
        sorted((f for _, part in gathered for f in part), key=lambda f: place[f.name]),
    )
