"""The blocks of Hiera: attention within mask units or beyond them, pooling, MLP.

Tokens are unrolled, `[B, M, U, D]`: `hiera_video.models.units`. Parameter names are those of
facebookresearch/hiera, and of timm for `LayerScale`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.models.attention import attend
from hiera_video.models.layers import LayerNorm, Linear, gelu_linear, is_plain
from hiera_video.models.units import Size3, divided, pool_tokens

# Tokens attend within units, everywhere, or in windows of units along (time, height, width).
Attends = Literal["within units", "everywhere"] | Size3


class DropPath(nn.Module):
    """Drops a residual branch for a whole sample with probability `rate` (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * kept.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class MaskUnitAttention(nn.Module):
    """Attention within each mask unit, or over all tokens; queries may be pooled on the way.

    Replaces the pooling attention of MViTv2 (paper, section 3.2 and Tab. 1f).
    """

    def __init__(self, dim: int, dim_out: int, heads: int, pool: int, attends: Attends) -> None:
        super().__init__()
        self.heads, self.pool, self.attends = heads, pool, attends
        self.qkv = Linear(dim, 3 * dim_out)
        self.proj = Linear(dim_out, dim_out)

    def forward(
        self, x: Float[Tensor, "B M U D"], grid: Size3 | None = None
    ) -> Float[Tensor, "B M V E"]:
        q, k, v = self.queries_keys_values(x)
        # Windows fold into the batch, as views: fused kernels take 4-D tensors only, and the 5-D
        # call of the official code runs the unfused one (2.3x slower over 1568 tokens on a CPU).
        units, fold, sizes = "m", "b h (m u) d", {"m": x.shape[1]}
        if self.attends == "within units":
            fold = "(b m) h u d"
        elif self.attends != "everywhere":
            assert grid is not None
            units, fold = "(T t I i J j)", "(b T I J) h (t i j u) d"
            sizes = dict(zip("tijTIJ", self.attends + divided(grid, self.attends), strict=True))
        y = attend(*(rearrange(a, f"b {units} u h d -> {fold}", **sizes) for a in (q, k, v)))
        return self.proj(rearrange(y, f"{fold} -> b {units} u (h d)", **sizes))

    def queries_keys_values(
        self, x: Float[Tensor, "B M U D"]
    ) -> tuple[Float[Tensor, "B M V h d"], Float[Tensor, "B M U h d"], Float[Tensor, "B M U h d"]]:
        """For each of h heads; the queries are pooled."""
        qkv = rearrange(self.qkv(x), "b m u (three h d) -> three b m u h d", three=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        return pool_tokens(q, self.pool), k, v


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.fc2(gelu_linear(x, self.fc1))
        x = self.fc1(x)
        if not self.training:
            return self.project(x)
        # gelu(x), the widest activation of a block, is a fifth of the memory of a training step and
        # takes 1 % of its time. It is computed again for the backward pass; fc2's product is not.
        may_draw = not is_plain(self.fc2)  # random numbers, which must be the same again
        return checkpoint(self.project, x, use_reentrant=False, preserve_rng_state=may_draw)

    def project(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(x))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.gamma).to(x.dtype)


class HieraBlock(nn.Module):
    """Pre-norm transformer block. A change of width takes the residual along.

    By a linear layer and the maximum of what is pooled; without `expand_proj`, which only doubles
    the width, by the maximum beside the mean.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        pool: int = 1,
        attends: Attends = "everywhere",
        layer_scale: bool = False,
        expand_proj: bool = True,
    ) -> None:
        super().__init__()
        self.pool, self.widens, self.recompute = pool, dim != dim_out, False
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = MaskUnitAttention(dim, dim_out, heads, pool, attends)
        self.ls1 = LayerScale(dim_out) if layer_scale else nn.Identity()
        self.norm2 = LayerNorm(dim_out, eps=1e-6)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.ls2 = LayerScale(dim_out) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.proj = Linear(dim, dim_out) if self.widens and expand_proj else None

    @torch.no_grad()
    def without_affine_norms(self) -> dict[str, Tensor]:
        """Parameters of the same function, by name, whose norms have weights of 1 and no biases.

        Those are part of the linear layers that follow, whose products round them once. Empty if
        these are other layers than this file's.
        """
        after = {"norm1": {"attn.qkv": self.attn.qkv}, "norm2": {"mlp.fc1": self.mlp.fc1}}
        if self.proj is not None:
            after["norm1"]["proj"] = self.proj
        found = {}
        for name, layers in after.items():
            norm = getattr(self, name)
            plain = all(is_plain(layer) and layer.bias is not None for layer in layers.values())
            if not plain or type(norm) is not LayerNorm:
                continue
            for key, layer in layers.items():
                found[f"{key}.weight"] = layer.weight * norm.weight
                found[f"{key}.bias"] = layer.bias + layer.weight @ norm.bias
            found[f"{name}.weight"] = torch.ones_like(norm.weight)
            found[f"{name}.bias"] = torch.zeros_like(norm.bias)
        return found

    def forward(
        self, x: Float[Tensor, "B M U D"], grid: Size3 | None = None
    ) -> Float[Tensor, "B M V E"]:
        """Tokens after the block.

        Args:
            grid: mask units along (time, height, width), all of them present; windows of several
                units need it.
        """
        if self.recompute and self.training:
            return checkpoint(self.compute, x, grid, use_reentrant=False)
        return self.compute(x, grid)

    def compute(self, x: Float[Tensor, "B M U D"], grid: Size3 | None) -> Float[Tensor, "B M V E"]:
        y = self.norm1(x)
        if self.proj is not None:
            x = pool_tokens(self.proj(y), self.pool)
        elif self.widens:
            mean = x.unflatten(2, (self.pool, -1)).mean(dim=2)
            x = torch.cat([pool_tokens(x, self.pool), mean], dim=-1)
        x = x + self.drop_path(self.ls1(self.attn(y, grid)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
