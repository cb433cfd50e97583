"""Position embeddings on grids of other sizes."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from hiera_video.errors import WeightsError


def absolute_window(
    everywhere: Float[Tensor, "n D g k"],
    window: Float[Tensor, "n D i j"],
    size: Sequence[int],
    antialias: bool,
) -> Float[Tensor, "n D h w"]:
    """An absolute-window embedding on a grid of `size` = (h, w) tokens (arXiv 2311.05613).

    Args:
        everywhere: the global part, which is interpolated bicubically.
        window: the part of a mask unit, which is repeated with every unit.
        antialias: which of torch's two bicubic kernels interpolates, also where it enlarges: that
            with antialiasing in timm's models, the other one in SAM 2.
    """
    height, width = window.shape[2:]
    tiled = window.tile(1, 1, size[0] // height, size[1] // width)
    if everywhere.shape[2:] == tiled.shape[2:]:
        return everywhere + tiled
    stretched = F.interpolate(
        everywhere.float(), tuple(size), mode="bicubic", antialias=antialias
    )  # on a CPU, torch has no such kernel for bfloat16
    return stretched.to(tiled.dtype) + tiled


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
        raise WeightsError(f"pos_embed_resize is {mode!r}: allowed are 'window' and 'bicubic'")
    i, j = window
    if height % i or width % j:
        raise WeightsError(
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
