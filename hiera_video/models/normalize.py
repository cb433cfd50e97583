"""Pixels to the input of a model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hiera_video.errors import ModelError

TAKEN = "uint8 [B, T, H, W, C], with as many channels as mean and std"


class Normalize(nn.Module):
    """`(clips / 255 - mean) / std`, channels first.

    Frames travel as bytes until they are on the device of the model, and are normalised there.

    Args:
        mean: of each colour channel, for values in 0..1, as a `ModelCard` states it.
        std: standard deviation of each colour channel, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            try:
                numbers = np.asarray(values, np.float64)
            except (TypeError, ValueError):
                numbers = np.array(np.nan)
            is_allowed = (numbers >= 0) & (numbers <= 1) & (numbers > 0 if name == "std" else True)
            if numbers.ndim != 1 or not is_allowed.all():
                raise ModelError(
                    f"{name} is {values}: expected a number for each channel, for values in 0..1; "
                    "those for 0..255 are divided by 255"
                )
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(
        self, clips: UInt8[Tensor, "B T H W C"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "B C T H W"]:
        """Normalised clips, computed in float32, in `dtype`."""
        if not isinstance(clips, Tensor):
            raise ModelError(f"the clips are a {type(clips).__name__}: expected a tensor, {TAKEN}")
        if clips.dtype != torch.uint8 or clips.dim() != 5 or clips.shape[4] != len(self.mean):
            raise ModelError(f"the clips are {clips.dtype} {list(clips.shape)}: expected {TAKEN}")
        x = clips.permute(0, 4, 1, 2, 3)
        mean, std = (255 * values.view(1, -1, 1, 1, 1) for values in (self.mean, self.std))
        if clips.device.type == "cuda":  # there in one pass, which writes the type that is wanted
            out = torch.empty(x.shape, dtype=dtype, device=x.device)
            return torch.addcmul(-mean / std, x, 1 / std, out=out)
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        return x.sub_(mean).div_(std).to(dtype)
