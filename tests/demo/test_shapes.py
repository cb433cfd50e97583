"""The generated pictures of the demo of instance segmentation."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

from hiera_video.data.instances.coco import read_coco, read_detections
from hiera_video.demo.shapes import CLASSES, SIDE, DemoInstancesData, draw, generate, run_lengths
from hiera_video.evaluation.instances import score_instances


def test_masks_boxes_and_areas_agree(tmp_path: Path) -> None:
    data = DemoInstancesData(tmp_path)
    generate(data, seed=1, train_pictures=12, val_pictures=3)
    for path, number in ((data.train, 12), (data.val, 3)):
        truth = COCO(str(path))
        assert len(truth.imgs) == number
        assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == list(CLASSES)
        for annotation in truth.anns.values():
            mask = truth.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            y, x = mask.nonzero()
            x0, y0, width, height = annotation["bbox"]
            assert (x0, y0) == (x.min(), y.min())
            assert (width, height) == (np.ptp(x) + 1, np.ptp(y) + 1)
    assert cv2.imread(str(data.example)).shape == (SIDE, SIDE, 3)
    first = data.train.read_bytes()
    generate(data, seed=1, train_pictures=12, val_pictures=3)
    assert data.train.read_bytes() == first


def test_only_masks_in_their_places_are_right(tmp_path: Path) -> None:
    data = DemoInstancesData(tmp_path)
    generate(data, seed=2, train_pictures=0, val_pictures=60)
    objects = json.loads(data.val.read_text())["annotations"]
    order = np.random.default_rng(0).permutation(len(objects))
    figures = []
    for places in (range(len(objects)), order):
        found = [
            {**known, "score": 0.5, "segmentation": objects[place]["segmentation"]}
            for known, place in zip(objects, places, strict=True)
        ]
        (tmp_path / "found.json").write_text(json.dumps(found))
        truth = read_coco(data.val)
        scored = score_instances(truth, read_detections(tmp_path / "found.json", truth))
        figures.append((scored["bbox"].ap_50, scored["segm"].ap_50))
    assert figures[0] == (1, 1)
    boxes, masks = figures[1]
    assert boxes == 1
    assert masks < 0.02


def test_what_pictures_show() -> None:
    classes, sizes, numbers = Counter[int](), [], Counter[int]()
    for number in range(120):
        picture, shapes = draw(0, "train", number)
        assert picture.shape == (SIDE, SIDE, 3)
        numbers[len(shapes)] += 1
        total = sum(mask.astype(int) for _, mask in shapes)
        assert total.max() == 1  # masks do not overlap
        for class_id, mask in shapes:
            classes[class_id] += 1
            sizes.append(mask.sum() ** 0.5)
    assert set(numbers) == {1, 2, 3, 4}
    assert min(classes.values()) > 0.7 * max(classes.values())
    assert min(sizes) < 20 < 40 < max(sizes)


def test_pictures_depend_on_seed_split_and_number() -> None:
    drawn = [
        draw(seed, split, n)[0].tobytes()
        for seed in (0, 1)
        for split in ("train", "val")
        for n in (0, 1)
    ]
    assert len(set(drawn)) == 8
    assert draw(0, "val", 1)[0].tobytes() == drawn[3]


def test_run_lengths() -> None:
    mask = np.array([[0, 1], [1, 1]], bool)
    assert run_lengths(mask) == [1, 3]
    assert run_lengths(~mask) == [0, 1, 3]
    assert json.dumps(run_lengths(np.zeros((2, 2), bool))) == "[4]"
