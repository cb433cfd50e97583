"""Commands on any device, with what is compared between devices: for a GPU, and for a fake one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from hiera_video import load_features
from hiera_video.demo.actions import DemoAvaData, generate
from hiera_video.demo.shapes import DemoInstancesData
from tests.integration import tiny_instances as tiny
from tests.integration.conftest import Commands
from tests.integration.test_detect import CONFIG, evaluation, training

Numbers = dict[str, Any]  # arrays and floats by name


@dataclass(frozen=True)
class Material:
    """Data, and what was trained on it on the CPU."""

    commands: Commands
    ava: DemoAvaData
    shapes: DemoInstancesData
    classifier: Path
    autoencoder: Path
    detector: Path
    segmenter: Path

    def run(self, *arguments: object) -> str:
        result = self.commands.run(*arguments)
        assert result.code == 0, result.err
        return result.out

    def train(self, name: str, run_dir: Path, *overrides: object) -> Numbers:
        """Weights and losses of a training run on `overrides`, device=... among them."""
        self.run(*TRAININGS[name](self, run_dir), *overrides)
        lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
        losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
        return {"loss": np.array(losses)} | load_file(run_dir / "weights" / "model.safetensors")

    def infer(self, name: str, output: Path, *overrides: object) -> Numbers:
        """The numbers that a command gives."""
        return INFERENCES[name](self, output, overrides)


@pytest.fixture(scope="session")
def material(
    commands: Commands,
    shapes: DemoInstancesData,
    trained: Path,
    segmenter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Material:
    folder = tmp_path_factory.mktemp("material")
    data = DemoAvaData(folder / "ava")
    generate(data, seed=3, train_videos=2, val_videos=2)
    paths = {"root": data.videos, "label_map": data.label_map, "train": data.train}
    config: dict[str, Any] = CONFIG | {"data": {key: str(path) for key, path in paths.items()}}
    config["data"]["num_workers"] = 0
    (data.folder / "base.yaml").write_text(yaml.safe_dump(config))
    runs = [folder / name for name in ("autoencoder", "detector")]
    made = Material(commands, data, shapes, trained, *runs, segmenter)
    made.train("pretrain", runs[0], "train.epochs=1")
    made.train("detect", runs[1], "train.epochs=0.5")
    return made


TRAININGS: dict[str, Callable[[Material, Path], Any]] = {
    "finetune": lambda m, run_dir: m.commands.finetune(
        run_dir,
        f"data.val={m.commands.toy / 'val.csv'}",
        *("augment.mixup=0.8", "augment.cutmix=1", "train.ema_decay=0.9", "train.epochs=2"),
    ),
    "pretrain": lambda m, run_dir: m.commands.pretrain(run_dir, "train.epochs=2"),
    "detect": lambda m, run_dir: training(m.ava, run_dir, "train.epochs=1"),
    "instances": lambda m, run_dir: tiny.training(m.shapes, run_dir, "train.epochs=1"),
}


def _evaluate(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    data = (f"data.val={m.commands.toy / 'val.csv'}", "data.num_workers=0")
    m.run("evaluate", f"checkpoint={m.classifier}", f"output_dir={output}", *data, *overrides)
    with np.load(output / "scores.npz") as scores:
        return {"scores": scores["scores"]}


def _predict(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    video = m.commands.toy / "val_0.mp4"
    text = m.run("predict", f"checkpoint={m.classifier}", video, "--json", *overrides)
    return {one["class"]: one["probability"] for one in json.loads(text)["classes"]}


def _extract(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    videos = [m.commands.toy / f"val_{i}.mp4" for i in range(3)]
    how = (f"checkpoint={m.classifier}", f"output_dir={output}", "windows.clip_stride=3")
    m.run("extract", *videos, *how, *overrides)
    return {path.stem: load_features(path).features for path in output.rglob("*.npz")}


def _detect_evaluate(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    m.run(*evaluation(m.ava, m.detector, output), *overrides)
    rows = [line.split(",") for line in (output / "detections.csv").read_text().splitlines()]
    return {"scores": np.array([float(row[-1]) for row in rows])}


def _instances_evaluate(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    m.run(*tiny.evaluation(m.shapes, m.segmenter, output), *overrides)
    found = json.loads((output / "detections.json").read_text())
    return {"scores": np.array([one["score"] for one in found])}


def _detect_predict(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    video = m.commands.toy / "val_0.mp4"
    boxes = output.with_suffix(".csv")
    boxes.write_text("val_0,0.2,0.5,0.1,0.9,0.9,,0.95\nval_0,0.4,0.1,0.2,0.4,1,,1\n")
    how = (f"checkpoint={m.detector}", f"output_dir={output}", f"boxes={boxes}", "min_score=0")
    m.run("detect", "predict", video, *how, *overrides)
    said = json.loads((output / "val_0_detections.json").read_text("utf-8"))
    return {str(n): keyframe["second"] for n, keyframe in enumerate(said["keyframes"])}


def _instances_predict(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    picture = next(m.shapes.pictures.glob("val_*.png"))
    m.run(*tiny.prediction(m.segmenter, output, picture), *overrides)
    return {}


def _visualize(m: Material, output: Path, overrides: tuple[object, ...]) -> Numbers:
    video = m.commands.toy / "val_0.mp4"
    allowed = [o for o in overrides if "precision" not in str(o)]
    for kind, checkpoint, *how in (
        ("mae", m.autoencoder, "mode=ground_truth_statistics"),  # of colours
        ("attention", m.classifier),
    ):
        how += [f"checkpoint={checkpoint}", f"output_dir={output / kind}"]
        m.run("visualize", kind, video, *how, *allowed)
    return {}


INFERENCES: dict[str, Callable[[Material, Path, tuple[object, ...]], Numbers]] = {
    "evaluate": _evaluate,
    "predict": _predict,
    "extract": _extract,
    "detect evaluate": _detect_evaluate,
    "detect predict": _detect_predict,
    "instances evaluate": _instances_evaluate,
    "instances predict": _instances_predict,
    "visualize": _visualize,
}


def assert_near(found: Numbers, expected: Numbers, tolerance: float) -> None:
    """Numbers are equal within a share of the standard deviation of the right ones."""
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        right = np.asarray(right, np.float64)
        scale = max(float(right.std()), float(np.abs(right).max(initial=0)) * 0.1)
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64),
            right,
            rtol=0,
            atol=tolerance * scale + 1e-7,
            err_msg=name,
        )


def assert_trained_alike(name: str, found: Numbers, expected: Numbers) -> None:
    """Losses agree; so do weights, up to the directions in which the gradient is rounding alone.

    torchvision suppresses boxes in another way on CUDA: from `instances`, losses are compared, and
    not closely.
    """
    is_random = name == "instances"
    loss = {"loss": found.pop("loss")}, {"loss": expected.pop("loss")}
    assert_near(*loss, 0.5 if is_random else 1e-2)
    if not is_random:
        assert_near(found, expected, 0.1)
