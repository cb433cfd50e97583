"""What all tests share: checked shapes, untouched random states, and the `gpu` marker."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share the cores
import torch
from hypothesis import settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

# The same examples in every run. New ones: pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Every annotated shape in the models is checked at every call. Before the first import of them.
install_import_hook("hiera_video.models", "beartype.beartype")


@pytest.fixture(autouse=True, scope="session")
def _plain_processor() -> Iterator[None]:
    """`precision=auto` is fp32 on the CPU, whatever it has in hardware: tests compare numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hiera_video.runtime.precision.processor_features", set)
        yield


@pytest.fixture(autouse=True, scope="session")
def _autograd() -> None:
    """Autograd starts its threads in its first pass. Within torch.compile, it would start some for
    devices that do not exist, and a fork of a process with such threads cannot train."""
    torch.zeros((), requires_grad=True).backward()


@pytest.fixture(autouse=True)
def _random_states() -> Iterator[None]:
    """A test neither sees nor changes the random state of others."""
    ours, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(ours)
    np.random.set_state(numpys)  # noqa: NPY002
    torch.set_rng_state(torchs)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """A command that a test, or a fixture of a module, runs in its process sets up logging: not
    for the tests after it."""
    logger = logging.getLogger("hiera_video")
    logger.level, logger.propagate, logger.handlers = logging.NOTSET, True, []
    yield
    logger.level, logger.propagate, logger.handlers = logging.NOTSET, True, []


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Without the checks of shapes, whose steps a trace of a model would record: it takes a third
    of the time, and is that of the user."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def files_up_to() -> Callable[[int], AbstractContextManager[None]]:
    """`with files_up_to(100):` no file grows beyond 100 bytes, whatever writes it: a full disk."""

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` without a device, unless one is said to be required."""
    if torch.cuda.is_available() or os.environ.get("HIERA_VIDEO_REQUIRE_GPU"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    """The innermost of 1,500 folders in one another below tmp_path / "d", in a path that is short
    enough to be opened. Functions that call themselves for each folder end there."""
    folder = tmp_path / "/".join("d" * 1500)
    with contextlib.chdir(tmp_path):
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    yield folder
    remove_deep(folder, 1500)


def remove_deep(folder: Path, num_levels: int) -> None:
    """Removes a folder, its files and so many folders above it; pytest's removal calls itself."""
    with contextlib.chdir(folder):
        for file in os.listdir():
            os.unlink(file)
        for _ in range(num_levels):
            name = os.path.basename(os.getcwd())
            os.chdir("..")
            os.rmdir(name)


@pytest.fixture(params=["pyav", "decord", "torchcodec"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "decord":
        pytest.importorskip("decord")
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError, OSError))
        import torchcodec

        if torchcodec.ffmpeg_major_version is None:
            pytest.skip("torchcodec finds no FFmpeg")
    return request.param
