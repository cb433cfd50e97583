"""Pixels to the input of a model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class Normalize(nn.Module):
    """`(clips / 255 - mean) / std` in float32, channels first.

    Frames travel as bytes until they are on the device of the model, and are normalised there.

    Args:
        mean, std: of the colour channels, for values in 0..1, as a `ModelCard` states them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, clips: UInt8[Tensor, "B T H W C"]) -> Float[Tensor, "B C T H W"]:
        shape = (1, -1, 1, 1, 1)
        x = clips.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        return x.sub_(255 * self.mean.view(shape)).div_(255 * self.std.view(shape))
