"""Precisions, kernels and builds of torch in bad states: each is a line with what to do."""

import contextlib
import importlib.util
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from hiera_video.diagnosis import devices
from hiera_video.diagnosis.model import LOGITS, known_clip, normalize, relative_error, tiny_model
from hiera_video.models import attention
from hiera_video.runtime import precision

CPU = torch.device("cpu")


@pytest.fixture
def features(monkeypatch):
    def state(*names):
        monkeypatch.setattr(precision, "processor_features", lambda: set(names))

    return state


def test_the_stored_logits_are_those_of_the_model_in_float64():
    model = tiny_model()
    clips = normalize(model)(known_clip()).double()
    with torch.inference_mode():
        logits = model.double()(clips)
        others = model(clips.flip(2))  # the order of the frames matters to them
    assert logits[0].tolist() == pytest.approx(LOGITS, abs=1e-6)
    assert relative_error(logits) < 1e-6 < 0.3 < relative_error(others)


def test_all_precisions_run_here(features):
    features("avx2", "avx512_bf16")
    found = devices.device(CPU)
    assert found.status == "ok"
    assert found.data["precisions"] == {"fp32": "runs", "bf16": "in hardware", "fp16": "emulated"}
    features()  # as on macOS
    assert devices.device(CPU).data["precisions"]["bf16"] == "runs"


@pytest.mark.parametrize(
    ("lacking", "status", "advice"),
    [
        (torch.bfloat16, "warning", "precision=fp32"),
        (torch.float16, "ok", ""),  # which benchmark alone uses
        (None, "failed", "install a build of torch"),
    ],
)
def test_a_torch_without_a_precision(lacking, status, advice, monkeypatch):
    def autocast(kind, dtype=None, enabled=True):
        if dtype == lacking:
            raise RuntimeError("not implemented for this type")
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    found = devices.device(CPU)
    assert found.status == status
    assert advice in found.advice
    assert "fails: RuntimeError: not implemented for this type" in found.text


def test_wrong_logits_fail_and_so_does_nan(monkeypatch):
    for off in (0.5, float("nan")):
        monkeypatch.setattr(devices, "relative_error", lambda logits, off=off: off)
        found = devices.device(CPU)
        assert found.status == "failed"
        assert found.text.count("wrong results") == 3


def test_attention_here_is_right_and_fused_in_float32():
    found = devices.attention(CPU)
    assert found.status == "ok"
    assert found.data == {"kernels": {"fp32": ["flash"]}}
    assert "bf16 by the package's own products" in found.text


def test_attention_without_fused_kernels(monkeypatch):
    real = F.scaled_dot_product_attention

    def sdpa(q, k, v):
        if torch.backends.cuda.math_sdp_enabled():
            return real(q, k, v)
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    found = devices.attention(CPU)
    assert found.status == "warning"
    assert "fp32 not fused" in found.text
    assert not devices._takes_all(SDPBackend.FLASH_ATTENTION, CPU, torch.float32)


def test_attention_that_is_wrong(monkeypatch):
    monkeypatch.setattr(devices, "attend", lambda q, k, v: 2 * attention.attend(q, k, v))
    found = devices.attention(CPU)
    assert found.status == "failed"
    assert "fp32 wrong" in found.text
    assert "bf16 wrong" in found.text


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """The file of the NVIDIA driver, and no device that torch can use."""
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024"
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path / "version"


def test_a_gpu_with_a_torch_that_is_built_without_cuda(driver, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    found = devices.torch_build()
    assert found.status == "warning"
    assert found.data["driver"] == "550.54.15"
    assert "built without CUDA" in found.text
    assert "build of torch for CUDA" in found.advice


def test_a_gpu_that_torch_cannot_use_for_the_reason_that_it_states(driver, monkeypatch):
    def is_available():
        warnings.warn("the driver is too old\n(found version 11000)", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = devices.torch_build()
    assert found.status == "warning"
    assert "the driver is too old (found version 11000)" in found.text
    assert "CUDA_VISIBLE_DEVICES is '-1'" in found.text


def test_drivers_of_open_kernel_modules_state_their_version_too(driver):
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release")
    assert devices._driver() == "570.86.15"
    driver.unlink()
    assert devices._driver() is None


def test_versions_of_cudnn(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    for number, version in ((91002, "9.10.2"), (8902, "8.9.2")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda number=number: number)
        assert devices.torch_build().data["cudnn"] == version


def test_the_compiler_is_looked_for_and_asked_for_its_version(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    found = devices.compiler(has_gpu=False)
    assert found.status == "missing"
    assert "C++ compiler" in found.text
    for code, status in ((1, "missing"), (0, "ok")):
        (tmp_path / "c++").write_text(f'#!/bin/sh\n[ "$*" = --version ] && exit {code}\n')
        (tmp_path / "c++").chmod(0o755)
        assert devices.compiler(has_gpu=False).status == status
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert devices.compiler(has_gpu=True).text == "triton is missing or does not work"


@pytest.mark.gpu
def test_a_gpu_is_described_and_runs_what_it_has():
    device = torch.device("cuda:0")
    found = devices.device(device)
    assert found.status in ("ok", "warning")
    assert found.data["name"] in found.text
    assert found.data["precisions"]["fp32"] == "runs"
    fused = devices.attention(device)
    assert fused.status == "ok"
    assert fused.data["kernels"]["bf16"]
