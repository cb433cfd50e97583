"""What commit 8b73b55 wrote is evaluated and read: see tests/golden/first_edition.

Its checkpoints are refused. Recorded numbers hold to tolerances that allow for other machines and
releases of torch, as in test_golden_losses.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hiera_video import load_features
from hiera_video.data import transforms
from hiera_video.video.sampling import resized_shape

GOLDEN = Path(__file__).parents[1] / "golden"
FINETUNE = (  # of the run `stopped`
    "finetune",
    "model.name=hiera_tiny_16x224",
    "model.num_frames=8",
    "model.image_size=32",
    "model.overrides={embed_dim: 4, num_heads: 1, stages: [1, 1], q_pool: 1, "
    "mask_unit_attn: [true, false], mask_unit: [1, 4, 4]}",
    "data.train=videos/train.csv",
    "data.val=videos/val.csv",
    "augment.crop_area=[0.4, 1]",
    "augment.rand_augment_magnitude=5",
    "augment.mixup=0.3",
    "augment.label_smoothing=0.05",
    "optim.optimizer=sgd",
    "optim.lr=0.2",
    "train.epochs=40",
    "train.ema_decay=0.8",
    "train.evaluate_every=5",
    "train.checkpoint_every=5",
    "train.warmup_epochs=2",
    "train.global_batch_size=4",
    "train.num_repeats=2",
    "train.precision=fp32",
    "train.log_every=10",
    "train.keep_checkpoints=1",
    "views.num_clips=2",
    "clips.sampling_rate=2",
    "data.num_workers=0",
    "device=cpu",
    "run_dir=stopped",
)
EXTRACT = (  # of `features` and `stopped_features`
    "extract",
    "checkpoint=classifier",
    "windows.clip_stride=4",
    "data.num_workers=1",
    "batch_size=2",
    "device=cpu",
)
NUM_SAVED = 20  # steps of the run `stopped` up to its checkpoint


@pytest.fixture
def edition(tmp_path, monkeypatch) -> Path:
    """A copy of the folder, with the videos, as the working directory."""
    folder = tmp_path / "edition"
    shutil.copytree(GOLDEN / "first_edition", folder)
    shutil.copytree(GOLDEN / "videos", folder / "videos")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def resized_as_then(monkeypatch):
    """Bilinear resizing of videos, without averaging; within this process alone."""

    def bilinear(frames, height, width):
        return transforms._resize(frames, height, width, cv2.INTER_LINEAR)

    monkeypatch.setattr(transforms, "_averaged", bilinear)
    monkeypatch.setattr(transforms, "scaled_shape", resized_shape)
    unbounded = property(lambda self: 10**6, lambda self, value: None)
    monkeypatch.setattr(transforms.PretrainTransform, "short_side", unbounded, raising=False)


@pytest.fixture(scope="module")
def expected():
    """What the commands printed and wrote with these weights."""
    return json.loads((GOLDEN / "first_edition" / "expected.json").read_text(encoding="utf-8"))


def succeed(commands, *arguments, code=0):
    """What a command prints."""
    result = commands.run(*arguments)
    assert result.code == code, result.err
    return result.out


def of_kind(lines, kind):
    return [line for line in lines if line["kind"] == kind]


# ---- the run


def test_the_stopped_run_is_refused(commands, edition):
    """Its checkpoint is a torch.distributed.checkpoint, which runs code when it is read."""
    before = (edition / "stopped" / "metrics.jsonl").read_bytes()
    result = commands.run(*FINETUNE)
    assert result.code == 1
    step = f"stopped/checkpoints/step_{NUM_SAVED:08d}"
    result.reports(step, "written by version 0.1", "run code", f"model.init={step}/weights")
    assert (edition / "stopped" / "metrics.jsonl").read_bytes() == before
    assert not (edition / "stopped" / "weights").exists()


def test_a_new_run_starts_from_the_weights_of_the_stopped_one(commands, edition):
    weights = f"stopped/checkpoints/step_{NUM_SAVED:08d}/weights"
    result = commands.run(*FINETUNE, "run_dir=new", f"model.init={weights}", "train.epochs=3")
    assert result.code == 0, result.err
    result.reports(f"{weights} (hiera_video layout)", "100.0% of the parameters")


@pytest.mark.skipif(
    not torch.__version__.startswith("2.14."),
    reason="recorded with torch 2.14; other releases may draw other random weights, as 2.11 does",
)
def test_the_same_command_still_trains_the_same(commands, edition, lines_of, resized_as_then):
    succeed(commands, *FINETUNE, "run_dir=new")
    lines = lines_of(edition / "new" / "metrics.jsonl")
    of_then = lines_of(edition / "classifier_metrics.jsonl")
    assert [(line["step"], line["kind"]) for line in lines] == [
        (line["step"], line["kind"]) for line in of_then
    ]
    for key, tolerance in (("loss", 5e-3), ("lr", 1e-6), ("grad_norm", 2e-2)):
        np.testing.assert_allclose(
            [line[key] for line in of_kind(lines, "train")],
            [line[key] for line in of_kind(of_then, "train")],
            rtol=tolerance,
        )
    for line, then in zip(of_kind(lines, "val"), of_kind(of_then, "val"), strict=True):
        assert line | then == line  # which has figures that there were not then

    weights = load_file(edition / "new" / "weights" / "model.safetensors")
    of_the_end = load_file(edition / "classifier" / "model.safetensors")
    assert weights.keys() == of_the_end.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, of_the_end[name], atol=1e-3, err_msg=name)
    config, config_of_the_end = (
        json.loads((edition / folder / "config.json").read_text(encoding="utf-8"))
        for folder in ("new/weights", "classifier")
    )
    assert config_of_the_end.items() <= config.items()  # later code may add


# ---- weights


def test_evaluate(commands, edition, expected, resized_as_then):
    out = succeed(
        commands,
        "evaluate",
        "checkpoint=classifier",
        "data.val=videos/val.csv",
        "output_dir=evaluated",
        "data.num_workers=0",
        "device=cpu",
        "--json",
    )
    report = json.loads(out)
    for key in ("video", "clip"):
        assert report[key]["top1"] == expected["evaluate"][key]["top1"]
    for key in ("expected", "decoded", "failed", "views", "short_side"):
        assert report[key] == expected["evaluate"][key]
    with np.load(edition / "evaluated" / "scores.npz") as scores:
        np.testing.assert_allclose(scores["scores"], expected["scores"], atol=1e-3)


def test_predict(commands, edition, expected):
    out = succeed(
        commands, "predict", "videos/val_0.mp4", "checkpoint=classifier", "device=cpu", "--json"
    )
    classes, of_then = json.loads(out)["classes"], expected["predict"]["classes"]
    assert [c["class"] for c in classes] == [c["class"] for c in of_then]
    probabilities = [c["probability"] for c in of_then]
    assert [c["probability"] for c in classes] == pytest.approx(probabilities, abs=1e-3)


def test_detect_evaluate(commands, edition, expected):
    out = succeed(
        commands,
        "detect",
        "evaluate",
        "checkpoint=detector",
        "data.val=videos/val_boxes.csv",
        "output_dir=detected",
        "device=cpu",
        "--json",
    )
    report, of_then = json.loads(out), expected["detect evaluate"]
    for key in ("boxes", "expected", "decoded", "failed", "keyframes"):
        assert report[key] == of_then[key]
    for protocol, part in of_then["protocols"].items():
        assert report["protocols"][protocol]["mean_ap"] == pytest.approx(part["mean_ap"])
        assert report["protocols"][protocol]["classes"] == part["classes"]
    detections = [
        line.split(",") for line in (edition / "detected" / "detections.csv").read_text().split()
    ]
    of_then = [line.split(",") for line in expected["detections"]]
    assert [row[:-1] for row in detections] == [row[:-1] for row in of_then]
    scores = [float(row[-1]) for row in of_then]
    assert [float(row[-1]) for row in detections] == pytest.approx(scores, abs=1e-3)


def test_visualize_mae(commands, edition, expected, resized_as_then):
    out = succeed(
        commands,
        "visualize",
        "mae",
        "videos/val_0.mp4",
        "checkpoint=autoencoder",
        "output_dir=visualized",
        "device=cpu",
        "--json",
    )
    report, of_then = json.loads(out), expected["visualize mae"]
    assert report["loss"] == pytest.approx(of_then["loss"], rel=1e-3)
    for kind in ("png", "mp4"):
        assert report[kind] == of_then[kind]
        assert (edition / report[kind]).stat().st_size > 0


def test_extract_from_the_autoencoder(commands, edition, expected):
    """Up to 0.02, by which averaging of areas in decoding processes changes these features."""
    succeed(
        commands,
        "extract",
        "videos/val_0.mp4",
        "checkpoint=autoencoder",
        "output_dir=extracted",
        "device=cpu",
    )
    (output,) = (edition / "extracted").rglob("*.npz")
    np.testing.assert_allclose(load_features(output).features, expected["extract"], atol=3e-2)


# ---- features


def test_features_are_read(edition, lines_of):
    index = {row["video"]: row for row in lines_of(edition / "features" / "index.jsonl")}
    assert index.keys() == {f"videos/val_{number}.mp4" for number in range(4)}
    for video, row in index.items():
        loaded = load_features(edition / "features" / row["output"])
        assert loaded.features.shape == (row["num_windows"], 8)
        assert loaded.features.dtype == np.float32
        starts = np.arange(row["num_windows"]) * 4 / 12
        np.testing.assert_allclose(loaded.start_sec, starts)
        ends = np.minimum(starts + 16 / 12, row["duration_sec"])
        np.testing.assert_allclose(loaded.end_sec, ends)
        np.testing.assert_allclose(loaded.center_sec, (starts + ends) / 2)
        assert loaded.metadata["video"] == video
        assert loaded.metadata["settings"]["clip_stride"] == 4


@pytest.mark.parametrize("folder", ["features", "stopped_features"])
def test_features_are_not_mixed_with_those_of_today(folder, commands, edition):
    """Videos were resized in another way."""
    files = {path: path.stat().st_mtime_ns for path in (edition / folder).rglob("*.npz")}
    arguments = (*EXTRACT, "listed.csv", f"output_dir={folder}")
    result = commands.run(*map(str, arguments))
    assert result.code == 1
    result.reports("made with other settings (an earlier version, which resized videos")
    assert files == {path: path.stat().st_mtime_ns for path in files}
    report = json.loads(succeed(commands, *arguments, "--overwrite", "--json"))
    assert (report["done"], report["failed"]) == (4, 0)
