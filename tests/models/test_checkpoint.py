"""Reading files: what is refused, and what is inferred where nothing states it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hiera_video
from hiera_video import create_model, load_model
from hiera_video.errors import WeightsError
from hiera_video.models.checkpoint import read_checkpoint
from hiera_video.models.tensors import read_state
from tests.models.tiny_models import VIDEO, autoencoder, hiera, official, saved


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    good = saved(path, official(hiera(VIDEO))).read_bytes()
    noise = bytes(torch.randint(256, (4000,), dtype=torch.uint8, generator=torch.manual_seed(1)))
    for content in (noise, b"\x00" * 99, good[:1] + good[2:]):
        path.write_bytes(content)
        refused(path, "damaged or not a file of weights")
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    refused(broken, "damaged or not a file of weights")

    refused(saved(path, {"model": Code()}), r"refused: it holds a pickled \w+\.system")
    assert not (tmp_path / "ran").exists()
    args = {"model": official(hiera(VIDEO)), "args": argparse.Namespace(lr=1)}
    refused(saved(path, args), "refused: it holds a pickled argparse.Namespace")
    refused(saved(path, nn.Linear(2, 2)), "refused: it holds a pickled torch.nn.modules.linear")

    refused(saved(path, {"epoch": 3, "optimizer": {}}), "holds no state dict.*'epoch', 'optimizer'")
    refused(saved(path, [torch.ones(2)]), "holds no state dict.*it has 'list'")
    refused(saved(path, {}), "holds no state dict")
    twice = {"norm.weight": torch.ones(2), "_orig_mod.norm.weight": torch.ones(2)}
    refused(saved(path, twice), "holds norm.weight twice")


# What a file does not state.


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hiera_tiny_16x224", {"num_frames": 8, "image_size": 96}),
        ("hiera_small_224", {"image_size": 160}),
    ],
)
def test_a_variant_shows_in_the_shapes_of_a_file(
    name: str, size: dict[str, int], tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3, **size)
    model.to_empty(device="cpu").init_weights()
    again, card = load_model(saved(tmp_path / "x.pth", {"model_state": official(model)}))
    assert again.architecture == model.architecture
    assert (card.kind, card.name, card.num_classes) == ("classifier", name, 3)
    assert card.classes == ("0", "1", "2")
    assert (card.clips, card.views) == (None, None)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_a_file_of_no_variant(tmp_path: Path) -> None:
    path = saved(tmp_path / "custom.pth", official(hiera(VIDEO)))
    with pytest.raises(WeightsError, match=r"custom.pth is of no variant .* not state its"):
        load_model(path)
    with torch.device("meta"):
        model = create_model("hiera_tiny_16x224", num_classes=3, image_size=(64, 96))
    model.to_empty(device="cpu")
    path = saved(tmp_path / "wide.pth", official(model))
    with pytest.raises(WeightsError, match="384 tokens, which is not a square"):
        load_model(path)


def test_a_file_of_an_autoencoder(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = create_model("hiera_tiny_16x224", num_frames=4, image_size=64)
    model.to_empty(device="cpu").init_weights()
    path = tmp_path / "mae.safetensors"
    save_file(autoencoder(model), path)
    with pytest.raises(ValueError, match="decoder_heads is not given"):
        load_model(path)
    with pytest.raises(WeightsError, match=r"is a masked autoencoder.*Fine-tune it"):
        load_model(path, kind="classifier")
    encoder, card = load_model(path, kind="backbone")
    assert (card.kind, encoder.num_classes, encoder.architecture["q_pool"]) == ("backbone", 0, 3)
    assert torch.equal(encoder.norm.weight, model.norm.weight)


def test_weights_are_read_in_one_place() -> None:
    package = Path(hiera_video.__file__).parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"torch\.load\(\w|\bload_file\(", path.read_text(encoding="utf-8"))
    }
    assert readers == {"models/tensors.py", "extraction/store.py"}  # the latter reads features


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_pipe_is_no_file_of_weights(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError, match=rf"{name}: a folder, a pipe or a device"):
        read_state(tmp_path / name)
