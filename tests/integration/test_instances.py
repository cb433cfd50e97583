"""`instances train`, `evaluate` and `predict` on tiny generated pictures, end to end."""

import json
import os
import signal
import time

import cv2
import numpy as np
import pytest
import torch

from hiera_video.data.instances.masks import bitmap
from hiera_video.demo.shapes import CLASSES
from hiera_video.models.pretrained import load_model
from tests.integration.tiny_instances import (
    NUM_TRAIN,
    NUM_VAL,
    changed,
    evaluation,
    prediction,
    report_in,
    training,
)

pytest.importorskip("faster_coco_eval")

# ---- training


def test_the_run_folder(shapes, segmenter, lines_of):
    names = {path.name for path in segmenter.iterdir()} - {"tb", "printed.json"}
    assert names == {
        "config.yaml",
        "run.json",
        "train.log",
        "metrics.jsonl",
        "checkpoints",
        "weights",
        ".lock",
    }
    printed = json.loads((segmenter / "printed.json").read_text())
    assert (printed["steps"], printed["read"]) == (4, NUM_TRAIN + NUM_VAL)
    *steps, val = lines_of(segmenter / "metrics.jsonl")
    assert sum(line["num_clips"] for line in steps) == 2 * NUM_TRAIN
    assert {line["kind"] for line in steps} == {"train"}
    assert 0 <= val["ap_bbox"] <= 1
    assert 0 <= val["ap_segm"] <= 1
    model, card = load_model(segmenter, kind="segmenter")
    assert card.label_map == dict(enumerate(CLASSES, start=1))
    assert model.segmenter_architecture == {"num_classes": 3, "channels": 8, "hidden": 16}
    assert json.loads((segmenter / "run.json").read_text())["data"]["pictures"] == NUM_TRAIN


def test_dry_run_does_nothing(commands, shapes, tmp_path):
    result = commands.run(*training(shapes, tmp_path / "run", "--dry-run"))
    assert result.code == 0, result.err
    assert f"{NUM_TRAIN} training pictures with " in result.out
    assert " objects of 3 classes" in result.out
    assert " in a forward pass) = 0." in result.out
    assert not (tmp_path / "run").exists()


def test_a_start_from_others_keeps_what_it_knows(commands, shapes, segmenter, tmp_path):
    """All of a segmenter; its heads without the classes, if these are others."""
    still = ("train.epochs=0.1", "optim.lr=1e-30", "optim.final_lr=0", "optim.warmup_lr=0")

    def rename(content):
        content["categories"][1]["name"] = "box"

    other = changed(shapes.train, tmp_path / "other.json", rename)
    before, _ = load_model(segmenter)
    for name, more, text in (("same", [], ""), ("other", [f"data.train={other}"], "other classes")):
        run = training(shapes, tmp_path / name, f"model.init={segmenter}", *still, *more)
        result = commands.run(*run)
        assert result.code == 0, result.err
        assert text in result.err
        after, card = load_model(tmp_path / name)
        changes = {
            key.rpartition(".")[0]
            for key, value in after.named_parameters()
            if not torch.allclose(value, before.get_parameter(key), atol=1e-20)
        }
        if name == "same":
            assert not changes
        else:
            assert card.label_map[2] == "box"
            assert {key.rpartition(".")[0] for key in changes} == {
                "roi_heads.box_predictor",
                "roi_heads.mask_predictor",
            }


def test_few_pictures_are_learnt_by_heart(commands, shapes, tmp_path, lines_of):
    overrides = ("train.epochs=30", "optim.lr=3e-3", "augment.scale=[1,1]", "augment.flip=false")
    wider = ("model.overrides.embed_dim=16", "model.channels=16", "model.hidden=64")
    result = commands.run(*training(shapes, tmp_path / "run", *overrides, *wider))
    assert result.code == 0, result.err
    losses = [line["loss"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 60
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])


def test_killed_and_resumed_equals_uninterrupted(commands, shapes, tmp_path, weights_of):
    overrides = ("train.epochs=6", "train.checkpoint_every=0.5", "model.drop_path=0.3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert commands.run(*training(shapes, whole, *overrides)).code == 0
    process = commands.fork(*training(shapes, broken, *overrides))
    metrics, deadline = broken / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert commands.exit_code(process) == -signal.SIGKILL
    assert not (broken / "weights").exists()
    result = commands.run(*training(shapes, broken, *overrides))
    assert "resumed from" in result.err
    assert weights_of(broken) == weights_of(whole)


# ---- evaluation


def test_evaluation_is_what_others_say_of_its_detections(
    commands, shapes, segmenter, tmp_path, lines_of
):
    """`instances score` and pycocotools; of masks without boxes, as detectron2 has pycocotools
    score them; and the validation during training."""
    result = commands.run(*evaluation(shapes, segmenter, tmp_path))
    assert result.code == 0, result.err
    report = report_in(tmp_path)
    assert (report["expected"], report["decoded"], report["failed"]) == (NUM_VAL, NUM_VAL, [])
    assert f"{NUM_VAL} of {NUM_VAL} pictures decoded, 0 failed" in result.out
    assert f"detections: {report['detections']['detections']} of {tmp_path}" in result.out
    found = json.loads((tmp_path / "detections.json").read_text())
    assert len(found) > 20
    of_masks = tmp_path / "masks.json"
    without = [{k: v for k, v in row.items() if k != "bbox"} for row in found]
    of_masks.write_text(json.dumps(without))
    last = lines_of(segmenter / "metrics.jsonl")[-1]
    for kind, path in (("bbox", tmp_path / "detections.json"), ("segm", of_masks)):
        figures = report["kinds"][kind]
        score = ("instances", "score", f"ground_truth={shapes.val}", f"detections={path}")
        scored = commands.run(*score, f"kinds={kind}", "--json")
        assert json.loads(scored.out)["kinds"][kind] == figures
        by_others = pycocotools_figures(shapes.val, path, kind)
        ours = [-1 if value is None else value for value in figures.values()]
        assert ours == pytest.approx(by_others, abs=1e-9)
        assert last[f"ap_{kind}"] == pytest.approx(figures["ap"])
    assert max(report["kinds"]["bbox"].values(), key=lambda v: v or 0) > 0

    again = commands.run(*evaluation(shapes, segmenter, tmp_path))
    assert again.code == 1
    again.reports(str(tmp_path / "report.json"), "overwrite=true")


def pycocotools_figures(truth, detections, kind):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = COCO(str(truth))
    scorer = COCOeval(known, known.loadRes(str(detections)), kind)
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return scorer.stats.tolist()


def test_masks_lie_in_their_boxes(commands, shapes, segmenter, tmp_path):
    """Which lie in the pictures, of any shape."""
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), cv2.imread(str(shapes.example))[:70])

    def crop(content):
        content["images"] = [
            {**content["images"][0], "height": 70, "file_name": str(wide)},
        ]
        content["annotations"] = [
            {"id": 1, "image_id": content["images"][0]["id"], "category_id": 2, "area": 9}
            | {"bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}
        ]

    val = changed(shapes.val, tmp_path / "val.json", crop)
    result = commands.run(*evaluation(shapes, segmenter, tmp_path / "out", f"data.val={val}"))
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    num_seen = 0
    for row in found:
        x, y, width, height = row["bbox"]
        assert min(x, y) >= -1e-3
        assert x + width <= 128 + 1e-3
        assert y + height <= 70 + 1e-3
        rows, columns = np.nonzero(bitmap(row["segmentation"], 70, 128))
        num_seen += len(rows) > 0
        if len(rows):
            margin = 2.5  # by which `MASK_SHIFT` moves masks, and a part of a pixel
            assert x - margin <= columns.min() <= columns.max() + 1 <= x + width + margin
            assert y - margin <= rows.min() <= rows.max() + 1 <= y + height + margin
    assert num_seen > 5


def test_dry_run_of_evaluation(commands, shapes, segmenter, tmp_path):
    result = commands.run(*evaluation(shapes, segmenter, tmp_path / "out", "--dry-run"))
    assert result.code == 0, result.err
    assert json.loads(result.out) == {
        "pictures": NUM_VAL,
        "unreadable": {},
        "input_size": [64, 64],
        "backend": "pyav",
        "precision": "fp32",
    }
    assert not (tmp_path / "out").exists()


def test_shuffled_labels_give_nothing(commands, shapes, segmenter, tmp_path):
    """The masks of a picture as detections, with the classes and places of others."""
    truth = json.loads(shapes.val.read_text())
    rows = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")}, "score": 0.9}
        for a in truth["annotations"]
    ]

    def ap_50(rows):
        (tmp_path / "found.json").write_text(json.dumps(rows))
        files = (f"ground_truth={shapes.val}", f"detections={tmp_path / 'found.json'}")
        result = commands.run("instances", "score", *files, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)["kinds"]["segm"]["ap_50"]

    assert ap_50(rows) == pytest.approx(1)
    moved = [row | {"image_id": (row["image_id"] + 1) % NUM_VAL} for row in rows]
    assert ap_50(moved) < 0.1
    assert ap_50([row | {"category_id": row["category_id"] % 3 + 1} for row in rows]) < 0.1


@pytest.mark.parametrize("how", ["two workers", "two processes"])
def test_one_way_or_another_the_same(
    commands, shapes, segmenter, broken_shapes, tmp_path, how, weights_of
):
    """Of pictures of which one cannot be read."""
    folders = [tmp_path / "one", tmp_path / "two"]
    given = (f"data.root={broken_shapes}", "precision=fp32")
    alone = commands.run(*evaluation(shapes, segmenter, folders[0], *given))
    assert alone.code == 3
    command = evaluation(shapes, segmenter, folders[1], *given)
    if how == "two workers":
        results = [commands.run(*command, "data.num_workers=2")]
        run = commands.run(*training(shapes, tmp_path / "run", "data.num_workers=2"))
        assert run.code == 0, run.err
        assert weights_of(tmp_path / "run") == weights_of(segmenter)
    else:
        results = commands.together(*command)
    assert {result.code for result in results} == {3}, results
    one, two = map(report_in, folders)
    for report in (one, two):
        assert report.pop("environment")
        report["detections"].pop("file")
    assert one["failed"] == two["failed"]
    assert one["kinds"] == two["kinds"]
    ours, theirs = (json.loads((folder / "detections.json").read_text()) for folder in folders)
    assert [row["image_id"] for row in ours] == [row["image_id"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_training_on_two_processes(commands, shapes, broken_shapes, tmp_path, lines_of):
    """Seven pictures in batches of four, one of which no process can read."""
    overrides = (f"data.root={broken_shapes}", f"data.val={shapes.val}", "train.epochs=1")
    overrides = (*overrides, f"data.val_root={shapes.pictures}", "data.max_failed_frac=0.5")
    results = commands.together(*training(shapes, tmp_path / "run", *overrides))
    assert [result.code for result in results] == [3, 3], results
    *steps, val = lines_of(tmp_path / "run" / "metrics.jsonl")
    assert sum(line["num_clips"] for line in steps) == NUM_TRAIN - 1
    assert all(np.isfinite(line["loss"]) for line in steps)
    assert val["decoded"] == NUM_VAL


# ---- prediction


def test_prediction(commands, shapes, segmenter, tmp_path):
    """The objects of evaluation, and a drawing."""
    assert commands.run(*evaluation(shapes, segmenter, tmp_path / "eval")).code == 0
    result = commands.run(*prediction(segmenter, tmp_path, shapes.example, "--json"))
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    written = json.loads((tmp_path / "val_0000_objects.json").read_text())
    assert printed["objects"] == written["objects"]
    assert (written["height"], written["width"]) == (128, 128)
    image = json.loads(shapes.val.read_text())["images"][0]
    expected = [
        row
        for row in json.loads((tmp_path / "eval" / "detections.json").read_text())
        if row["image_id"] == image["id"]
    ]
    assert len(expected) == len(written["objects"]) > 0
    for found, row in zip(written["objects"], expected, strict=True):
        assert found["name"] == CLASSES[row["category_id"] - 1]
        assert found["score"] == pytest.approx(row["score"], abs=0.02)
    scores = [found["score"] for found in written["objects"]]
    assert scores == sorted(scores, reverse=True)
    drawn = cv2.imread(str(tmp_path / "val_0000_overlay.png"))
    assert drawn.shape[0] >= 128
    picture = cv2.imread(str(shapes.example))
    assert np.abs(cv2.resize(drawn, (128, 128)).astype(int) - picture).mean() > 1

    dry = commands.run(*prediction(segmenter, tmp_path / "dry", shapes.example, "--dry-run"))
    assert dry.out.split() == [
        str(tmp_path / "dry" / f"val_0000_{end}") for end in ("objects.json", "overlay.png")
    ]
    assert not (tmp_path / "dry").exists()


def test_masks_are_drawn(commands):
    """Inside of an object every pixel is tinted; elsewhere none is changed."""
    from hiera_video.commands.instances_predict import drawn

    picture = np.full((300, 400, 3), 100, np.uint8)
    polygon = [[100, 100, 300, 100, 300, 250, 100, 250]]
    box = {"bbox": [100, 100, 200, 150], "segmentation": polygon, "name": "disc", "score": 0.9}
    objects = [{**box, "segmentation": {"size": [300, 400], "counts": run_lengths(polygon)}}]
    found = drawn(picture, objects)  # enlarged
    found = cv2.resize(found, (400, 300), interpolation=cv2.INTER_NEAREST)
    inside = found[160:240, 110:290]
    assert (inside == inside[0, 0]).all()
    assert (inside[0, 0] != 100).any()
    assert (found[:60] == 100).all()
    assert (found[256:] == 100).all()


def run_lengths(polygon):
    from hiera_video.data.instances.masks import mask_library

    library = mask_library()
    return library.merge(library.frPyObjects(polygon, 300, 400))["counts"].decode()


def test_pictures_that_cannot_be_predicted(
    commands, shapes, segmenter, diverged_segmenter, tmp_path
):
    (tmp_path / "text.png").write_text("no picture")
    result = commands.run(
        *prediction(segmenter, tmp_path / "a", tmp_path / "text.png", shapes.example)
    )
    assert result.code == 3
    assert f"{tmp_path / 'text.png'}" in result.out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "val_0000_objects.json",
        "val_0000_overlay.png",
    }
    result = commands.run(*prediction(diverged_segmenter, tmp_path / "b", shapes.example))
    assert result.code == 1
    assert "its objects are not finite" in result.out
    assert commands.run(*prediction(segmenter, tmp_path / "c", tmp_path / "no.png")).code == 2


def test_the_pictures_of_a_folder(commands, shapes, segmenter, tmp_path):
    folder = tmp_path / "my pictures" / "inside"
    folder.mkdir(parents=True)
    (folder / "café 1.png").write_bytes(shapes.example.read_bytes())
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture, by its name")
    command = prediction(segmenter, tmp_path / "out", tmp_path / "my pictures", shapes.example)
    for more in (["--dry-run"], []):
        result = commands.run(*command, *more)
        assert result.code == 3
        (line,) = [line for line in (result.err + result.out).split("\n") if "libav" in line]
        assert str(folder / "text.png") in line
        assert (tmp_path / "out").exists() != bool(more)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}_{end}"
        for name in ("café 1", "val_0000")
        for end in ("objects.json", "overlay.png")
    }
