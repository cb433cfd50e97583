"""Pixels to tokens: the convolution over a whole clip, or over the mask units that are kept."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiera_video.models.units import Size3, unravel


class PatchEmbed(nn.Module):
    """Overlapping convolution from pixels to tokens (paper, section 3.2: as in MViTv2)."""

    def __init__(
        self, in_chans: int, dim: int, kernel: Size3, patch: Size3, padding: Size3
    ) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, kernel, patch, padding)
        self.padding = padding

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        return self.proj(x)

    def convolve(self, windows: Float[Tensor, "n C T H W"]) -> Float[Tensor, "n D t h w"]:
        """The same on pixels that bring their own padding, as `windows` gives them."""
        return F.conv3d(windows, self.proj.weight, self.proj.bias, self.proj.stride)

    def windows(
        self,
        x: Float[Tensor, "B C T H W"],
        kept: Int[Tensor, "B K"],
        units: Size3,
        mask_unit: Size3,
    ) -> Float[Tensor, "B K C I J L"]:
        """The pixels that the tokens of each kept unit see, those of hidden units zeroed.

        Args:
            units: how many mask units the clip has along (time, height, width).
            mask_unit: tokens of each.
        """
        places = unravel(kept, units)  # of each unit along each axis, [B, K]
        pixel_padding: list[int] = []  # F.pad takes the last axis first
        unit_padding: list[int] = []
        sides, spans, owners = [], [], []
        for axis, place in enumerate(places):
            kernel, stride = self.proj.kernel_size[axis], self.proj.stride[axis]
            side = mask_unit[axis] * stride  # of a unit, in pixels
            span = side - stride + kernel  # of a window
            before = self.padding[axis]
            after = span - side - before
            pixel_padding = [before, after, *pixel_padding]
            # A window reaches into neighbours of its unit: which unit owns which pixel?
            low, high = -(-before // side), max(0, -(-after // side))
            unit_padding = [low, high, *unit_padding]
            owner = (torch.arange(span, device=kept.device) - before + low * side) // side
            shape = [span if a == axis else 1 for a in range(3)]
            owners.append((place[..., None] + owner).view(*kept.shape, *shape))
            sides.append(side)
            spans.append(span)

        x = F.pad(x, pixel_padding)
        for axis in range(3):
            x = x.unfold(axis + 2, spans[axis], sides[axis])  # a view, in the end of all windows
        clip = torch.arange(len(kept), device=kept.device)[:, None]
        i, j, k = places
        windows = x[clip, :, i, j, k]  # [B, K, C, *spans]
        seen = torch.zeros(len(kept), math.prod(units), dtype=x.dtype, device=x.device)
        seen = F.pad(seen.scatter(1, kept, 1.0).unflatten(1, units), unit_padding)
        return windows * seen[(clip[..., None, None, None], *owners)][:, :, None]
