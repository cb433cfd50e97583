"""The masked autoencoder around Hiera (arXiv 2306.00989, section 3.1 and appendix A).

The encoder sees the kept mask units alone. The outputs of its stages are brought to one resolution
and summed (multi-scale fusion); a decoder of plain blocks fills the hidden places with a learned
token and predicts what was there, in the hidden units alone.

Everything stays ordered by unit, `[B, units, tokens of a unit, D]`: attention over all tokens does
not care about their order, so that nothing has to be put back into space-time order.
Parameter names, less the prefix `encoder.`, are those of facebookresearch/hiera, whose
`encoder_norm` is the encoder's `norm` here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import ModelError
from hiera_video.models.hiera import Hiera, HieraBlock
from hiera_video.models.linear import Linear
from hiera_video.models.masking import hidden_units
from hiera_video.models.units import Size3

if TYPE_CHECKING:
    from hiera_video.models.card import ModelCard

Target = Literal["pixels", "hog"]

HOG_BINS, HOG_CELL = 9, 8  # orientations without sign; pixels of a cell's side (MaskFeat)


class MaskedAutoencoderHiera(nn.Module):
    """Predicts what hidden mask units showed from those that are kept.

    Args:
        encoder: with `num_classes=0`; pools twice in the released models (q_pool=2), once less
            than the classifier that it becomes.
        decoder_heads: 8 in the paper's video recipes (Tab. 11 and 12), 16 in its image recipes
            (Tab. 14) and in all public builders. No tensor's shape shows the number, so that the
            wrong one loads without an error: there is no default.
        decoder_dim, decoder_depth: width and blocks of the decoder, 512 and 8 in the paper.
        target: what is predicted, see `targets`.

    Attributes:
        card: of the weights that were loaded into the model. None: it has not loaded any.
    """

    card: ModelCard | None = None

    def __init__(
        self,
        encoder: Hiera,
        *,
        decoder_heads: int,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        target: Target = "pixels",
    ) -> None:
        super().__init__()
        if encoder.num_classes:
            raise ModelError(f"the encoder has {encoder.num_classes} classes: needed are 0")
        if decoder_heads < 1 or decoder_dim % decoder_heads:
            raise ModelError(
                f"decoder_heads is {decoder_heads}: decoder_dim={decoder_dim} does not divide by it"
            )
        if target not in get_args(Target):
            raise ModelError(f"target is {target!r}: allowed are {', '.join(get_args(Target))}")
        self.encoder, self.target = encoder, target
        self.decoder_architecture: dict[str, Any] = {
            "decoder_heads": decoder_heads,
            "decoder_dim": decoder_dim,
            "decoder_depth": decoder_depth,
            "target": target,
        }
        # What a predicted token covers: tokens of a unit along each axis, and pixels of a token.
        merged: Size3 = _product3(encoder.pools)
        t, h, w = (m // n for m, n in zip(encoder.mask_unit, merged, strict=True))
        self.unit_shape: Size3 = (t, h, w)
        t, h, w = (p * n for p, n in zip(encoder.patch_stride, merged, strict=True))
        self.token_pixels: Size3 = (t, h, w)
        if target == "hog" and (h % HOG_CELL or w % HOG_CELL):
            raise ModelError(
                f"target is 'hog': its cells of {HOG_CELL} pixels do not fit predicted tokens of "
                f"{h}x{w} pixels"
            )

        # The last stage has the resolution already, as have the stages after the last pooling.
        self.multi_scale_fusion_heads = nn.ModuleList()
        for stage, dim in enumerate(encoder.stage_dims[: len(encoder.pools)]):
            kernel = _product3(encoder.pools[stage:])
            self.multi_scale_fusion_heads.append(
                nn.Conv3d(dim, encoder.num_features, kernel, kernel)
            )
        tokens = encoder.num_units * math.prod(self.unit_shape)
        self.decoder_embed = Linear(encoder.num_features, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, tokens, decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            HieraBlock(
                dim=decoder_dim,
                dim_out=decoder_dim,
                heads=decoder_heads,
                mlp_ratio=4.0,
                drop_path=0.0,
                pool=1,
                within_units=False,
            )
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        cells = h // HOG_CELL * (w // HOG_CELL)
        values = h * w if target == "pixels" else cells * HOG_BINS
        self.decoder_pred = Linear(decoder_dim, values * encoder.in_chans)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """As the official code: Xavier for linear layers and patches, normal 0.02 for tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv3d):
                module.reset_parameters()
        nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.flatten(1))
        for name, parameter in self.named_parameters():
            if "pos_embed" in name or name == "mask_token":
                nn.init.trunc_normal_(parameter, std=0.02)

    # Forward pass.

    def forward(
        self, x: Shaped[Tensor, "B C *T H W"], kept: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B L u P"]:
        """Predictions for the L hidden units: P values for each of their u tokens.

        Args:
            x: normalised clips.
            kept: the mask units to see, ascending, from `hiera_video.models.masking.kept_units`.
        """
        return self.decode(self.fuse(self.encoder.encode(x, kept)), kept)

    def fuse(self, stages: Sequence[Float[Tensor, "B K _ _"]]) -> Float[Tensor, "B K u E"]:
        """The stages that pool, and the last one, at its resolution and width: their sum, normed.

        The paper says all stages; the released models leave out what lies between.
        """
        x = stages[-1]
        for i, head in enumerate(self.multi_scale_fusion_heads):
            assert isinstance(head, nn.Conv3d)
            x = x + fuse_stage(stages[i], head, self.encoder.pools[i:])
        return self.encoder.norm(x)

    def decode(
        self, x: Float[Tensor, "B K u E"], kept: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B L u P"]:
        """Predictions for the hidden units from the fused tokens of the kept ones."""
        x = self.decoder_embed(x)
        num_units, (t, h, w) = self.encoder.num_units, self.unit_shape
        everywhere = self.mask_token.to(x.dtype).expand(len(x), num_units, t * h * w, -1)
        x = everywhere.scatter(1, kept[..., None, None].expand_as(x), x)  # [B, M, u, D]
        units = dict(zip("ijk", self.encoder.units_shape, strict=True), t=t, h=h, w=w)
        pos_embed = "b (i t j h k w) d -> b (i j k) (t h w) d"
        x = x + rearrange(self.decoder_pos_embed, pos_embed, **units)
        for block in self.decoder_blocks:
            if self.encoder.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = _take(x, hidden_units(kept, num_units))
        return self.decoder_pred(self.decoder_norm(x))

    @torch.no_grad()
    def targets(
        self, x: Shaped[Tensor, "B C *T H W"], kept: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B L u P"]:
        """What `forward` should predict, float32, of the first frame that each token covers.

        "pixels": those of the token's square, less their mean, over their standard deviation. The
        released video models order them (height, width, channel), the image models (channel,
        height, width); weights go with this order.
        "hog": histograms of oriented gradients, the paper's alternative (Tab. 3), as in MaskFeat
        (arXiv 2112.09133): for each channel and cell of 8x8 pixels 9 orientations, of unit norm.
        """
        with torch.autocast(x.device.type, enabled=False):
            frames = self.encoder.as_clips(x)[:, :, :: self.token_pixels[0]].float()
            if self.target == "hog":
                squares = self._hidden_squares(frames, kept, border=1)  # [B, L, u, C, p + 2, q + 2]
                return histograms_of_gradients(squares.flatten(0, 2)).unflatten(
                    0, squares.shape[:3]
                )
            squares = self._hidden_squares(frames, kept)  # [B, L, u, C, p, q]
            if self.encoder.patch_stride[0] > 1:
                squares = squares.movedim(3, -1)
            values = squares.flatten(3)
            variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
            return (values - mean) / (variance + 1e-6).sqrt()

    def _hidden_squares(
        self, frames: Float[Tensor, "B C t H W"], kept: Int[Tensor, "B K"], border: int = 0
    ) -> Float[Tensor, "B L u C p q"]:
        """The pixels of each hidden token, and `border` around them; a frame's end is mirrored."""
        if border:
            frames = rearrange(frames, "b c t h w -> b (c t) h w")
            frames = F.pad(frames, [border] * 4, mode="reflect")
            frames = frames.unflatten(1, (self.encoder.in_chans, -1))
        p, q = self.token_pixels[1:]
        frames = frames.unfold(3, p + 2 * border, p).unfold(4, q + 2 * border, q)  # a view
        (i, j, k), (t, h, w) = self.encoder.units_shape, self.unit_shape
        places = torch.arange(i * t * j * h * k * w, device=kept.device)
        order = "(i t j h k w) -> (i j k) (t h w)"
        places = rearrange(places, order, i=i, j=j, t=t, h=h, w=w)
        places = places[hidden_units(kept, self.encoder.num_units)]  # [B, L, u]
        clip = torch.arange(len(kept), device=kept.device)[:, None, None]
        across = k * w
        return frames[
            clip, :, places // (j * h * across), places // across % (j * h), places % across
        ]

    # What the optimizer and the training command ask.

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block, of the decoder too, in the backward pass."""
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed although they are not vectors."""
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if "pos_embed" in name or name == "mask_token"}

    def layer_ids(self) -> dict[str, int]:
        """All one layer: pretraining decays no learning rates by depth."""
        return {name: 0 for name, _ in self.named_parameters()}


def reconstruction_losses(
    prediction: Float[Tensor, "B L u P"], target: Float[Tensor, "B L u P"]
) -> Float[Tensor, " B"]:
    """Mean squared error of each clip, float32."""
    return (prediction.float() - target).square().mean(dim=(1, 2, 3))


def fuse_stage(
    x: Float[Tensor, "B K V D"], head: nn.Conv3d, pools: Sequence[Size3]
) -> Float[Tensor, "B K u E"]:
    """The convolution `head` over what the pooling steps `pools` will merge, on unrolled tokens.

    Its kernel is its stride, so that it is one linear layer over the tokens that are merged. In
    unrolled order the first step comes first, in the kernel it is the finest place on each axis.
    """
    steps = len(pools)
    places = [pool[axis] for axis in range(3) for pool in reversed(pools)]
    order = [2 + axis * steps + steps - 1 - step for step in range(steps) for axis in range(3)]
    weight = head.weight.unflatten(4, places[2 * steps :]).unflatten(3, places[steps : 2 * steps])
    weight = weight.unflatten(2, places[:steps]).permute(0, *order, 1).flatten(1)
    merged = math.prod(places)
    return F.linear(rearrange(x, "b k (s u) d -> b k u (s d)", s=merged), weight, head.bias)


def histograms_of_gradients(x: Float[Tensor, "n C p q"]) -> Float[Tensor, "n P"]:
    """For each channel and cell of 8x8 pixels of squares with a border of 1: norms by orientation.

    Sobel gradients; 9 bins over half a turn, since an edge has no sign; each pixel counts for one
    bin; each channel of a cell has unit length (MaskFeat; as slowfast/models/operators.py). Ordered
    by channel, bin, cell row and cell column.
    """
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([1.0, 0.0, -1.0])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    along_x, along_y = F.conv2d(x.flatten(0, 1)[:, None], kernels).unbind(1)  # [n * C, p, q]
    turn = torch.atan2(along_x, along_y) / math.pi * HOG_BINS
    bins = turn.floor().long() % HOG_BINS
    norms = torch.stack([along_x, along_y]).norm(dim=0)
    counted = x.new_zeros(len(norms), HOG_BINS, *norms.shape[1:])
    counted.scatter_(1, bins[:, None], norms[:, None])
    cells = F.normalize(F.avg_pool2d(counted, HOG_CELL) * HOG_CELL**2, dim=1)
    return rearrange(cells, "(n c) b i j -> n (c b i j)", c=x.shape[1])


def _take(x: Float[Tensor, "B M u D"], units: Int[Tensor, "B L"]) -> Float[Tensor, "B L u D"]:
    """The units `units` of each clip."""
    return x.gather(1, units[..., None, None].expand(-1, -1, *x.shape[2:]))


def _product3(pools: Sequence[Size3]) -> Size3:
    t, h, w = (math.prod(pool[axis] for pool in pools) for axis in range(3))
    return t, h, w
