"""Pixels to tokens: the convolution over a whole clip, or over the mask units that are kept."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiera_video.models.inputs import check_weight
from hiera_video.models.units import Size3, unravel


class PatchEmbed(nn.Module):
    """Overlapping convolution from pixels to tokens (paper, section 3.2: as in MViTv2)."""

    def __init__(
        self, in_chans: int, dim: int, kernel: Size3, patch: Size3, padding: Size3
    ) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, kernel, patch, padding)
        self.padding = padding

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Of images, official files have kernels without an axis of time, [D, C, h, w]."""
        key = f"{prefix}proj.weight"
        if key in state_dict and state_dict[key].dim() == 4 and self.proj.kernel_size[0] == 1:
            state_dict[key] = state_dict[key].unsqueeze(2)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        try:
            return self.proj(x)
        except RuntimeError:
            check_weight(x, self.proj.weight)
            raise

    def convolve(self, windows: Float[Tensor, "n C T H W"]) -> Float[Tensor, "n D t h w"]:
        """The same on pixels that bring their own padding, as `windows` gives them."""
        try:
            return F.conv3d(windows, self.proj.weight, self.proj.bias, self.proj.stride)
        except RuntimeError:
            check_weight(windows, self.proj.weight)
            raise

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
        padding: list[int] = []  # F.pad takes the last axis first
        sides, spans = [], []  # of a unit and of a window, in pixels
        for axis, before in enumerate(self.padding):
            kernel, stride = self.proj.kernel_size[axis], self.proj.stride[axis]
            sides.append(mask_unit[axis] * stride)
            spans.append(sides[axis] - stride + kernel)
            padding = [before, spans[axis] - sides[axis] - before, *padding]
        clip = torch.arange(len(kept), device=kept.device)[:, None]
        i, j, k = unravel(kept, units)
        seen = torch.zeros(len(kept), math.prod(units), dtype=torch.bool, device=x.device)
        sizes = dict(zip("thwijk", (*units, *sides), strict=True))
        of_units_to_pixels = "b (t h w) -> b 1 (t i) (h j) (w k)"
        seen = repeat(seen.scatter(1, kept, 1), of_units_to_pixels, **sizes)
        windows = []
        for values in (F.pad(x, padding), F.pad(seen, padding)):
            for axis in range(3):  # to a view, in the end of all windows
                values = values.unfold(axis + 2, spans[axis], sides[axis])
            windows.append(values[clip, :, i, j, k])  # [B, K, C, *spans]
        return windows[0] * windows[1]
