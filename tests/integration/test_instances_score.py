"""`instances score` end to end: figures, exit codes, mistakes in one line."""

import json

import pytest

pytest.importorskip("faster_coco_eval")

POLYGON = [[10, 10, 50, 10, 50, 40, 10, 40]]
BOX = {"bbox": [10, 10, 40, 30], "segmentation": POLYGON}
TRUTH = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 80, "width": 100} for i in (4, 2)],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 9, "area": 1200, "iscrowd": 0, **BOX},
        {"id": 2, "image_id": 4, "category_id": 7, "area": 1200, "iscrowd": 1, **BOX},
    ],
    "categories": [{"id": 9, "name": "cat"}, {"id": 7, "name": "dog"}],
}
FOUND = [
    {"image_id": 4, "category_id": 9, "score": 0.9, **BOX},
    {"image_id": 2, "category_id": 9, "score": 0.95, **BOX},
    {"image_id": 2, "category_id": 1, "score": 0.95, **BOX},
]


@pytest.fixture
def score(commands, tmp_path):
    """Writes two files and scores them."""

    def run(truth, found, *more):
        for name, content in (("truth", truth), ("found", found)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        files = (f"ground_truth={tmp_path}/truth.json", f"detections={tmp_path}/found.json")
        return commands.run("instances", "score", *files, *more)

    return run


def test_boxes_and_masks_are_scored(score):
    result = score(TRUTH, FOUND, "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert report["kinds"]["bbox"] == report["kinds"]["segm"]
    figures = report["kinds"]["segm"]
    assert list(figures)[:3] == ["ap", "ap_50", "ap_75"]
    assert figures["ap"] == figures["ap_medium"] == pytest.approx(0.5)  # the second best is right
    assert figures["ar_100"] == 1
    assert figures["ap_small"] is None
    dog, cat = report["classes"]
    assert (dog["name"], dog["objects"], dog["bbox"]) == ("dog", 0, None)
    assert (cat["id"], cat["objects"], cat["segm"]) == (9, 1, figures["ap"])
    assert report["ground_truth"]["crowd"] == report["ground_truth"]["images_without_annotations"]
    text = score(TRUTH, FOUND).out
    assert "  50.00 %  50.00 %  AP, mean over IoU 0.5 to 0.95" in text
    assert "        -        -  AP of objects of up to 32 x 32 pixels" in text
    assert (
        "truth.json does not have (such as 1), which do not count; the first is detection 3" in text
    )


def test_kinds(score):
    boxes = [{k: v for k, v in row.items() if k != "segmentation"} for row in FOUND]
    assert list(json.loads(score(TRUTH, boxes, "--json").out)["kinds"]) == ["bbox"]
    one = score(TRUTH, FOUND, "--json", "--kinds", "segm")
    assert list(json.loads(one.out)["kinds"]) == ["segm"]
    result = score(TRUTH, boxes, "kinds=both")
    assert result.code == 1
    result.reports("found.json: no segmentations, which segm needs; score bbox alone")
    assert score(TRUTH, FOUND, "kinds=masks").code == 2


def test_a_dry_run_reads_the_files(score):
    result = score(TRUTH, FOUND, "--dry-run")
    assert result.code == 0
    assert json.loads(result.out) == {"images": 2, "detections": 3}


def test_mistakes_are_one_line(score, commands):
    result = score(TRUTH, [*FOUND, {**FOUND[0], "image_id": 3}])
    assert result.code == 1
    result.reports("found.json: detection 4: image_id 3 is not among the images of ")
    result = score({"images": []}, FOUND)
    assert result.code == 1
    result.reports("truth.json: annotations is missing; expected an object with lists images")
    result = score(TRUTH | {"annotations": TRUTH["annotations"][1:]}, FOUND)
    assert result.code == 1
    result.reports("truth.json: no annotation but crowds, so there is no AP")
    assert (
        commands.run("instances", "score", "ground_truth=no.json", "detections=no.json").code == 2
    )
    assert commands.run("instances", "score").code == 2
