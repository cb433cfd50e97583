"""Which numbers a model computes in, by device."""

import logging

import pytest
import torch

from hiera_video.errors import ConfigError
from hiera_video.runtime import precision
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.precision import arithmetic, autocast

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def features(monkeypatch):
    def state(*names):
        monkeypatch.setattr(precision, "processor_features", lambda: set(names))

    return state


@pytest.fixture
def card(monkeypatch):
    """A GPU with or without bfloat16."""

    def state(has_bf16):
        monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode(False))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")

    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield state
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def test_auto_is_what_the_processor_has(features):
    features("avx2", "avx512_bf16")
    assert arithmetic("auto", CPU) == "bf16"
    features("avx2", "avx512_fp16")  # torch multiplies float16 slowly there
    assert arithmetic("auto", CPU) == "fp32"
    features()  # as on macOS
    assert arithmetic("auto", CPU) == arithmetic("auto", torch.device("mps")) == "fp32"


def test_auto_is_what_the_card_has(card):
    card(has_bf16=True)
    assert arithmetic("auto", CUDA) == "bf16"
    card(has_bf16=False)
    assert arithmetic("auto", CUDA) == "fp16"


def test_tf32_is_on_where_it_was_asked_for(card, monkeypatch):
    card(has_bf16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for asked, is_on in (("tf32", True), ("fp32", False), ("tf32", True), ("auto", False)):
        with process_group("cuda:0", asked):
            assert torch.backends.cuda.matmul.allow_tf32 is is_on
            assert torch.backends.cudnn.allow_tf32 is is_on


def test_asking_what_a_precision_is_changes_nothing(card):
    """As `LoadedModel.predict` does, in the process of another program."""
    card(has_bf16=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    arithmetic("auto", CUDA)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("asked", "device", "reason"),
    [
        ("fp16", CPU, "torch has no fast float16 products for processors; take bf16, fp32 or auto"),
        ("tf32", CPU, "only NVIDIA's GPUs have it, and the device is cpu"),
        ("bf16", CUDA, "Tesla T4 has no such products; take fp16, fp32 or auto"),
        ("tf32", CUDA, "Tesla T4 has no such products"),
    ],
)
def test_what_a_device_does_not_have(asked, device, reason, card):
    card(has_bf16=False)
    with pytest.raises(ConfigError, match=f"precision is {asked}: {reason}"):
        arithmetic(asked, device)


def test_the_choice_is_logged(features, caplog):
    features("avx512_bf16")
    with caplog.at_level(logging.INFO), process_group("cpu", "auto") as process:
        assert process.precision == "bf16"
    assert "precision=auto: bf16 on cpu" in caplog.text


def test_autocast():
    a = torch.ones(2, 2)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("tf32", torch.float32)):
        with autocast(CPU, name):
            assert (a @ a).dtype == dtype
