"""A tiny data set and model for `instances train`, `evaluate` and `predict`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hiera_video.demo.shapes import DemoInstancesData

CONFIG: dict[str, Any] = {
    "model": {
        "name": "hiera_tiny_224",
        "image_size": 64,
        "overrides": {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1]},
        "channels": 8,
        "hidden": 16,
        "num_boxes": 16,
    },
    "augment": {"scale": [0.7, 1.3]},
    "optim": {"lr": 1.0e-3, "warmup_lr": 1.0e-5, "final_lr": 1.0e-5},
    "train": {
        "epochs": 2,
        "warmup_epochs": 0,
        "global_batch_size": 4,
        "precision": "fp32",
        "evaluate_every": None,
        "log_every": 100,
    },
    "device": "cpu",
}
NUM_TRAIN, NUM_VAL = 7, 5


def training(shapes: DemoInstancesData, run_dir: Path, *overrides: str) -> tuple[object, ...]:
    config = shapes.folder / "base.yaml"
    return ("instances", "train", "--config", config, f"run_dir={run_dir}", *overrides)


def evaluation(
    shapes: DemoInstancesData, checkpoint: Path, output: Path, *overrides: str
) -> tuple[object, ...]:
    data = (f"data.val={shapes.val}", f"data.root={shapes.pictures}", "data.num_workers=0")
    command = ("instances", "evaluate", f"checkpoint={checkpoint}", f"output_dir={output}")
    return (*command, *data, "device=cpu", *overrides)


def prediction(checkpoint: Path, output: Path, *files: Path | str) -> tuple[object, ...]:
    how = (f"checkpoint={checkpoint}", f"output_dir={output}", "device=cpu", "min_score=0.05")
    return ("instances", "predict", *files, *how)


def changed(source: Path, path: Path, change: Callable[[Any], object]) -> Path:
    """A copy of a json file, whose content `change` changes."""
    content = json.loads(source.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def report_in(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())
