"""Commands on a GPU: they end well, and what they give is the CPU's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.conftest import Commands
from tests.integration.device_commands import (
    INFERENCES,
    TRAININGS,
    Material,
    assert_near,
    assert_trained_alike,
)


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


@pytest.mark.parametrize("name", TRAININGS)
def test_training(name: str, material: Material, device: torch.device, tmp_path: Path) -> None:
    expected = material.train(name, tmp_path / "cpu", "device=cpu")
    found = material.train(name, tmp_path / "gpu", f"device={device}")
    assert_trained_alike(name, found, expected)


@pytest.mark.parametrize("name", TRAININGS)
def test_ten_steps(name: str, material: Material, device: torch.device, tmp_path: Path) -> None:
    """In the precision of the device."""
    how = (f"device={device}", "train.precision=auto", "train.epochs=10")
    material.train(name, tmp_path / "run", *how, "train.global_batch_size=8")
    lines = steps_of(tmp_path / "run")
    assert len(lines) >= 10
    assert not [line for line in lines if line["loss"] is None]


@pytest.mark.parametrize("name", ["finetune", "pretrain"])
def test_a_stopped_run_goes_on(
    name: str, material: Material, device: torch.device, tmp_path: Path
) -> None:
    """From the checkpoint in the middle: the losses are those of the whole run."""
    how = (f"device={device}", "train.checkpoint_every=0.3", "train.keep_checkpoints=10")
    whole = material.train(name, tmp_path / "whole", *how)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    checkpoints = sorted((tmp_path / "half" / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    shutil.rmtree(tmp_path / "half" / "weights")
    again = material.train(name, tmp_path / "half", *how)
    assert again["loss"][-1] == pytest.approx(whole["loss"][-1], rel=1e-2)


@pytest.mark.parametrize("name", INFERENCES)
def test_inference(name: str, material: Material, device: torch.device, tmp_path: Path) -> None:
    expected = material.infer(name, tmp_path / "cpu", "device=cpu", "precision=fp32")
    found = material.infer(name, tmp_path / "gpu", f"device={device}", "precision=fp32")
    assert_near(found, expected, 1e-3)


def test_one_process_of_torchrun(commands: Commands, device: torch.device, tmp_path: Path) -> None:
    """Joined by NCCL on CUDA."""
    run = commands.start(
        *commands.finetune(tmp_path / "run", f"device={device.type}", "train.epochs=1"), processes=1
    )
    result = commands.finish(run)
    assert result.code == 0, result.err
    assert len(steps_of(tmp_path / "run")) == 3
