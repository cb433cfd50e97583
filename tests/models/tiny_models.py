"""Tiny models with values in all their parameters, and their weights as others would save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models.checkpoint import HEAD
from hiera_video.models.hiera import Hiera

VIDEO: dict[str, Any] = {
    "input_size": (8, 64, 64),
    "num_classes": 5,
    "embed_dim": 16,
    "stages": (1, 2, 2, 1),
}
IMAGE: dict[str, Any] = {
    **VIDEO,
    "input_size": (1, 64, 64),
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}
State = dict[str, Tensor]


def hiera(arguments: dict[str, Any], seed: int = 0, **changes: Any) -> Hiera:
    torch.manual_seed(seed)
    model = Hiera(**{**arguments, **changes})
    for parameter in model.parameters():
        nn.init.normal_(
            parameter, std=0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        )
    return model.eval()


@torch.inference_mode()
def logits(model: nn.Module, batch: int = 2) -> Tensor:
    torch.manual_seed(9)
    return model.eval()(torch.randn(batch, 3, *model.input_size))


def official(model: Hiera) -> State:
    """The state dict that the official code would have: image kernels without a time axis."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if model.architecture["patch_kernel"][0] == 1:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    return state


def autoencoder(model: Hiera) -> State:
    """The keys of an official masked autoencoder."""
    state = {
        key.replace("norm.", "encoder_norm.") if key.startswith("norm.") else key: value
        for key, value in official(model).items()
        if key not in HEAD
    }
    for key in (
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed.weight",
        "decoder_norm.bias",
        "decoder_pred.bias",
        "decoder_blocks.0.attn.qkv.weight",
        "multi_scale_fusion_heads.0.weight",
        "multi_scale_fusion_heads.1.bias",
    ):
        state[key] = torch.zeros(3)
    return state


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path
