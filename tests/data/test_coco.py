"""COCO's json: what is read, what is kept and counted, and what is refused, with file and id."""

import copy
import json
import sys

import numpy as np
import pytest

from hiera_video.data.instances.coco import (
    Category,
    Detections,
    masks,
    read_coco,
    read_detections,
    write_detections,
)
from hiera_video.data.instances.masks import encode_masks
from hiera_video.errors import AnnotationError, MissingLibrary

pytest.importorskip("faster_coco_eval")

POLYGON = [[1, 1, 5, 1, 5, 4, 1, 4]]
RUNS = {"size": [10, 20], "counts": [12, 3, 185]}
TRUTH = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 10, "width": 20},
        {"id": 3, "file_name": "sub/a.jpg", "height": 10, "width": 20},
        {"id": 5, "file_name": "empty.jpg", "height": 6, "width": 8},
    ],
    "annotations": [
        {"id": 11, "image_id": 3, "category_id": 90, "bbox": [1, 1, 4, 3], "area": 12.5}
        | {"iscrowd": 0, "segmentation": POLYGON},
        {"id": 12, "image_id": 7, "category_id": 4, "bbox": [0.1, 2, 0.2, 5], "area": 3}
        | {"iscrowd": 1, "segmentation": RUNS},
        {"id": 10, "image_id": 3, "category_id": 4, "bbox": [2, 2, 3, 3], "area": 9}
        | {"iscrowd": 0, "segmentation": []},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}],
}
FOUND = [
    {"image_id": 3, "category_id": 90, "bbox": [1, 1, 4, 3], "score": 0.5, "segmentation": POLYGON},
    {"image_id": 7, "category_id": 4, "bbox": [0, 2, 2, 5], "score": 0.25, "segmentation": RUNS},
]


@pytest.fixture
def write(tmp_path):
    def written(content, name="truth.json"):
        (tmp_path / name).write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
        return tmp_path / name

    return written


def changed(content, *place_and_value):
    """A copy with another value at a place, without the key where it is None."""
    content = copy.deepcopy(content)
    *places, key, value = place_and_value
    part = content
    for place in places:
        part = part[place]
    if value is None:
        del part[key]
    else:
        part[key] = value
    return content


def test_reading(write, tmp_path):
    read = read_coco(write(TRUTH))
    assert read.categories == (Category(4, "dog"), Category(90, "cat"))
    assert read.problems == ()
    b, a, empty = read.records
    assert (b.name, b.path, b.image_id) == ("b.jpg", str(tmp_path / "b.jpg"), 7)
    assert (a.height, a.width) == (10, 20)
    assert a.ids.tolist() == [11, 10]  # the order of the file
    assert a.labels.tolist() == [2, 1]
    assert a.areas.tolist() == [12.5, 9]
    assert b.crowd.tolist() == [True]
    assert b.boxes.tolist() == [[0.1, 2, 0.1 + 0.2, 7]]
    assert b.boxes_xywh[0, 2] == 0.2  # 0.1 + 0.2 - 0.1 is another number
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.dtype == np.int64
    assert read_coco(write(TRUTH), "pictures").records[1].path == "pictures/sub/a.jpg"


def test_masks(write):
    b, a, empty = read_coco(write(TRUTH)).records
    (mask,) = masks(b, [0])
    assert mask.dtype == bool
    assert np.argwhere(mask).tolist() == [[2, 1], [3, 1], [4, 1]]  # columns run down
    (mask,) = masks(a, [0])
    assert mask.sum() == 12
    assert mask[1:4, 1:5].all()
    assert masks(empty, []).shape == (0, 6, 8)
    with pytest.raises(AnnotationError, match=r"sub/a\.jpg: annotation 10 has no segmentation"):
        masks(a, [1])


def test_masks_without_the_library(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'hiera-video\[instances\]'"):
        masks(read_coco(write(TRUTH)).records[0], [0])


def test_the_fingerprint_is_of_the_content(write):
    known = read_coco(write(TRUTH)).fingerprint
    assert read_coco(write({"info": 1, **TRUTH})).fingerprint == known
    polygon = changed(TRUTH, "annotations", 0, "segmentation", [[1, 1, 5, 1, 5, 4, 1, 5]])
    runs = changed(TRUTH, "annotations", 1, "segmentation", "counts", [13, 3, 184])
    box = changed(TRUTH, "annotations", 0, "bbox", [1, 1, 4, 3.5])
    name = changed(TRUTH, "categories", 0, "name", "cow")
    others = {read_coco(write(other)).fingerprint for other in (polygon, runs, box, name)}
    assert len(others | {known}) == 5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("bbox", [1, 1, 0, 3]),
            "1 annotation with a box without area; the first is annotation 11",
        ),
        (("bbox", [1, 1, 4, -3]), "with a box without area"),
        (("bbox", [1, 1, 21, 3]), "with a box that reaches more than a pixel beyond the image"),
        (("area", None), "with no area, which scoring needs"),
        (("iscrowd", None), "with no iscrowd, which counts as 0"),
        (("id", 0), "with the id 0"),
    ],
)
def test_what_is_kept_is_counted(write, change, problem):
    read = read_coco(write(changed(TRUTH, "annotations", 0, *change)))
    (text,) = read.problems
    assert problem in text
    assert len(read.records[1].ids) == 2


@pytest.mark.parametrize(
    ("place_and_value", "message"),
    [
        (("images", None), "images is missing; expected an object with lists images, annot"),
        (("annotations", None), "annotations is missing"),
        (("categories", None), "categories is missing"),
        (("images", []), "images is empty"),
        (("annotations", {}), "expected a list with an object {...} for each annotation"),
        (("annotations", 1, 5), "expected a list with an object"),
        (("images", 1, "id", 7), "image 7: this id occurs more than once"),
        (("annotations", 2, "id", 11), "annotation 11: this id occurs more than once"),
        (("categories", 1, "id", 90), "category 90: this id occurs more than once"),
        (("annotations", 2, "id", None), "annotation 3: id is missing; expected a whole number"),
        (("annotations", 2, "id", "10"), 'annotation 3: id is "10"; expected a whole number'),
        (("images", 0, "width", None), "image 7: width is missing"),
        (("images", 0, "width", 0), "image 7: 0 x 10 pixels; expected 1 or more"),
        (("images", 0, "height", 10**12), "image 7: 20 x 1000000000000 pixels"),
        (("images", 0, "file_name", ""), 'image 7: file_name is ""; expected text'),
        (("categories", 0, "name", None), "category 90: name is missing"),
        (("annotations", 0, "image_id", 4), "annotation 11: image_id 4 is not among the images"),
        (("annotations", 0, "category_id", 5), "category_id 5 is not among the categories"),
        (("annotations", 0, "bbox", None), "annotation 11: bbox is missing; expected [x, y, width"),
        (("annotations", 0, "bbox", [1, 2, 3]), "annotation 11: bbox is [1, 2, 3]; expected"),
        (("annotations", 0, "bbox", [1, 2, 3, "4"]), "annotation 11: bbox is"),
        (("annotations", 0, "area", "9"), 'annotation 11: area is "9"'),
        (("annotations", 0, "iscrowd", 2), "annotation 11: iscrowd is 2; expected 0 or 1"),
        (("annotations", 0, "segmentation", [[1, 2, 3, 4]]), "11: a polygon of 2 points; expected"),
        (("annotations", 0, "segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "expected polygons"),
        (("annotations", 0, "segmentation", [["a"] * 6]), "annotation 11: segmentation: expected"),
        (("annotations", 0, "segmentation", [[0, 0, 9e9, 0, 5, 5]]), "far beyond the picture"),
        (("annotations", 0, "segmentation", "x"), "annotation 11: segmentation: expected"),
        (
            ("annotations", 1, "segmentation", "size", [20, 10]),
            "annotation 12: run lengths of size [20, 10]; expected [10, 20], height and width",
        ),
        (("annotations", 1, "segmentation", "counts", [12, 3]), "do not add up to the 20 x 10 pix"),
        (("annotations", 1, "segmentation", "counts", [12, -3, 191]), "counts of the segmentation"),
        (("annotations", 1, "segmentation", "counts", "PPYo"), "12: the run lengths do not add up"),
        (("annotations", 1, "segmentation", "counts", "é"), "the run lengths do not add up"),
    ],
)
def test_mistakes_are_named_with_file_and_id(write, place_and_value, message):
    path = write(changed(TRUTH, *place_and_value))
    with pytest.raises(AnnotationError) as error:
        read_coco(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_several_mistakes_and_files_of_another_kind(write):
    many = changed(TRUTH, "annotations", 0, "category_id", 5)
    many = changed(many, "annotations", 2, "category_id", 6)
    with pytest.raises(AnnotationError, match=r"annotation 11: .* \(and 1 more\)"):
        read_coco(write(many))
    with pytest.raises(AnnotationError, match=r"truth\.json: expected an object with lists"):
        read_coco(write([]))
    with pytest.raises(AnnotationError, match=r"truth\.json: not JSON"):
        read_coco(write('{"images": [}'))
    infinite = json.dumps(TRUTH).replace("12.5", "1e999")
    with pytest.raises(AnnotationError, match="annotation 11: area is"):
        read_coco(write(infinite))


# ---- detections


def test_detections_are_written_and_read(write, tmp_path):
    truth = read_coco(write(TRUTH))
    found = read_detections(write(FOUND, "found.json"), truth)
    assert found.image_id.tolist() == [3, 7]
    assert found.problems == ()
    bitmaps = np.random.default_rng(0).random((2, 10, 20)) < 0.3
    made = Detections(
        source="a model",
        image_id=found.image_id,
        category_id=found.category_id,
        score=np.array([1 / 3, 0.1 + 0.2]),
        boxes_xywh=np.array([[0.1, 0.2, 1 / 3, 4], [1, 2, 3, 4.0]]),
        segmentations=encode_masks(bitmaps),
    )
    write_detections(tmp_path / "made.json", made)
    again = read_detections(tmp_path / "made.json", truth)
    assert again.rows() == made.rows()
    assert read_detections(write([], "none.json"), truth).rows() == []


@pytest.mark.parametrize(
    ("place_and_value", "message"),
    [
        ((1, "image_id", 4), "detection 2: image_id 4 is not among the images of "),
        ((1, "score", None), "detection 2: score is missing"),
        ((1, "category_id", "x"), 'detection 2: category_id is "x"'),
        ((1, "bbox", None), "detection 2: bbox is missing, which others have"),
        ((1, "segmentation", None), "detection 2: segmentation is missing, which others have"),
        ((1, "segmentation", []), "detection 2: segmentation is empty"),
        ((1, "segmentation", "size", [9, 9]), "detection 2: run lengths of size [9, 9]; expected"),
    ],
)
def test_mistakes_in_detections(write, place_and_value, message):
    truth = read_coco(write(TRUTH))
    path = write(changed(FOUND, *place_and_value), "found.json")
    with pytest.raises(AnnotationError) as error:
        read_detections(path, truth)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_detections_of_other_forms(write):
    truth = read_coco(write(TRUTH))
    with pytest.raises(AnnotationError, match="expected a list with an object"):
        read_detections(write({"annotations": FOUND}, "found.json"), truth)
    no_boxes = [{k: v for k, v in row.items() if k != "bbox"} for row in FOUND]
    with pytest.raises(AnnotationError, match="detection 1: neither a bbox nor a segmentation of"):
        read_detections(write(no_boxes, "found.json"), truth)
    other = read_detections(write(changed(FOUND, 0, "category_id", 5), "found.json"), truth)
    assert "does not have (such as 5), which do not count; the first is" in other.problems[0]
