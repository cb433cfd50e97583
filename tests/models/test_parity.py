"""The numbers of the official code, to 1e-4 of a tensor's standard deviation."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video import Hiera, create_model
from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import hidden_units, kept_units

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
    kept = kept_units(torch.tensor(expected["mask"]).bool())
    assert_same(model.encode(clip, kept)[-1].flatten(1, 2), expected["masked_tokens"])


# The masked autoencoder.


@pytest.fixture(scope="module")
def autoencoder() -> tuple[dict[str, Any], MaskedAutoencoderHiera]:
    expected = json.loads((GOLDEN / "mae_hiera_base_16x224.json").read_text())
    with torch.device("meta"):
        encoder = create_model("hiera_base_16x224", num_classes=0, q_pool=2)
        return expected, MaskedAutoencoderHiera(encoder, decoder_heads=16).eval()


def official_name(name: str) -> str:
    name = name.removeprefix("encoder.")
    return f"encoder_{name}" if name.startswith("norm.") else name


def official_order(
    x: torch.Tensor, kept: torch.Tensor, model: MaskedAutoencoderHiera
) -> torch.Tensor:
    """Tokens of hidden units [B, H, u, P], clip after clip in space-time order."""
    places = torch.arange(model.decoder_pos_embed.shape[1])
    (i, j, k), (t, h, w) = model.encoder.units_shape, model.unit_shape
    by_unit = places.view(i, t, j, h, k, w).permute(0, 2, 4, 1, 3, 5).reshape(i * j * k, -1)
    places = by_unit[hidden_units(kept, model.encoder.num_units)].flatten(1)  # [B, H * u]
    return torch.cat([v[o] for v, o in zip(x.flatten(1, 2), places.argsort(1), strict=True)])


def test_names_and_shapes_of_the_autoencoder(
    autoencoder: tuple[dict[str, Any], MaskedAutoencoderHiera],
) -> None:
    expected, model = autoencoder
    own = {official_name(name): list(p.shape) for name, p in model.named_parameters()}
    assert own == expected["keys"]
    assert [*dict(model.named_parameters())] == list(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == expected["params"]


@torch.inference_mode()
def test_predictions_targets_and_loss(
    autoencoder: tuple[dict[str, Any], MaskedAutoencoderHiera],
) -> None:
    expected, model = autoencoder
    parameters = dict(model.named_parameters())
    values = make["fill"]({official_name(name): p for name, p in parameters.items()})
    model.load_state_dict({name: values[official_name(name)] for name in parameters}, assign=True)
    clip = make["clip"]((2, 3, *model.encoder.input_size), seed=7)
    kept = kept_units(torch.tensor(expected["mask"]).bool())
    prediction, target = model(clip, kept), model.targets(clip, kept)
    assert_same(official_order(prediction, kept, model), expected["pred"])
    assert_same(official_order(target, kept, model), expected["label"])
    loss = reconstruction_losses(prediction, target).mean().item()
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
