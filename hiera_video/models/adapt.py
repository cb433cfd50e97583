"""Weights of one clip size made to fit another: patch kernels and position embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from hiera_video.models.hiera import Hiera
from hiera_video.models.registry import PosEmbedResize

PATCHES = "patch_embed.proj.weight"


def adapt_state(
    state: dict[str, Tensor], model: Hiera, trained: Mapping[str, Any], mode: PosEmbedResize
) -> list[str]:
    """Changes `state`, under official names, for the model's patches and grid of tokens.

    Args:
        trained: the architecture that the weights were trained with, {} where it is not known.
        mode: as in `resize_spatial`.

    Returns:
        What was changed, and how: one entry for each tensor.

    Raises:
        ValueError: video weights for an image model, or a grid that cannot be told.
    """
    changes = []
    frames = model.patch_embed.proj.kernel_size[0]
    if PATCHES in state and state[PATCHES].shape[2] != frames:
        state[PATCHES] = inflate_patches(state[PATCHES], frames)
        changes.append(f"{PATCHES}: inflated over {frames} frames")

    times, *size = model.tokens_shape
    if model.sep_pos_embed and "pos_embed" in state:
        state["pos_embed_spatial"] = state.pop("pos_embed")
        state["pos_embed_temporal"] = torch.zeros(1, times, state["pos_embed_spatial"].shape[2])
        changes.append(f"pos_embed_temporal: {times} zeros, an image has no times")
    temporal = state.get("pos_embed_temporal")
    if temporal is not None and temporal.shape[1] != times:
        state["pos_embed_temporal"] = resize_temporal(temporal, times)
        changes.append(f"pos_embed_temporal: {temporal.shape[1]} -> {times} (linear)")

    key = "pos_embed_spatial" if model.sep_pos_embed else "pos_embed"
    if key not in state or (times > 1 and not model.sep_pos_embed):
        return changes  # one embedding over space and time is taken as it is
    grid = token_grid(state[key].shape[1], size, trained)
    if grid != size:
        _, *window = trained.get("mask_unit", (1, 8, 8))  # which all published models have
        x = rearrange(state[key], "1 (h w) d -> 1 d h w", h=grid[0])
        x = resize_spatial(x, size, window, mode)
        state[key] = rearrange(x, "1 d h w -> 1 (h w) d")
        changes.append(f"{key}: {grid[0]}x{grid[1]} -> {size[0]}x{size[1]} ({mode})")
    return changes


def inflate_patches(kernel: Float[Tensor, "D C s h w"], frames: int) -> Float[Tensor, "D C t h w"]:
    """A kernel over `frames` frames that sees in a still clip what `kernel`, over one, sees in it.

    Repeated and divided by the number of frames (I3D, arXiv 1705.07750). At the ends of a clip it
    reaches past the clip, over frames of zeros, and sees less.
    """
    if kernel.shape[2] != 1:
        raise ValueError(
            f"patches over {kernel.shape[2]} frames do not fit a model with patches over {frames}; "
            "video weights are for the video variants"
        )
    return repeat(kernel, "d c 1 h w -> d c t h w", t=frames) / frames


def token_grid(tokens: int, own: list[int], trained: Mapping[str, Any]) -> list[int]:
    """The grid (h, w) of a position embedding: as `trained` states, else a square or `own`."""
    if trained:
        pairs = zip(trained["input_size"], trained["patch_stride"], strict=True)
        return [size // stride for size, stride in pairs][1:]
    side = math.isqrt(tokens)
    square, same = side**2 == tokens, tokens == math.prod(own)
    if square == same and own != [side, side]:
        raise ValueError(
            f"a position embedding of {tokens} tokens may be for several sizes or for none that is "
            "known: use a weights folder, which states it"
        )
    return [side, side] if square else own


def resize_spatial(
    grid: Float[Tensor, "n D h w"],
    size: Sequence[int],
    window: Sequence[int],
    mode: str,
) -> Float[Tensor, "n D H W"]:
    """Position embeddings for `size` = (H, W) tokens, in float32.

    Learned embeddings repeat a pattern with every attention window of `window` = (h, w) tokens, and
    stretching it puts it out of step with the windows (arXiv 2311.05613). "window" tiles the mean
    over windows and interpolates the rest; "bicubic" interpolates all of it.
    """
    grid, (height, width) = grid.float(), grid.shape[2:]
    if mode == "bicubic":
        return F.interpolate(grid, size=tuple(size), mode="bicubic", align_corners=False)
    if mode != "window":
        raise ValueError(f"pos_embed_resize is {mode!r}: allowed are 'window' and 'bicubic'")
    i, j = window
    if height % i or width % j:
        raise ValueError(
            f"a position embedding of {height}x{width} tokens does not divide into windows of "
            f"{i}x{j}: take pos_embed_resize='bicubic'"
        )
    pattern = reduce(grid, "n d (h i) (w j) -> n d i j", "mean", i=i, j=j)
    rest = grid - pattern.tile(height // i, width // j)
    tiled = pattern.tile(math.ceil(size[0] / i), math.ceil(size[1] / j))[..., : size[0], : size[1]]
    return tiled + resize_spatial(rest, size, window, "bicubic")


def resize_temporal(embed: Float[Tensor, "n t D"], length: int) -> Float[Tensor, "n T D"]:
    """Position embeddings for `length` time steps by linear interpolation, in float32."""
    x = rearrange(embed.float(), "n t d -> n d t")
    x = F.interpolate(x, size=length, mode="linear", align_corners=False)
    return rearrange(x, "n d t -> n t d")
