"""Softmax attention, by the fastest exact kernel for the device and the precision.

On a GPU, and in float32 anywhere, that is torch's fused kernel. In bfloat16 on a CPU torch's fused
kernel multiplies in float32 inside; two batched products with the softmax between them, a few
panels of scores at a time, use the processor's bfloat16 units. Forward and backward over 1568
tokens with 4 heads of 96 took 44 to 53 ms on two cores, against 82 to 89 ms fused in float32 and
190 ms fused in bfloat16; over 392 windows of 64 tokens, 14 against 28 to 34 ms. As in the fused
kernel, the scores are not kept for the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PANEL_ELEMENTS = 1 << 22  # scores at a time: 8 MiB in bfloat16
MAX_WINDOWS = 65_535  # of torch's kernels for half precision on a GPU: an axis of a CUDA grid

# Not by torch.library.custom_op: at the first call that one imports torch's compiler, which takes
# 1.5 s and 150 MiB.
LIBRARY = torch.library.Library("hiera_video", "FRAGMENT")
LIBRARY.define("panel_attention(Tensor q, Tensor k, Tensor v) -> Tensor")
LIBRARY.define(
    "panel_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v)"
    " -> (Tensor, Tensor, Tensor)"
)


def attend(
    q: Float[Tensor, "B h V d"], k: Float[Tensor, "B h U d"], v: Float[Tensor, "B h U d"]
) -> Float[Tensor, "B h V d"]:
    """softmax(q k' / sqrt(d)) v."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        q3, k3, v3 = (x.flatten(0, 1) for x in (q, k, v))
        rows = torch.ops.hiera_video.panel_attention(q3, k3, v3)
        return rows.unflatten(0, q.shape[:2])
    if q.device.type == "cuda" and len(q) > MAX_WINDOWS:
        parts = zip(*(x.split(MAX_WINDOWS) for x in (q, k, v)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
    return F.scaled_dot_product_attention(q, k, v)


@torch.library.impl(LIBRARY, "panel_attention", "CPU")
def panel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q [n, V, d] over k and v [n, U, d]."""
    out = torch.empty(q.shape, dtype=q.dtype)
    for rows, scores, weights in _panels(q, k):
        _probabilities(q[rows], k[rows], scores, weights)
        torch.bmm(weights, v[rows], out=out[rows])
    return out


@torch.library.register_fake("hiera_video::panel_attention", lib=LIBRARY)
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype)


@torch.library.impl(LIBRARY, "panel_attention_backward", "CPU")
def panel_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    for rows, scores, weights in _panels(q, k):
        _probabilities(q[rows], k[rows], scores, weights)
        torch.bmm(weights.mT, grad[rows], out=grad_v[rows])
        torch.bmm(grad[rows], v[rows].mT, out=scores)
        torch.ops.aten._softmax_backward_data.out(
            scores, weights, -1, weights.dtype, grad_input=scores
        )
        _scaled_product(scale, scores, k[rows], grad_q[rows])
        _scaled_product(scale, scores.mT, q[rows], grad_k[rows])
    return grad_q, grad_k, grad_v


@torch.library.register_fake("hiera_video::panel_attention_backward", lib=LIBRARY)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    return grad_q, grad_k, grad_v


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.hiera_video.panel_attention_backward(grad, *ctx.saved_tensors)


torch.library.register_autograd(
    "hiera_video::panel_attention", _backward, setup_context=_setup_context, lib=LIBRARY
)


def _panels(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields slices of n, each with two buffers [slice, V, U] that the next one uses again."""
    n, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    most = max(1, min(n, PANEL_ELEMENTS // (queries * keys)))
    scores = torch.empty((most, queries, keys), dtype=q.dtype)
    weights = torch.empty_like(scores)
    for first in range(0, n, most):
        size = min(most, n - first)
        yield slice(first, first + size), scores[:size], weights[:size]


def _probabilities(q: Tensor, k: Tensor, scores: Tensor, weights: Tensor) -> None:
    _scaled_product(q.shape[-1] ** -0.5, q, k.mT, scores)
    torch.softmax(scores, dim=-1, out=weights)


def _scaled_product(scale: float, a: Tensor, b: Tensor, out: Tensor) -> None:
    """scale * (a @ b), scaled before it is rounded."""
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
