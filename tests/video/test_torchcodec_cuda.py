"""The reader for NVDEC, whose torchcodec decodes here by PyAV. On a GPU: tests/gpu/."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from hiera_video import open_video
from hiera_video.data.loader import NUM_ON_GPU, num_workers
from hiera_video.errors import ConfigError, MissingLibrary
from hiera_video.settings.evaluation import ExtractSettings
from hiera_video.settings.video import Decoding
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError, warn_once
from tests.video.striped_video import make_striped_video

NUM_FRAMES = 60
KEYS = {"g": "20", "bf": "2"}  # a key frame every 20 frames


class Status:
    """Whether torchcodec decodes on the CPU, in the words of its releases."""

    def __init__(self, reason=None):
        self.reason = reason

    def __bool__(self):
        return self.reason is not None

    def __str__(self):
        return f"[CUDA] Fallback status: {self.reason or 'No fallback required'}"


class Gpu:
    """What the decoder does wrong, and what it was asked for."""

    def __init__(self):
        self.fallback, self.error = Status(), None
        self.change = lambda position, frame: frame
        self.delay_sec = lambda position: 0.0
        self.asked: list[int] = []
        self.options: dict = {}


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a CUDA device and torchcodec."""
    gpu = Gpu()

    class VideoDecoder:
        def __init__(self, path, **options):
            if gpu.error is not None:
                raise gpu.error
            gpu.options = options
            self.video, self.cpu_fallback = open_video(path), gpu.fallback

        def __len__(self):
            return len(self.video)

        def get_frames_at(self, positions):
            gpu.asked += positions
            frames = self.video.frames(positions)
            frames = np.stack([gpu.change(p, f) for p, f in zip(positions, frames, strict=True)])
            times = self.video.frame_times_sec[positions]
            times = times + [gpu.delay_sec(position) for position in positions]
            return SimpleNamespace(data=torch.from_numpy(frames), pts_seconds=torch.tensor(times))

    module, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    module.ffmpeg_major_version = 8
    decoders.VideoDecoder, decoders.set_cuda_backend = VideoDecoder, contextlib.nullcontext
    monkeypatch.setitem(sys.modules, "torchcodec", module)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    warn_once.cache_clear()
    return gpu


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    return make_striped_video(folder / "v.mp4", NUM_FRAMES, options=KEYS)


def read(path, indices=range(NUM_FRAMES), backend="torchcodec-cuda"):
    """Frames, and the backend that read the last of them."""
    with open_video(path, backend) as video:
        return video.frames(list(indices)), video.backend


def brighter(by):
    return lambda position, frame: np.minimum(frame, 255 - by) + np.uint8(by)


def test_frames_are_those_of_the_gpu(gpu, path, caplog):
    gpu.change = brighter(1)  # within the bound
    expected, _ = read(path, backend="pyav")
    frames, backend = read(path)
    assert backend == "torchcodec-cuda"
    assert np.array_equal(frames, np.minimum(expected, 254) + 1)
    assert gpu.options["device"] == "cuda:1"
    assert gpu.options["seek_mode"] == "exact"
    assert not caplog.messages


def test_one_key_frame_is_compared_wherever_decoding_begins(gpu, path):
    compared = []
    with open_video(path, "torchcodec-cuda") as video:
        real = video._exact._read
        video._exact._read = lambda positions, deadline: (
            compared.extend(positions) or real(positions, deadline)
        )
        video.frames([5, 6])
        video.frames([7, 45, 46])
        video.frames(range(NUM_FRAMES))
    assert compared[:2] == [0, 40]
    assert set(compared) <= {0, 20, 40}
    assert len(compared) == len(set(compared))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (brighter(9), "key frame 0 differs by"),
        (lambda position, frame: frame[::-1].copy(), "key frame 0 differs by"),
        (lambda position, frame: frame.transpose(1, 0, 2), "another size or orientation"),
    ],
)
def test_other_pictures_are_refused(gpu, path, caplog, change, reason):
    gpu.change = change
    expected, _ = read(path, backend="pyav")
    with caplog.at_level(logging.WARNING):
        frames, backend = read(path)
    assert backend == "pyav"
    assert np.array_equal(frames, expected)
    assert reason in caplog.text
    assert "PyAV reads it instead" in caplog.text


def test_a_key_frame_at_which_decoding_cannot_begin_is_noticed(gpu, path):
    """As where a picture is refreshed part by part: what follows is made up."""
    gpu.change = lambda position, frame: brighter(9)(0, frame) if position >= 20 else frame
    expected, _ = read(path, backend="pyav")
    frames, backend = read(path, [3, 50])
    assert backend == "pyav"
    assert np.array_equal(frames, expected[[3, 50]])


def test_frames_of_other_times_are_read_by_pyav_from_there_on(gpu, path, caplog):
    gpu.change = brighter(1)
    gpu.delay_sec = lambda position: 0.04 if position == 50 else 0.0
    expected, _ = read(path, backend="pyav")
    with caplog.at_level(logging.WARNING):
        frames, backend = read(path)
    assert backend == "pyav"
    assert np.array_equal(frames[:32], np.minimum(expected[:32], 254) + 1)
    assert np.array_equal(frames[32:], expected[32:])
    assert "frames of other times" in caplog.text


def test_damage_that_the_index_knows_is_read_by_pyav(gpu, tmp_path, caplog):
    path = make_striped_video(
        tmp_path / "cut.mp4", NUM_FRAMES, container_options={"movflags": "faststart"}
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with caplog.at_level(logging.WARNING), open_video(path, "torchcodec-cuda") as video:
        assert video.backend == "pyav"
        assert video.damage is not None
    assert not gpu.asked


def test_without_a_gpu(path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no CUDA device; take pyav"):
        open_video(path, "torchcodec-cuda")
    with pytest.raises(ConfigError, match="torch finds no CUDA device; take pyav"):
        opener(Decoding(backend="torchcodec-cuda"))


def test_without_torchcodec(gpu, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(MissingLibrary, match=r"torchcodec-cuda backend needs .*pip install"):
        open_video(path, "torchcodec-cuda")


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported device: cuda:1 (device type: cuda, variant: default)",
        "No device interface found for device type: 1 variant: 'default'",
    ],
)
def test_a_torchcodec_without_cuda(gpu, path, message):
    gpu.error = RuntimeError(message)
    with pytest.raises(MissingLibrary, match="built without CUDA"):
        open_video(path, "torchcodec-cuda")


def test_a_driver_without_nvdec(gpu, path):
    gpu.fallback = Status("Falling back due to: NVcuvid unavailable")
    with pytest.raises(MissingLibrary, match="NVIDIA_DRIVER_CAPABILITIES must contain video"):
        open_video(path, "torchcodec-cuda")


def test_what_nvdec_does_not_decode_is_one_failed_video(gpu, path):
    """torchcodec itself would decode it on the CPU, and say nothing."""
    gpu.fallback = Status("Falling back due to: Video not supported")
    with pytest.raises(VideoError, match=r"this GPU does not decode it \(h264, yuv420p, 96 x 64\)"):
        open_video(path, "torchcodec-cuda")
    with contextlib.suppress(VideoError):
        open_video(path, "torchcodec-cuda")
    assert not gpu.asked


def test_few_processes_decode_on_a_gpu():
    assert num_workers(Decoding(backend="torchcodec-cuda"), 1) == NUM_ON_GPU == 2
    assert num_workers(Decoding(backend="torchcodec-cuda", num_workers=5), 1) == 5


def test_decoding_actors_of_ray_have_no_gpu():
    named = {"checkpoint": "a", "inputs": ["v"], "data": {"backend": "torchcodec-cuda"}}
    with pytest.raises(ConfigError, match=r"data.backend.*another one with engine=ray"):
        ExtractSettings(**named, engine="ray")
