"""The masked autoencoder around Hiera (arXiv 2306.00989, section 3.1 and appendix A).

The encoder sees the kept mask units alone. The outputs of its stages are brought to one resolution
and summed (multi-scale fusion); a decoder of plain blocks fills the hidden places with a learned
token and predicts what was there, in the hidden units alone.

Everything stays ordered by unit, `[B, units, tokens of a unit, D]`: attention over all tokens does
not care about their order, so that nothing has to be put back into space-time order.
Parameter names, less the prefix `encoder.`, are those of facebookresearch/hiera, whose
`encoder_norm` is the encoder's `norm` here.
"""

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from hiera_video.errors import ModelError, counted
from hiera_video.models.blocks import HieraBlock, LayerScale
from hiera_video.models.hiera import Hiera, Trainable
from hiera_video.models.layers import LayerNorm, Linear, autocast_off
from hiera_video.models.masking import hidden_units
from hiera_video.models.units import Size3, divided, size3, times, unravel, unroll
from hiera_video.settings.model import Target

HOG_BINS, HOG_CELL = 9, 8  # orientations without sign; pixels of a cell's side (MaskFeat)


class MaskedAutoencoderHiera(Trainable):
    """Predicts what hidden mask units showed from those that are kept.

    Args:
        encoder: with `num_classes=0`; pools twice in the released models (q_pool=2), once less
            than the classifier that it becomes.
        decoder_heads: 8 in the paper's video recipes (Tab. 11 and 12), 16 in its image recipes
            (Tab. 14) and in all public builders. No tensor's shape shows the number, so that the
            wrong one loads without an error: there is no default.
        decoder_dim: width of the decoder, 512 in the paper.
        decoder_depth: blocks of the decoder, 8 in the paper.
        target: what is predicted, see `targets`.
    """

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
            raise ModelError(f"the encoder has {counted(encoder.num_classes, 'class')}: expected 0")
        if "window_units" in encoder.architecture:
            raise ModelError(
                "window_units is set: windows of several mask units have holes where units are "
                "hidden; an autoencoder needs window_units=None"
            )
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
        # Of the predicted tokens along each axis: those of a unit, pixels of one, and all.
        self.unit_shape = encoder.pooled_unit
        self.tokens_shape = times(encoder.units_shape, self.unit_shape)
        self.token_pixels = divided(encoder.input_size, self.tokens_shape)
        _, h, w = self.token_pixels
        if target == "hog" and (h % HOG_CELL or w % HOG_CELL):
            raise ModelError(
                f"target is 'hog': its cells of {HOG_CELL} pixels do not fit predicted tokens of "
                f"{h}x{w} pixels"
            )

        # The last stage has the resolution already, as have the stages after the last pooling.
        self.multi_scale_fusion_heads = nn.ModuleList()
        for stage, dim in enumerate(encoder.stage_dims[: len(encoder.pools)]):
            kernel = [s ** (len(encoder.pools) - stage) for s in encoder.pools[stage]]
            self.multi_scale_fusion_heads.append(
                nn.Conv3d(dim, encoder.num_features, size3(kernel), size3(kernel))
            )
        self.decoder_embed = Linear(encoder.num_features, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(
            torch.empty(1, math.prod(self.tokens_shape), decoder_dim)
        )
        self.decoder_blocks = nn.ModuleList(
            HieraBlock(decoder_dim, decoder_dim, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = LayerNorm(decoder_dim, eps=1e-6)
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
            elif isinstance(module, nn.LayerNorm | nn.Conv3d | LayerScale):
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
        num_units = self.encoder.num_units
        everywhere = self.mask_token.to(x.dtype).expand(len(x), num_units, x.shape[2], -1)
        x = everywhere.scatter(1, kept[..., None, None].expand_as(x), x)  # [B, M, u, D]
        pos_embed = self.decoder_pos_embed.transpose(1, 2).unflatten(2, self.tokens_shape)
        x = x + unroll(pos_embed, self.unit_shape, []).to(x.dtype)
        for block in self.decoder_blocks:
            x = block(x)
        hidden = hidden_units(kept, num_units)[..., None, None].expand(-1, -1, *x.shape[2:])
        x = x.gather(1, hidden)  # [B, L, u, D]
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
        with autocast_off(x):
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
            frames = F.pad(frames, [border] * 4 + [0, 0], mode="reflect")
        p, q = self.token_pixels[1:]
        frames = frames.unfold(3, p + 2 * border, p).unfold(4, q + 2 * border, q)  # a view
        places = torch.arange(math.prod(self.tokens_shape), device=kept.device)
        places = unroll(places.view(1, 1, *self.tokens_shape), self.unit_shape, [])[0, ..., 0]
        places = places[hidden_units(kept, self.encoder.num_units)]  # [B, L, u]
        clip = torch.arange(len(kept), device=kept.device)[:, None, None]
        time, row, column = unravel(places, self.tokens_shape)
        return frames[clip, :, time, row, column]

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

    Its kernel is its stride, so that it is one linear layer over the tokens that are merged, with
    its weights unrolled as they are.
    """
    weight = unroll(head.weight, size3(head.kernel_size), pools).flatten(1)  # [E, s * D]
    x = rearrange(x, "b k (s u) d -> b k u (s d)", s=math.prod(head.kernel_size))
    return F.linear(x, weight, head.bias)


def histograms_of_gradients(x: Float[Tensor, "n C p q"]) -> Float[Tensor, "n P"]:
    """For each channel and cell of 8x8 pixels of squares with a border of 1: norms by orientation.

    Sobel gradients; 9 bins over half a turn, since an edge has no sign; each pixel counts for one
    bin; each channel of a cell has unit length (MaskFeat; as slowfast/models/operators.py). Ordered
    by channel, bin, cell row and cell column.
    """
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    kernels = kernels.to(x, non_blocking=True)  # `x.new_tensor` would wait for the device
    along_x, along_y = F.conv2d(x.flatten(0, 1)[:, None], kernels).unbind(1)  # [n * C, p, q]
    turn = torch.atan2(along_x, along_y) / math.pi * HOG_BINS
    bins = turn.floor().long() % HOG_BINS
    norms = torch.stack([along_x, along_y]).norm(dim=0)
    sums = x.new_zeros(len(norms), HOG_BINS, *norms.shape[1:])
    sums.scatter_(1, bins[:, None], norms[:, None])
    cells = F.normalize(F.avg_pool2d(sums, HOG_CELL) * HOG_CELL**2, dim=1)
    return rearrange(cells, "(n c) b i j -> n (c b i j)", c=x.shape[1])
