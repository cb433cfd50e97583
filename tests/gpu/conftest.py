"""Tests of a real GPU. HIERA_VIDEO_GPU_TESTS_DEVICE=cpu runs them on a CPU, with small models and
without what only CUDA has: to check the tests themselves."""

from __future__ import annotations

import os

import pytest
import torch

from tests.integration.conftest import (  # noqa: F401
    _no_sync,
    _one_thread,
    commands,
    segmenter,
    shapes,
    toy,
    trained,
)
from tests.integration.device_commands import material  # noqa: F401

DEVICE = torch.device(os.environ.get("HIERA_VIDEO_GPU_TESTS_DEVICE", "cuda"))
IS_CUDA = DEVICE.type == "cuda"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder; the root's conftest skips what is marked."""
    for item in items:
        if "gpu" in item.path.parent.name and IS_CUDA:
            item.add_marker(pytest.mark.gpu)
            if not (torch.cuda.is_available() or os.environ.get("HIERA_VIDEO_REQUIRE_GPU")):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture
def cuda() -> torch.device:
    """The device, for what there is on CUDA alone."""
    if not IS_CUDA:
        pytest.skip("CUDA only")
    return DEVICE


@pytest.fixture
def size() -> str:
    """Of models: "base" as published, or a tiny one for a CPU."""
    return "base" if IS_CUDA else "tiny"
