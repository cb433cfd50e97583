"""The numbers of the official code, to 1e-4 of a tensor's standard deviation."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video import Hiera, create_model

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
make = runpy.run_path(str(GOLDEN / "make_weights.py"))


@pytest.fixture(scope="module", params=["hiera_tiny_224", "hiera_base_16x224"])
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Hiera, torch.Tensor]:
    expected = json.loads((GOLDEN / f"{request.param}.json").read_text())
    with torch.device("meta"):
        model = create_model(request.param)
    frames, *size = model.input_size
    shape = (2, 3, *size) if frames == 1 else (2, 3, frames, *size)
    # Values are drawn in order: the time axis that an image kernel has here changes none of them.
    model.load_state_dict(make["fill"](model.state_dict()), assign=True)
    clip = make["clip"](shape, seed=7)
    return expected, model.eval(), clip.unsqueeze(2) if frames == 1 else clip


def assert_same(tensor: torch.Tensor, golden: dict[str, Any]) -> None:
    if 1 not in golden["shape"]:
        tensor = tensor.squeeze()  # the official image model has no time axis
    assert list(tensor.shape) == golden["shape"]
    values = torch.tensor(make["sample"](tensor)["values"])
    difference = (values - torch.tensor(golden["values"])).abs().max().item()
    assert difference < TOLERANCE * golden["std"]


def test_parameter_names_and_shapes(case: tuple[dict[str, Any], Hiera, torch.Tensor]) -> None:
    expected, model, _ = case
    own = {name: list(p.shape) for name, p in model.named_parameters()}
    if model.input_size[0] == 1:
        own["patch_embed.proj.weight"].pop(2)
    assert own == expected["keys"]
    assert list(own) == list(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == expected["params"]


@torch.inference_mode()
def test_logits_and_intermediates(case: tuple[dict[str, Any], Hiera, torch.Tensor]) -> None:
    expected, model, clip = case
    features = model.forward_intermediates(clip)
    for tensor, golden in zip(features, expected["intermediates"], strict=True):
        assert_same(tensor, golden)
    golden = torch.tensor(expected["logits"])
    difference = (model.forward_head(features[-1]) - golden).abs().max().item()
    assert difference < TOLERANCE * golden.std().item()


@torch.inference_mode()
def test_tokens_of_visible_units(case: tuple[dict[str, Any], Hiera, torch.Tensor]) -> None:
    expected, model, clip = case
    visible = torch.tensor(expected["mask"]).bool()
    assert_same(model.encode(clip, visible)[-1].flatten(1, 2), expected["masked_tokens"])
