"""Pixels to tokens: the convolution over a whole clip, or over the mask units that are kept."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiera_video.models.inputs import check_weight
from hiera_video.models.units import Size3, size3, unravel


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
        return self._convolved(x, self.padding)

    def convolve(self, windows: Float[Tensor, "n C T H W"]) -> Float[Tensor, "n D t h w"]:
        """The same on pixels that bring their own padding, as `windows` gives them."""
        return self._convolved(windows, (0, 0, 0))

    def _convolved(self, x: Tensor, padding: Size3) -> Tensor:
        weight, bias, stride = self.proj.weight, self.proj.bias, self.proj.stride
        try:
            if x.device.type == "cuda":
                return product_of_patches(x, weight, bias, size3(stride), padding)
            return F.conv3d(x, weight, bias, stride, padding)
        except RuntimeError:
            check_weight(x, weight)
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


def product_of_patches(
    x: Float[Tensor, "B C T H W"],
    weight: Float[Tensor, "D C i j k"],
    bias: Float[Tensor, " D"] | None,
    stride: Size3,
    padding: Size3,
) -> Float[Tensor, "B D t h w"]:
    """A 3D convolution as one product over copied patches.

    cuDNN convolves the 3 channels of pixels without tensor cores: 7 % of a forward pass on an H100.
    On a CPU the copies cost more than the product saves.
    """
    dtype = x.dtype  # of the copies, which are the larger part
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    # Tensor cores need rows of a multiple of 16 bytes: a column of zeros makes 8 of 7.
    wider = -weight.shape[4] % 8
    before_and_after = [(p, p + (wider if axis == 2 else 0)) for axis, p in enumerate(padding)]
    x = F.pad(x.to(dtype), [n for pair in reversed(before_and_after) for n in pair])
    weight = F.pad(weight, (0, wider))
    for axis in range(3):
        x = x.unfold(axis + 2, weight.shape[axis + 2], stride[axis])
    patches = rearrange(x, "b c t h w i j k -> b t h w (c i j k)")
    return F.linear(patches, weight.flatten(1), bias).movedim(-1, 1)
