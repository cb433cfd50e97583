"""Layers of torch that move fewer bytes, or multiply faster, on some devices.

In float32 on AMD's processors, torch multiplies matrices by MKL, which does not use their AVX-512.
A convolution of kernel 1 is the same product; torch computes it by oneDNN, which does. On an AMD
EPYC the forward pass of base 16x224 took 0.71 of the time, and a training step 0.73; on an Intel
Xeon a step of tiny took 1.12 of the time, so MKL stays in use there.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_WIDTH = 16  # of the images that the rows of x become, one pixel each
MIN_WIDTH = 4  # below that, MKL is faster
MIN_IMAGES = 16  # with one thread, torch computes fewer by other kernels


class Linear(nn.Linear):
    """`torch.nn.Linear`, in float32 by oneDNN where MKL would compute it and is slow."""

    def forward(self, x: Tensor) -> Tensor:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if traced or not _uses_mkl(x):
            return super().forward(x)
        rows = math.prod(x.shape[:-1])
        width = math.gcd(rows, MAX_WIDTH)
        if width < MIN_WIDTH or rows < width * MIN_IMAGES:
            return super().forward(x)
        images = x.reshape(-1, 1, width, self.in_features).permute(0, 3, 1, 2)
        product = F.conv2d(images, self.weight[:, :, None, None], self.bias)
        return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


def autocast_off(x: Tensor) -> AbstractContextManager[None]:
    """Operators run in the types of their inputs, on the device of `x`."""
    if x.device.type == "meta":  # which has no autocast
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` that keeps the type of its input also under autocast.

    There torch's own reads and writes float32 on a GPU, which with the casts around it was a third
    of the time of a forward pass. Statistics are computed in float32 in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if x.device.type != "cpu":  # other devices have no kernel of two types
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        with autocast_off(x):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


# An operator of its own, because torch's compiler takes the product and the GELU apart again.
LIBRARY = torch.library.Library("hiera_video", "FRAGMENT")
LIBRARY.define("gelu_of_product(Tensor x, Tensor weight, Tensor bias) -> Tensor")


def is_plain(layer: nn.Module) -> bool:
    """Whether nothing but the product is computed: it is no adapter, and has no hooks."""
    return type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def gelu_linear(x: Tensor, layer: nn.Module) -> Tensor:
    """GELU of a linear layer, without gradients: in half precision on a GPU within the product.

    cuBLAS has the approximation by tanh there, which differs from GELU by at most 5e-4: less than a
    rounding step of bfloat16 from 0.12 on.
    """
    if x.device.type != "cuda" or not is_plain(layer) or layer.bias is None:
        return F.gelu(layer(x))
    if x.dtype not in (torch.bfloat16, torch.float16) or x.dtype != layer.weight.dtype:
        return F.gelu(layer(x))
    return torch.ops.hiera_video.gelu_of_product(x, layer.weight, layer.bias)


@torch.library.impl(LIBRARY, "gelu_of_product", "CUDA")
def gelu_of_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x @ weight.T + bias) for x [..., D], weight [E, D] and bias [E]: [..., E]."""
    rows = x.reshape(-1, x.shape[-1])
    product = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
    return product.view(*x.shape[:-1], -1)


@torch.library.register_fake("hiera_video::gelu_of_product", lib=LIBRARY)
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _uses_mkl(x: Tensor) -> bool:
    """Whether torch would multiply by MKL, on another processor than Intel's, and has oneDNN."""
    float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and float32 and _mkl_is_slow()


@cache
def _mkl_is_slow() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    is_amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8")
    return is_amd and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
