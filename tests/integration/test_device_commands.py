"""Every command that computes, on a CUDA device that is not there: what it gives is the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_cuda import FakeCuda
from tests.integration.device_commands import (
    INFERENCES,
    TRAININGS,
    Material,
    assert_near,
    assert_trained_alike,
    material,  # noqa: F401
)


@pytest.mark.parametrize("name", TRAININGS)
def test_training(name: str, material: Material, tmp_path: Path) -> None:  # noqa: F811
    expected = material.train(name, tmp_path / "cpu", "device=cpu")
    with FakeCuda() as cuda:
        found = material.train(name, tmp_path / "cuda", "device=cuda")
    assert cuda.operations > 100
    assert_trained_alike(name, found, expected)


@pytest.mark.parametrize("name", INFERENCES)
def test_inference(name: str, material: Material, tmp_path: Path) -> None:  # noqa: F811
    expected = material.infer(name, tmp_path / "cpu", "device=cpu", "precision=fp32")
    with FakeCuda() as cuda:
        found = material.infer(name, tmp_path / "cuda", "device=cuda", "precision=fp32")
    assert cuda.operations > 50
    assert_near(found, expected, 1e-3)
