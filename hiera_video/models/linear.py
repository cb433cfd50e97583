"""Linear layers, by the fastest exact kernel for the device and the precision.

In float32 on a CPU, torch multiplies by MKL, which adds the bias in a pass of its own and on AMD's
processors uses no AVX-512. oneDNN does both better, in true float32 as long as torch's
`float32_matmul_precision` is left at "highest". The whole of hiera_base took 0.91 of the time
forward on a processor whose AVX-512 units are no faster than its AVX2 ones (Zen 4). In bfloat16
torch uses oneDNN itself; there, what is left to gain is GELU, computed with the product.

Gradients are of the first order, and torch.func does not go through them.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster in float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not _by_onednn(x):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _Linear.apply(x, self.weight, self.bias)
        return multiply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return linear_gradients(ctx.needs_input_grad, grad, x, weight)


class GeluLinear(torch.autograd.Function):
    """`linear(gelu(x))` that keeps x alone for the backward pass, not gelu(x) as well.

    The widest activation of a block: a fifth of the memory of training, for 1 % of its time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(F.gelu(x), weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grads = linear_gradients(ctx.needs_input_grad, grad, F.gelu(x), weight)
        grad_x = None if grads[0] is None else torch.ops.aten.gelu_backward(grads[0], x)
        return grad_x, *grads[1:]


def linear_gradients(
    wanted: tuple[bool, ...], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, where they are wanted."""
    rows = grad.reshape(-1, grad.shape[-1])
    grad_x = multiply(grad, weight.to(grad.dtype).t(), None) if wanted[0] else None
    # MKL's, which is faster here: both factors are transposed.
    grad_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if wanted[1] else None
    grad_bias = rows.sum(dim=0).to(weight.dtype) if wanted[2] else None
    return grad_x, grad_weight, grad_bias


def is_plain(layer: nn.Module) -> TypeGuard[Linear]:
    """Whether a layer is nothing but its weight and bias: no adapter, and nobody looks on."""
    return type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def gelu_of_linear(x: Tensor, linear: nn.Module) -> Tensor:
    """`gelu(linear(x))`, without gradients."""
    if x.device.type != "cpu" or not is_plain(linear) or not _has_onednn():
        return F.gelu(linear(x))
    weight: Tensor = linear.weight
    bias: Tensor = linear.bias
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if x.dtype != torch.float32 and not (
        x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return F.gelu(F.linear(x, weight, bias))
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, without gradients."""
    if not _by_onednn(x):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _by_onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


def _has_onednn() -> bool:
    """Whether torch has the operator, and no compiler, tracer or counter would stumble over it."""
    return (
        not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and _get_current_dispatch_mode() is None
    )
