"""Bad pictures, lists, settings and weights given to `instances train`, `evaluate`, `predict`."""

import json
import sys

import numpy as np
import pytest
import torch

from hiera_video.models.pretrained import create_model
from hiera_video.models.saving import save_model
from tests.integration.tiny_instances import (
    CONFIG,
    NUM_VAL,
    changed,
    evaluation,
    prediction,
    report_in,
    training,
)

pytest.importorskip("faster_coco_eval")

# ---- bad pictures


def test_pictures_that_cannot_be_read_count_as_missed(
    commands, shapes, segmenter, broken_shapes, tmp_path
):
    """One that is missing, one that is no picture, one of another size, and a video."""
    (tmp_path / "pictures").mkdir()
    for path in broken_shapes.iterdir():
        (tmp_path / "pictures" / path.name).symlink_to(path.resolve())
    (tmp_path / "pictures" / "val_0003.png").unlink()

    def change(content):
        content["images"][0]["height"] = 130
        for annotation in content["annotations"]:
            if annotation["image_id"] == content["images"][0]["id"]:
                annotation["segmentation"] = [[1, 1, 50, 1, 50, 50]]
        content["images"][4]["file_name"] = str(commands.toy / "val_0.mp4")

    val = changed(shapes.val, tmp_path / "val.json", change)
    given = (f"data.val={val}", f"data.root={tmp_path / 'pictures'}")
    result = commands.run(*evaluation(shapes, segmenter, tmp_path / "out", *given))
    assert result.code == 3
    assert "Traceback" not in result.err
    report = report_in(tmp_path / "out")
    assert (report["expected"], report["decoded"]) == (5, 1)
    causes = {failure["name"]: failure["cause"] for failure in report["failed"]}
    assert list(causes)[:3] == ["val_0000.png", "val_0001.png", "val_0003.png"]
    assert causes["val_0003.png"] == "missing"
    assert set(list(causes.values())[:2]) == {"not_a_video"}
    size, *_, video = report["failed"]
    assert size["message"] == (
        f"{tmp_path}/pictures/val_0000.png: is 128 x 128 pixels (height x width), and image 0 of "
        "its list 130 x 128: correct the list, or fetch the picture again"
    )
    assert "frames: expected a picture" in video["message"]
    for failure in report["failed"]:
        assert f"failed: {failure['message']}" in result.out.splitlines()
    labels = json.loads(val.read_text())["annotations"]
    assert sum(row["objects"] for row in report["classes"]) == len(labels)

    dry = commands.run(*evaluation(shapes, segmenter, tmp_path / "dry", *given, "--dry-run"))
    assert dry.code == 3
    assert json.loads(dry.out)["unreadable"]["missing"] == 1


def test_bad_pictures_are_skipped_counted_and_listed(
    commands, shapes, broken_shapes, tmp_path, lines_of
):
    given = (f"data.root={broken_shapes}", "data.max_failed_frac=0.5", "train.epochs=1")
    result = commands.run(*training(shapes, tmp_path / "run", *given))
    assert result.code == 3
    (failed,) = lines_of(tmp_path / "run" / "failures.jsonl")
    assert failed["name"] == "train_0002.png"
    assert sum(line["num_clips"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")) == 6


def test_objects_that_are_not_finite(commands, shapes, diverged_segmenter, tmp_path):
    result = commands.run(*evaluation(shapes, diverged_segmenter, tmp_path / "out"))
    assert result.code == 1
    report = report_in(tmp_path / "out")
    assert report["decoded"] == 0
    assert {failure["cause"] for failure in report["failed"]} == {"not_finite"}
    assert report["kinds"]["segm"]["ap"] == 0
    init = (f"model.init={diverged_segmenter}", f"data.val={shapes.val}", "train.epochs=1")
    result = commands.run(*training(shapes, tmp_path / "run", *init))
    assert result.code == 1
    result.reports("weights are not finite", "optim.lr")


# ---- bad lists


def without(key):
    def change(content):
        del content["annotations"][2][key]

    return change


def only_crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def other_name(content):
    content["categories"][1]["name"] = "box"


@pytest.mark.parametrize(
    ("key", "change", "parts"),
    [
        ("train", lambda c: c.pop("images"), ["images is missing"]),
        ("val", lambda c: c.pop("images"), ["images is missing"]),
        ("train", without("segmentation"), ["annotation 3: segmentation is missing"]),
        ("val", without("segmentation"), ["annotation 3: segmentation is missing"]),
        ("val", without("area"), ["annotation 3: area is missing"]),
        ("train", only_crowds, ["no annotation of an object"]),
        ("val", only_crowds, ["no annotation but crowds"]),
        ("val", other_name, ["other categories: 'box' with id 2"]),
    ],
)
def test_a_list_that_cannot_be_used_is_named_at_once(
    commands, shapes, segmenter, tmp_path, key, change, parts
):
    bad = changed(getattr(shapes, key), tmp_path / "bad.json", change)
    ways = [training(shapes, tmp_path / "run", f"data.val={shapes.val}", f"data.{key}={bad}")]
    if key == "val":
        ways.append(evaluation(shapes, segmenter, tmp_path / "out", f"data.val={bad}"))
    for command in ways:
        result = commands.run(*command, "--dry-run")
        assert result.code == 1
        result.reports("bad.json", *parts)
        assert commands.run(*command).code == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_odd_but_clear_is_used(commands, shapes, segmenter, tmp_path, lines_of):
    """Two records of one file, two categories of one name, ids from 0 and with gaps, objects
    without an area, without a mask if they are crowds, and pictures without any."""

    def change(content):
        content["images"].append({**content["images"][0], "id": 2**40})
        for category, id in zip(content["categories"], (0, 7, 2**33), strict=True):
            category |= {"id": id, "name": "shape" if id else "disc"}
        ids = (0, 7, 2**33)
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"] - 1]
        first, second = content["annotations"][:2]
        first["bbox"] = [5, 5, 0, 4]
        second |= {"iscrowd": 1}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    train, val = (
        changed(path, tmp_path / path.name, change) for path in (shapes.train, shapes.val)
    )
    lists = (f"data.train={train}", f"data.val={val}", "train.epochs=1")
    result = commands.run(*training(shapes, tmp_path / "run", *lists))
    assert result.code == 0, result.err
    command = evaluation(shapes, tmp_path / "run", tmp_path / "out", f"data.val={val}")
    result = commands.run(*command)
    assert result.code == 0, result.err
    report = report_in(tmp_path / "out")
    assert report["decoded"] == NUM_VAL + 1
    assert [row["id"] for row in report["classes"]] == [0, 7, 2**33]
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["category_id"] for row in found} <= {0, 7, 2**33}
    boxes = [[r["bbox"] for r in found if r["image_id"] == id] for id in (0, 2**40)]
    assert np.allclose(*boxes, atol=0.5)


def test_what_may_be_a_mistake_is_named_with_file_and_id(commands, shapes, tmp_path):
    """Boxes without area and beside the picture, and classes that flips or spellings mix up."""

    def change(content):
        content["annotations"][1]["bbox"] = [5, 5, 0, 4]
        content["annotations"][2]["bbox"] = [500, 5, 9, 4]
        for category, name in zip(content["categories"], ("left hand", "Cup", "cup"), strict=True):
            category["name"] = name

    train, val = (
        changed(path, tmp_path / path.name, change) for path in (shapes.train, shapes.val)
    )
    lists = (f"data.train={train}", f"data.val={val}", "--dry-run")
    result = commands.run(*training(shapes, tmp_path / "run", *lists))
    assert result.code == 0, result.err
    for path in (train, val):
        assert (
            f"{path}: 1 annotation with a box without area; the first is annotation 2" in result.err
        )
        beyond = "1 annotation with a box that reaches more than a pixel beyond the image"
        assert f"{path}: {beyond}; the first is annotation 3" in result.err
    assert "augment.flip is true" in result.err
    assert "'Cup' and 'cup'" in result.err


# ---- bad settings and weights


@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        (
            "model.name=hiera_tiny_16x224",
            2,
            ["hiera_tiny_16x224 is a video model", ": hiera_tiny_224, "],
        ),
        ("model.image_size=72", 2, ["(1, 72, 72)", "(1, 64, 64)"]),
        ("model.channels=0", 2, ["model.channels", "0"]),
        ("augment.scale=[2,1]", 2, ["augment.scale is [2, 1]"]),
        ("data.train=/nowhere.json", 2, ["data.train is '/nowhere.json'"]),
    ],
)
def test_a_mistake_is_reported_in_one_line(commands, shapes, tmp_path, override, code, parts):
    result = commands.run(*training(shapes, tmp_path / "run", override))
    assert result.code == code, result.err
    result.reports(*parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_of_another_kind_are_named(commands, shapes, segmenter, tmp_path):
    torch.manual_seed(0)
    overrides = CONFIG["model"]["overrides"]
    classifier = create_model("hiera_tiny_224", num_classes=3, image_size=64, **overrides)
    save_model(tmp_path / "w", classifier)
    for command in (
        evaluation(shapes, tmp_path / "w", tmp_path / "out"),
        prediction(tmp_path / "w", tmp_path / "out", shapes.example),
    ):
        result = commands.run(*command)
        assert result.code == 1
        result.reports("is a classifier; expected an instance segmenter", "instances train")
    for name in ("evaluate", "predict", "detect evaluate"):
        val = commands.toy / "val.csv"
        given = [f"data.val={val}"] if "evaluate" in name else [str(shapes.example)]
        if name == "detect evaluate":
            given.append(f"data.root={commands.toy}")
        given += [f"checkpoint={segmenter}", f"output_dir={tmp_path / 'out'}"]
        given = given if name != "predict" else given[:2]
        result = commands.run(*name.split(), *given, "device=cpu")
        assert result.code == 1, result.err
        result.reports("is an instance segmenter; expected ", "hiera-video instances")
    assert not (tmp_path / "out").exists()


def test_without_the_library_of_masks(commands, shapes, segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    for command in (
        training(shapes, tmp_path / "run"),
        evaluation(shapes, segmenter, tmp_path / "out"),
        prediction(segmenter, tmp_path / "out", shapes.example),
    ):
        result = commands.run(*command)
        assert result.code == 1
        result.reports("pip install 'hiera-video[instances]'")
    assert not (tmp_path / "run").exists()
