"""Tests of a real GPU. HIERA_VIDEO_GPU_TESTS_DEVICE=cpu runs them on a CPU, with small models and
without what only CUDA has: to check the tests themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from hiera_video.runtime.machine import usable_cores
from tests.integration.conftest import (  # noqa: F401
    _no_sync,
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


@pytest.fixture(scope="session", autouse=True)
def _all_cores() -> Iterator[None]:
    """For what is computed on the CPU to compare with; other tests take one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    yield
    torch.set_num_threads(before)


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


@pytest.fixture
def compiled_size() -> str:
    """Of models that are compiled: base with a block in each stage, or a tiny one for a CPU."""
    return "short" if IS_CUDA else "tiny"
