"""Reads COCO's json: pictures with the boxes and masks of their objects, and detections of these.

Numbers are kept as they are in the files, so that scores are those of pycocotools: boxes without
area, boxes outside of their picture and pictures without objects stay, and `problems` counts them.
What pycocotools cannot use, or would take for something else, is an AnnotationError.
"""

import functools
import gc
import hashlib
import math
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from hiera_video.data.instances.masks import (
    MAX_PIXELS,
    Segmentation,
    bitmap,
    mistakes,
    plain,
    with_compact_polygons,
)
from hiera_video.data.videos.records import check_class_name
from hiera_video.errors import AnnotationError, counted
from hiera_video.files import json_text, load_json, read_text, user_path, write_text
from hiera_video.video.open import OpenVideo
from hiera_video.video.reader import VideoReader


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class InstanceRecord:
    """One picture and its annotations, in the order of the file."""

    name: str  # of the file, as in the json
    path: str
    image_id: int
    height: int
    width: int
    ids: Int64[np.ndarray, " n"]  # of the annotations
    boxes_xywh: Float[np.ndarray, "n 4"]  # as in the json, pixels
    labels: Int64[np.ndarray, " n"]  # place of the category in InstanceList.categories, from 1
    areas: Float[np.ndarray, " n"]  # pixels of the mask; NaN: not given
    crowd: Bool[np.ndarray, " n"]  # the annotation stands for a group
    segmentations: tuple[Segmentation | None, ...]  # None: not given

    @property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """x1 y1 x2 y2, pixels."""
        return np.concatenate(
            [self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1
        )

    @property
    def is_trainable(self) -> Bool[np.ndarray, " n"]:
        """Annotations of single objects whose boxes have an area."""
        return ~self.crowd & (self.boxes_xywh[:, 2:] > 0).all(axis=1)

    def open(self, open_video: OpenVideo) -> VideoReader:
        """The reader of the picture."""
        return open_video(self.path)


@dataclass(frozen=True, eq=False)
class InstanceList:
    """The pictures of one file, in its order."""

    records: tuple[InstanceRecord, ...]
    categories: tuple[Category, ...]  # by id
    source: str
    problems: tuple[str, ...]  # what was kept, but may be a mistake; one sentence for each kind

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures in order, their annotations, and the categories."""
        digest = hashlib.sha256(repr(self.categories).encode())
        for record in self.records:
            head = [record.name, record.image_id, record.height, record.width, len(record.ids)]
            digest.update(json_text(head, ensure_ascii=True).encode())
            for column in (record.boxes_xywh, record.labels, record.areas, record.crowd):
                digest.update(column.tobytes())
            for segmentation in record.segmentations:
                polygons = segmentation if isinstance(segmentation, list) else []
                digest.update(repr([len(polygon) for polygon in polygons] or segmentation).encode())
                for polygon in polygons:
                    digest.update(polygon)
        return digest.hexdigest()


def check_trainable(instances: InstanceList) -> None:
    """Raises AnnotationError if an object lacks its mask, or if there are none."""
    number = 0
    for record in instances.records:
        for place in np.flatnonzero(record.is_trainable).tolist():
            number += 1
            if record.segmentations[place] is None:
                raise AnnotationError(
                    f"{instances.source}: annotation {record.ids[place]}: segmentation is missing, "
                    "from which masks are learnt"
                )
    if not number:
        raise AnnotationError(
            f"{instances.source}: no annotation of an object with an area: crowds are not learnt"
        )


def check_categories(instances: InstanceList, known: Mapping[int, str], source: object) -> None:
    """Raises AnnotationError if the categories are others than those that `source` has, by id."""
    own = {category.id: category.name for category in instances.categories}
    if differing := sorted(own.items() ^ known.items()):
        id, name = differing[0]
        raise AnnotationError(
            f"{instances.source} and {source} have other categories: {name!r} with id {id} is in "
            "one of them alone"
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """Detected objects: one row each."""

    source: str
    image_id: Int64[np.ndarray, " n"]
    category_id: Int64[np.ndarray, " n"]  # of the json, not the place among the categories
    score: Float[np.ndarray, " n"]
    boxes_xywh: Float[np.ndarray, "n 4"] | None  # as in the json, pixels; None: masks alone
    segmentations: Sequence[Segmentation] | None  # None: boxes alone
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_id)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as in COCO's json."""
        columns: dict[str, Iterable[Any]] = {
            "image_id": self.image_id.tolist(),
            "category_id": self.category_id.tolist(),
            "score": self.score.tolist(),
        }
        if self.boxes_xywh is not None:
            columns["bbox"] = self.boxes_xywh.tolist()
        if self.segmentations is not None:
            columns["segmentation"] = map(plain, self.segmentations)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the search for garbage in cycles, which takes half of the time for so many objects."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def read_coco(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> InstanceList:
    """Reads pictures, annotations and categories; pictures are not opened.

    Args:
        root: folder to which the names of the pictures are relative. None: the folder of the file.

    Raises:
        AnnotationError: the first mistake, with file and id, and the number of others like it.
    """
    source = user_path(path)
    folder = source.parent if root is None else user_path(root)
    content = _load(source)
    expected = "an object with lists images, annotations and categories, as in COCO's instances"
    if not isinstance(content, dict):
        raise AnnotationError(f"{source}: expected {expected}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise AnnotationError(f"{source}: {key} is missing; expected {expected}")
    categories = _Objects(source, "category", content["categories"])
    images = _Objects(source, "image", content["images"])
    annotations = _Objects(source, "annotation", content["annotations"])
    for objects, name in ((categories, "categories"), (images, "images")):
        objects.read_ids()
        if not objects.items:
            raise AnnotationError(f"{source}: {name} is empty")
    annotations.read_ids()

    names = categories.texts("name")
    for place, name in enumerate(names):
        check_class_name(name, categories.where(place))
    by_id = np.argsort(categories.ids)
    category_ids = categories.ids[by_id]

    file_names = images.texts("file_name")
    height, width = (images.column(k, "q", "pixels") for k in ("height", "width"))
    images.refuse(
        (np.minimum(height, width) < 1) | (height > MAX_PIXELS // np.maximum(width, 1)),
        lambda i: f"{width[i]} x {height[i]} pixels; expected 1 or more, {MAX_PIXELS:,} in all",
    )

    image = annotations.places("image_id", images.ids, "images")
    label = annotations.places("category_id", category_ids, "categories") + 1
    boxes = annotations.column("bbox", "d", "[x, y, width, height]", width=4)
    areas = annotations.column("area", "d", "pixels of the mask", default=math.nan)
    crowd = annotations.column("iscrowd", "q", "0 or 1", default=0)
    annotations.refuse(
        (crowd != 0) & (crowd != 1), lambda i: f"iscrowd is {crowd[i]}; expected 0 or 1"
    )
    segmentations = annotations.segmentations(height[image], width[image])

    order = np.argsort(image, kind="stable")
    columns = (annotations.ids, boxes, label, areas, crowd == 1)
    ids, xywh, labels, all_areas, is_crowd = (column[order] for column in columns)
    ends = np.cumsum(np.bincount(image, minlength=len(file_names))).tolist()
    sizes = zip(images.ids.tolist(), height.tolist(), width.tolist(), strict=True)
    records = []
    for name, (image_id, high, wide), start, end in zip(
        file_names, sizes, [0, *ends[:-1]], ends, strict=True
    ):
        part = slice(start, end)
        record = InstanceRecord(
            name=name,
            path=os.path.join(folder, name),
            image_id=image_id,
            height=high,
            width=wide,
            ids=ids[part],
            boxes_xywh=xywh[part],
            labels=labels[part],
            areas=all_areas[part],
            crowd=is_crowd[part],
            segmentations=tuple(segmentations[row] for row in order[part].tolist()),
        )
        records.append(record)
    edges = np.column_stack([width[image], height[image]])
    is_outside = (boxes[:, :2] < -1) | (boxes[:, :2] + boxes[:, 2:] > edges + 1)
    problems = {
        "a box without area": (boxes[:, 2:] <= 0).any(axis=1),
        "a box that reaches more than a pixel beyond the image": is_outside.any(axis=1),
        "no area, which scoring needs": np.isnan(areas),
        "no iscrowd, which counts as 0": ~annotations.given("iscrowd"),
        "the id 0, with which matches count as wrong, as in pycocotools": annotations.ids == 0,
    }
    return InstanceList(
        records=tuple(records),
        categories=tuple(Category(int(categories.ids[i]), names[i]) for i in by_id),
        source=str(source),
        problems=annotations.problems(problems),
    )


@_uncollected()
def read_detections(path: str | os.PathLike[str], instances: InstanceList) -> Detections:
    """Reads detections in the pictures of `instances`: COCO's results, a list of objects.

    All have a `bbox` or none has one; likewise `segmentation`. Detections of categories that
    `instances` does not have are kept; as in pycocotools, they do not count.

    Raises:
        AnnotationError: the first mistake, with the place in the file, and the number of others.
    """
    source = user_path(path)
    content = _load(source)
    found = _Objects(source, "detection", content)
    score = found.column("score", "d", "a number")
    sizes = {record.image_id: (record.height, record.width) for record in instances.records}
    image_ids = np.array(sorted(sizes), dtype=np.int64)
    image = found.places("image_id", image_ids, f"images of {instances.source}")
    category_id = found.column("category_id", "q", "a whole number")
    has_boxes, has_masks = (found.has(key) for key in ("bbox", "segmentation"))
    boxes = found.column("bbox", "d", "[x, y, width, height]", width=4) if has_boxes else None
    height, width = np.array([sizes[i] for i in image_ids.tolist()], dtype=np.int64)[image].T
    segmentations = found.segmentations(height, width)
    if has_masks:
        found.refuse([s is None for s in segmentations], lambda i: "segmentation is empty")
    if not has_boxes:
        found.refuse(
            [not (isinstance(s, dict) and isinstance(s["counts"], str)) for s in segmentations],
            lambda i: "neither a bbox nor a segmentation of compressed run lengths; add a bbox",
        )
    known = [category.id for category in instances.categories]
    unknown = ~np.isin(category_id, known)
    first = f" (such as {category_id[unknown][0]})" if unknown.any() else ""
    text = f"a category that {instances.source} does not have{first}, which do not count"
    return Detections(
        source=str(source),
        image_id=image_ids[image],
        category_id=category_id,
        score=score,
        boxes_xywh=boxes,
        segmentations=[s for s in segmentations if s is not None] if has_masks else None,
        problems=found.problems({text: unknown}),
    )


def write_detections(path: str | os.PathLike[str], detections: Detections) -> None:
    """Writes COCO's results; reading them gives the same numbers."""
    write_text(Path(path), json_text(detections.rows()) + "\n")


def masks(record: InstanceRecord, indices: Collection[int]) -> Bool[np.ndarray, "n H W"]:
    """The masks of some annotations of a picture, by their place in it.

    Raises:
        AnnotationError: an annotation has no segmentation.
        MissingLibrary: faster-coco-eval is not installed.
    """
    result = np.zeros((len(indices), record.height, record.width), dtype=bool)
    for mask, index in zip(result, indices, strict=True):
        segmentation = record.segmentations[index]
        if segmentation is None:
            raise AnnotationError(
                f"{record.name}: annotation {record.ids[index]} has no segmentation; masks need one"
            )
        mask[:] = bitmap(segmentation, record.height, record.width)
    return result


# ---- lists of objects in a file


def _load(source: Path) -> Any:
    text = read_text(source, AnnotationError)
    return load_json(text, str(source), AnnotationError, object_hook=with_compact_polygons)


class _Objects:
    """The objects of one list, whose values are read as columns; errors name file and object."""

    def __init__(self, source: Path, noun: str, items: Any) -> None:
        if not isinstance(items, list) or not all(type(item) is dict for item in items):
            raise AnnotationError(
                f"{source}: expected a list with an object {{...}} for each {noun}, as COCO has"
            )
        self.source, self.noun, self.items = source, noun, items
        self.ids = np.arange(1, len(items) + 1)  # places, where there are no ids

    def where(self, index: int) -> str:
        return f"{self.source}: {self.noun} {self.ids[index]}"

    def refuse(self, is_wrong: Sequence[bool] | np.ndarray, text: Callable[[int], str]) -> None:
        """Raises AnnotationError for the first object that is wrong; `text` says what is."""
        wrong = np.flatnonzero(is_wrong).tolist()
        if wrong:
            others = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
            raise AnnotationError(f"{self.where(wrong[0])}: {text(wrong[0])}{others}")

    def problems(self, kinds: dict[str, np.ndarray]) -> tuple[str, ...]:
        """A sentence for each kind of objects, bool [n], that there are any of."""
        return tuple(
            f"{counted(int(found.sum()), self.noun)} with {text}; the first is "
            f"{self.noun} {self.ids[found][0]}"
            for text, found in kinds.items()
            if found.any()
        )

    def column(
        self, key: str, code: str, expected: str, *, width: int = 0, default: float | None = None
    ) -> np.ndarray:
        """Numbers [n], or [n, width]; finite, but for the default.

        Args:
            code: "q", whole numbers of 64 bits, or "d", float64.
            default: where the key is missing. None: an error.
        """
        values = [item.get(key, default) for item in self.items]
        numbers = _numbers(values, code, width)
        if numbers is None or np.isinf(numbers).any():
            parts = [_numbers([value], code, width) for value in values]
            self.refuse(
                [part is None or bool(np.isinf(part).any()) for part in parts],
                lambda i: f"{_stated(key, values[i])}; expected {expected}",
            )
        assert numbers is not None
        return numbers

    def read_ids(self) -> None:
        """Reads the ids, which errors name from now on."""
        ids = self.column("id", "q", "a whole number")
        _, firsts = np.unique(ids, return_index=True)
        repeated = np.ones(len(ids), dtype=bool)
        repeated[firsts] = False
        self.ids = ids
        self.refuse(repeated, lambda i: "this id occurs more than once; ids must differ")

    def texts(self, key: str) -> list[str]:
        """Texts that are not empty."""
        values = [item.get(key) for item in self.items]
        self.refuse(
            [not isinstance(value, str) or not value for value in values],
            lambda i: f"{_stated(key, values[i])}; expected text",
        )
        return values

    def places(self, key: str, known: np.ndarray, where: str) -> np.ndarray:
        """Place [n] of each id among those that are known."""
        ids = self.column(key, "q", "a whole number")
        order = np.argsort(known)
        place = np.searchsorted(known, ids, sorter=order)
        place = order[np.minimum(place, len(known) - 1)]
        self.refuse(known[place] != ids, lambda i: f"{key} {ids[i]} is not among the {where}")
        return place

    def given(self, key: str) -> np.ndarray:
        """Bool [n]: whether objects have the key."""
        return np.array([key in item for item in self.items], dtype=bool)

    def has(self, key: str) -> bool:
        """Whether the objects have the key: all or none."""
        given = self.given(key)
        if given.any():
            self.refuse(~given, lambda i: f"{key} is missing, which others have")
        return bool(given.any())

    def segmentations(self, height: np.ndarray, width: np.ndarray) -> list[Segmentation | None]:
        """The masks; None where none is given, or an empty list.

        Args:
            height, width: of the picture of each, [n].
        """
        result = [item.get("segmentation") or None for item in self.items]
        wrong = mistakes(result, height, width)
        self.refuse([i in wrong for i in range(len(result))], lambda i: wrong[i])
        return result


def _numbers(values: list[Any], code: str, width: int) -> np.ndarray | None:
    """The values as numbers [n] or [n, width]; None if they are anything else."""
    if width and not all(type(value) is list and len(value) == width for value in values):
        return None
    try:
        numbers = np.array(array(code, chain.from_iterable(values) if width else values))
    except (TypeError, OverflowError):
        return None
    return numbers.reshape(-1, width) if width else numbers


def _stated(key: str, value: Any) -> str:
    if value is None:
        return f"{key} is missing"
    text = json_text(value, allow_nan=True)
    return f"{key} is {text if len(text) <= 60 else text[:60] + '...'}"
