"""AP of boxes and masks against pycocotools, on random problems."""

import copy
import json
import math
import sys

import numpy as np
import pytest

from hiera_video.data.instances.coco import read_coco, read_detections
from hiera_video.data.instances.masks import encode_masks
from hiera_video.errors import AnnotationError, MissingLibrary
from hiera_video.evaluation.instances import score_instances

pytest.importorskip("faster_coco_eval")
coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")

HEIGHT, WIDTH = 140, 190


def segmentation(random, box, *, compressed=False):
    """Polygons, run lengths as a list or run lengths as text, within a box or around it."""
    x, y, w, h = box
    form = "text" if compressed else random.choice(["polygons", "list", "text"])
    if form == "polygons":
        return [
            (random.random((random.integers(3, 7), 2)) * [w, h] + [x, y]).ravel().tolist()
            for _ in range(random.integers(1, 3))
        ]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)
    mask &= random.random(mask.shape) < 0.9
    if form == "text":
        return encode_masks(mask[None])[0]
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
    counts = np.diff(changes, prepend=0, append=mask.size)
    return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}


def problem(seed, *, with_boxes=True):
    """Annotations and detections in COCO's json.

    Some images are empty, categories have gaps, and one has no annotation; boxes leave the image
    or have no area, areas lie on the borders of the ranges, scores are equal, one image has more
    than 100 detections of a class, and some detections are of an unknown category.
    """
    random = np.random.default_rng(seed)
    image_ids = random.permutation(1000)[:5].tolist()
    categories = [{"id": i, "name": f"class {i}"} for i in (3, 90, 12, 40)]
    ids = random.permutation(500).tolist()
    if seed % 3 == 0:
        ids = [-(2**40) - number for number in ids]
    annotations, detections = [], []

    def detect(image_id, category_id, box, mask=None):
        row = {"image_id": image_id, "category_id": category_id, "score": random.random()}
        row["score"] = float(np.round(row["score"], random.choice([1, 9])))
        row["segmentation"] = mask or segmentation(random, box, compressed=not with_boxes)
        detections.append(row | ({"bbox": box} if with_boxes else {}))

    for image_id in image_ids[:4]:
        for _ in range(random.integers(0, 7)):
            box = np.concatenate(
                [
                    random.random(2) * [WIDTH, HEIGHT] - 10,
                    random.random(2) * random.choice([30, 120]),
                ]
            )
            box = np.round(box, random.choice([0, 2])).tolist()
            category_id = int(random.choice([3, 90, 12]))
            annotation = {
                "id": ids[len(annotations)],
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": float(random.choice([box[2] * box[3] * 0.7, 32**2, 96**2])),
                "iscrowd": int(random.random() < 0.2),
                "segmentation": segmentation(random, box, compressed=not with_boxes),
            }
            annotations.append(annotation)
            for noise in random.choice([0, 0.5, 3], random.integers(0, 4)):
                near = np.round(np.add(box, random.normal(size=4) * noise), 2).tolist()
                mask = annotation["segmentation"] if random.random() < 0.5 else None
                category = int(random.choice([3, 90, 12, 40, 55], p=[0.2, 0.2, 0.2, 0.2, 0.2]))
                chosen = category_id if random.random() < 0.7 else category
                detect(image_id, chosen, near, copy.deepcopy(mask))
    for _ in range(130 if seed % 5 == 0 else 3):
        detect(image_ids[-1 - seed % 2], 3, (random.random(4) * [WIDTH, HEIGHT, 50, 50]).tolist())
    random.shuffle(annotations)
    random.shuffle(detections)
    image = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": i, "file_name": f"{i}.jpg", **image} for i in image_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def reference(truth, detections, kind):
    """pycocotools' twelve figures, and AP by class."""
    known = coco.COCO()
    known.dataset = copy.deepcopy(truth)
    known.createIndex()
    scorer = cocoeval.COCOeval(known, known.loadRes(copy.deepcopy(detections)), kind)
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    by_class = np.moveaxis(scorer.eval["precision"][..., 0, -1], 2, 0)
    means = [values[values > -1].mean() if (values > -1).any() else -1 for values in by_class]
    return [*scorer.stats, *means]


@pytest.fixture
def read(tmp_path):
    def both(truth, detections):
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        (tmp_path / "found.json").write_text(json.dumps(detections))
        instances = read_coco(tmp_path / "truth.json")
        return instances, read_detections(tmp_path / "found.json", instances)

    return both


def compare(read, truth, detections):
    for kind, result in score_instances(*read(truth, detections)).items():
        figures = [*result.figures.values(), *result.class_ap]
        stated = [-1 if math.isnan(figure) else figure for figure in figures]
        assert stated == pytest.approx(reference(truth, detections, kind), rel=0, abs=1e-9)


@pytest.mark.parametrize("with_boxes", [True, False])
@pytest.mark.parametrize("seed", range(24))
def test_figures_are_those_of_pycocotools(read, seed, with_boxes):
    compare(read, *problem(seed, with_boxes=with_boxes))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("annotations", "iscrowd", 1),
        ("annotations", "area", 0),
        ("annotations", "ignore", 1),  # which pycocotools replaces by iscrowd
        ("annotations", "bbox", [9, 9, -5, 9]),
        ("detections", "score", 0.5),
        ("detections", "score", -1e300),
        ("detections", "bbox", [9, 9, 0, 0]),
        ("detections", "category_id", 40),
        ("detections", "category_id", 55),
        ("detections", "area", 7),  # which the area of the box replaces
    ],
)
def test_extremes_are_those_of_pycocotools(read, part, key, value):
    truth, detections = problem(1)
    for row in truth["annotations"] if part == "annotations" else detections:
        row[key] = value
    compare(read, truth, detections)


def test_the_id_0_matches_nothing_as_in_pycocotools(read):
    truth, detections = problem(1)
    row = next(row for row in truth["annotations"] if not row["iscrowd"])
    row["id"] = 10**6
    detections.append({k: row[k] for k in ("image_id", "category_id", "bbox", "segmentation")})
    detections[-1]["score"] = 2.0
    best = score_instances(*read(truth, detections))["bbox"]
    row["id"] = 0
    compare(read, truth, detections)
    instances, found = read(truth, detections)
    assert score_instances(instances, found)["bbox"].ap < best.ap
    assert "the id 0, with which matches count as wrong" in " ".join(instances.problems)


def test_without_detections_or_objects(read):
    truth, detections = problem(1)
    assert score_instances(*read(truth, []))["segm"].ap == 0
    result = score_instances(*read(truth | {"annotations": []}, detections))["bbox"]
    assert all(math.isnan(figure) for figure in (*result.figures.values(), *result.class_ap))


def test_what_scores_need_is_named(read, monkeypatch):
    truth, detections = problem(1)
    found = read(
        truth, [{k: v for k, v in row.items() if k != "segmentation"} for row in detections]
    )
    assert list(score_instances(*found, ["bbox"])) == ["bbox"]
    with pytest.raises(AnnotationError, match=r"found\.json: no segmentations, which segm needs"):
        score_instances(*found)
    first = truth["annotations"][0]
    without = [{k: v for k, v in first.items() if k != key} for key in ("segmentation", "area")]
    for left, key in zip(without, ("segmentation", "area"), strict=True):
        message = rf"truth\.json: annotation {first['id']}: {key} is missing"
        with pytest.raises(AnnotationError, match=message):
            score_instances(*read(truth | {"annotations": [left]}, detections))
    instances, other = read(truth, detections)
    other.score[0] = np.nan
    with pytest.raises(ValueError, match="every score must be a number, and finite"):
        score_instances(instances, other)
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'hiera-video\[instances\]'"):
        score_instances(instances, other)
