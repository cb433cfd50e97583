"""AP of detected boxes and masks as in COCO: pycocotools' figures, computed by faster-coco-eval."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from hiera_video.data.instances.coco import Detections, InstanceList
from hiera_video.data.instances.masks import mask_library, plain
from hiera_video.errors import AnnotationError, counted
from hiera_video.evaluation.ava_report import format_percent
from hiera_video.files import finite_or_none

Kind = Literal["bbox", "segm"]

TEXTS = {
    "ap": "AP, mean over IoU 0.5 to 0.95",
    "ap_50": "AP at IoU 0.5",
    "ap_75": "AP at IoU 0.75",
    "ap_small": "AP of objects of up to 32 x 32 pixels",
    "ap_medium": "AP of objects between these",
    "ap_large": "AP of objects from 96 x 96 pixels",
    "ar_1": "AR with 1 detection of each class in an image",
    "ar_10": "AR with 10",
    "ar_100": "AR with 100",
    "ar_small": "AR of objects of up to 32 x 32 pixels",
    "ar_medium": "AR of objects between these",
    "ar_large": "AR of objects from 96 x 96 pixels",
}


@dataclass(frozen=True)
class InstanceAP:
    """pycocotools' twelve figures, in its order, as in `TEXTS`; NaN where there are no objects.

    Unless stated, they are means over the IoU of 0.5, 0.55, ... 0.95, and the 100 best detections
    of each class in an image count.
    """

    ap: float
    ap_50: float
    ap_75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    class_ap: tuple[float, ...]  # `ap` of each category

    @property
    def figures(self) -> dict[str, float]:
        """The twelve figures by name."""
        return {name: value for name, value in asdict(self).items() if name != "class_ap"}


def score_instances(
    truth: InstanceList, detections: Detections, kinds: Sequence[Kind] = ("bbox", "segm")
) -> dict[Kind, InstanceAP]:
    """Compares detections with the annotations.

    As in pycocotools, the area of a detection is that of its box, of its mask only if it has no
    box.

    Args:
        kinds: bbox: by the IoU of boxes. segm: by that of masks.

    Raises:
        AnnotationError: something that a kind needs is missing: an area, a mask.
        MissingLibrary: faster-coco-eval is not installed.
        ValueError: scores that are not finite; images that are not in `truth`.
    """
    mask_library()
    from faster_coco_eval import COCO, COCOeval_faster

    if not np.isfinite(detections.score).all():
        raise ValueError("detections: every score must be a number, and finite")
    check_truth(truth, kinds)
    if "segm" in kinds and len(detections) and detections.segmentations is None:
        raise AnnotationError(
            f"{detections.source}: no segmentations, which segm needs; score bbox alone"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the id 0, which is among the problems
        known = COCO(_dataset(truth))
        found = known.loadRes(_numbered(detections, truth).rows())
    result: dict[Kind, InstanceAP] = {}
    for kind in kinds:
        scorer = COCOeval_faster(known, found, kind)
        scorer.evaluate()
        scorer.accumulate()
        result[kind] = _figures(scorer.eval["precision"], scorer.eval["recall"])
    return result


def check_truth(truth: InstanceList, kinds: Sequence[Kind] = ("bbox", "segm")) -> None:
    """Raises AnnotationError if something is missing in the annotations that the kinds need."""
    for record in truth.records:
        for place in np.flatnonzero(np.isnan(record.areas)).tolist():
            raise AnnotationError(
                f"{truth.source}: annotation {record.ids[place]}: area is missing, which scores "
                "need; it is the number of pixels of the mask"
            )
        if "segm" in kinds and None in record.segmentations:
            place = record.segmentations.index(None)
            raise AnnotationError(
                f"{truth.source}: annotation {record.ids[place]}: segmentation is missing, which "
                "segm needs; `hiera-video instances score kinds=bbox` scores boxes alone"
            )


def check_has_objects(truth: InstanceList) -> None:
    """Raises AnnotationError if no AP is defined."""
    if all(record.crowd.all() for record in truth.records):
        raise AnnotationError(f"{truth.source}: no annotation but crowds, so there is no AP")


# faster-coco-eval fails with ids beyond 32 bits, and matches no annotation with a negative one, so
# that it is given numbers from 1, in the order of the ids. Only the id 0 stays: what matches it
# counts as wrong in pycocotools.


def _dataset(truth: InstanceList) -> dict[str, Any]:
    """The annotations as in COCO's json, with numbers in place of ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(sorted(truth.records, key=lambda r: r.image_id), 1):
        images.append({"id": number, "height": record.height, "width": record.width})
        columns = (record.ids, record.labels, record.boxes_xywh, record.areas, record.crowd)
        for annotation_id, label, box, area, crowd, segmentation in zip(
            *(column.tolist() for column in columns), record.segmentations, strict=True
        ):
            annotation = {
                "id": annotation_id and len(annotations) + 1,
                "image_id": number,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            if segmentation is not None:
                annotation["segmentation"] = plain(segmentation)
            annotations.append(annotation)
    categories = [{"id": i, "name": c.name} for i, c in enumerate(truth.categories, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _numbered(detections: Detections, truth: InstanceList) -> Detections:
    """The detections of known categories, with numbers in place of ids."""
    images = np.array(sorted(record.image_id for record in truth.records))
    categories = np.array([category.id for category in truth.categories])
    if not np.isin(detections.image_id, images).all():
        raise ValueError("detections: images that the ground truth does not have")
    rows = np.flatnonzero(np.isin(detections.category_id, categories))
    boxes, masks = detections.boxes_xywh, detections.segmentations
    return replace(
        detections,
        image_id=1 + np.searchsorted(images, detections.image_id[rows]),
        category_id=1 + np.searchsorted(categories, detections.category_id[rows]),
        score=detections.score[rows],
        boxes_xywh=None if boxes is None else boxes[rows],
        segmentations=None if masks is None else [masks[row] for row in rows.tolist()],
    )


def _figures(precision: np.ndarray, recall: np.ndarray) -> InstanceAP:
    """The means of what is defined.

    Args:
        precision: [10, 101, K, 4, 3]: at each IoU and recall, of each category, of objects of any,
            small, medium and large area, with 1, 10 and 100 detections; -1 where it is undefined.
        recall: the same without the second axis.
    """
    ap = precision[..., -1]
    return InstanceAP(
        ap=_mean(ap[..., 0]),
        ap_50=_mean(ap[0, ..., 0]),
        ap_75=_mean(ap[5, ..., 0]),
        ap_small=_mean(ap[..., 1]),
        ap_medium=_mean(ap[..., 2]),
        ap_large=_mean(ap[..., 3]),
        ar_1=_mean(recall[..., 0, 0]),
        ar_10=_mean(recall[..., 0, 1]),
        ar_100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., 1, 2]),
        ar_medium=_mean(recall[..., 2, 2]),
        ar_large=_mean(recall[..., 3, 2]),
        class_ap=tuple(_mean(ap[:, :, place, 0]) for place in range(ap.shape[2])),
    )


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


# ---- reports


def report_of(
    truth: InstanceList, detections: Detections, results: Mapping[Kind, InstanceAP]
) -> dict[str, Any]:
    """The results and what they are of as JSON data, with None for NaN."""
    labels = np.concatenate([record.labels for record in truth.records])
    crowd = np.concatenate([record.crowd for record in truth.records])
    num_objects = np.bincount(labels[~crowd], minlength=len(truth.categories) + 1)[1:].tolist()
    return {
        "ground_truth": {
            "file": truth.source,
            "images": len(truth.records),
            "images_without_annotations": sum(not len(record.ids) for record in truth.records),
            "annotations": len(labels),
            "crowd": int(crowd.sum()),
            "problems": truth.problems,
        },
        "detections": {
            "file": detections.source,
            "detections": len(detections),
            "problems": detections.problems,
        },
        "kinds": {
            kind: {name: finite_or_none(value) for name, value in result.figures.items()}
            for kind, result in results.items()
        },
        "classes": [
            {"id": category.id, "name": category.name, "objects": num}
            | {kind: finite_or_none(result.class_ap[i]) for kind, result in results.items()}
            for i, (category, num) in enumerate(zip(truth.categories, num_objects, strict=True))
        ],
    }


def format_report(report: Mapping[str, Any]) -> list[str]:
    """Lines of text for a result of `report_of`."""
    truth, found, kinds = report["ground_truth"], report["detections"], report["kinds"]
    sizes = [counted(truth["images"], "image"), counted(truth["annotations"], "annotation")]
    empty = counted(truth["images_without_annotations"], "image")
    lines = [
        f"ground truth: {', '.join(sizes)} of {truth['file']}",
        f"  {truth['crowd']} of the annotations are crowds; {empty} without annotations",
        *(f"  {problem}" for problem in truth["problems"]),
        f"detections: {found['detections']} of {found['file']}",
        *(f"  {problem}" for problem in found["problems"]),
        "",
        "".join(f"{kind:>9s}" for kind in kinds),
    ]
    for name, text in TEXTS.items():
        lines.append(
            "".join(f"{format_percent(k[name]):>9s}" for k in kinds.values()) + f"  {text}"
        )
    lines += ["", "AP of each class"]
    for row in report["classes"]:
        values = "".join(f"{format_percent(row[kind]):>9s}" for kind in kinds)
        lines.append(
            f"{values}  {row['id']:3d} {row['name']} ({counted(row['objects'], 'object')})"
        )
    return lines
