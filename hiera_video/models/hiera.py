"""Hiera: the hierarchical vision transformer of arXiv 2306.00989, for images and video.

One space-time model serves both: an image is a clip of one frame, patchified by a (1, 7, 7) kernel.
The file follows the data: patches, position embedding, unrolling into mask units, blocks that
attend inside a unit (early) or everywhere (late) and pool between stages, head.

Inside, tokens live unrolled, as `hiera_video.models.units` explains, so that attention windows fold
into the batch as a view. Whatever leaves the model is back in space-time order.

Letters: B batch, C channels, T H W frames and pixels, t h w tokens along an axis, M mask units,
K kept units, U tokens of a unit, D width. Parameter names are those of facebookresearch/hiera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NoReturn, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from hiera_video.errors import ModelError
from hiera_video.models.blocks import Attends, HieraBlock, LayerScale
from hiera_video.models.inputs import check_input
from hiera_video.models.layers import LayerNorm, autocast_off
from hiera_video.models.patches import PatchEmbed
from hiera_video.models.positions import absolute_window
from hiera_video.models.units import (
    Size3,
    check_patches,
    check_sizes,
    check_windows,
    divided,
    reroll,
    size3,
    unroll,
)
from hiera_video.models.variants import PLAIN
from hiera_video.settings.base import takes
from hiera_video.settings.model import HieraArguments

if TYPE_CHECKING:
    from hiera_video.models.card import ModelCard


class Head(nn.Module):
    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        if not hasattr(num_classes, "__index__") or num_classes < 0:
            raise ModelError(f"num_classes is {num_classes!r}: expected a whole number, 0 for none")
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B L"]:
        if isinstance(self.projection, nn.Linear):
            x = x.to(self.projection.weight.dtype)
        with autocast_off(x):  # a row a clip: float32 costs nothing
            return self.projection(self.dropout(x))


def outputs_of(head: nn.Module) -> int:
    """Outputs of the projection of a `Head`, also of one that was assigned later; 0 for none."""
    projection = getattr(head, "projection", None)
    return projection.out_features if isinstance(projection, nn.Linear) else 0


class Trainable(nn.Module):
    """What training asks of a Hiera, and of a model around one as its `encoder`."""

    card: ModelCard | None = None  # of the weights that were loaded into the model, if any
    in_float32: ClassVar[tuple[str, ...]] = ()  # parts that stay so in a model of half precision
    compiles_whole: ClassVar[bool] = True  # whether `compile` is not for a part of the model alone

    def __prepare_scriptable__(self) -> NoReturn:  # which torch.jit.script calls
        raise ModelError(
            "TorchScript is not supported: `hiera-video export` writes a model of a weights folder "
            "as a torch.export program and as ONNX"
        )

    def set_grad_checkpointing(self, enable: bool = True, num_stages: int | None = None) -> None:
        """Recompute blocks in the backward pass: less memory for about a third more time.

        Args:
            num_stages: only the blocks of so many stages of the encoder, from the first, which
                hold the most memory. None: all blocks, also those of a decoder.

        Raises:
            ModelError: the encoder has fewer stages.
        """
        blocks = [module for module in self.modules() if isinstance(module, HieraBlock)]
        recomputed = set(blocks)
        if num_stages is not None:
            encoder = cast("Hiera", getattr(self, "encoder", self))
            ends = [-1, *encoder.stage_ends]
            if not 0 <= num_stages < len(ends):
                raise ModelError(
                    f"grad_checkpointing_stages is {num_stages}; it must be from 0 to "
                    f"{len(ends) - 1}, as many stages as the model has"
                )
            recomputed = {*encoder.blocks[: ends[num_stages] + 1]}
        for block in blocks:
            block.recompute = enable and block in recomputed

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed although they are not vectors."""
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if "pos_embed" in name or name == "mask_token"}

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise learning-rate decay.

        As SlowFast counts (slowfast/models/optimizer.py): stem and position embeddings 0, block i
        i + 1, norm and head one more than the last block.
        """
        top = 1 + sum(isinstance(module, HieraBlock) for module in self.modules())
        ids = dict.fromkeys(dict(self.named_parameters()), top)
        for name in ids:
            part, _, rest = name.removeprefix("encoder.").partition(".")
            if part.startswith(("patch_embed", "pos_embed")):
                ids[name] = 0
            elif part == "blocks":
                ids[name] = int(rest.partition(".")[0]) + 1
        return ids


class Hiera(Trainable):
    """The backbone and its classifier.

    Args:
        input_size: frames, height and width of a clip, in pixels; (1, H, W) for images.
        in_chans: colour channels of the input.
        num_classes: outputs of the classifier; 0 leaves the pooled, normalised features.
        embed_dim: width of the first stage, which doubles with each stage.
        num_heads: of attention in the first stage; they double with each stage.
        stages: blocks of each stage.
        q_pool: how many stage transitions pool (3 in classifiers; 2 in MAE pretraining).
        q_stride: tokens merged by a pooling step, along (time, height, width).
        mask_unit: tokens of a mask unit, along (time, height, width): what masking keeps or hides
            as one, and the window of early attention. A multiple of `q_stride ** q_pool`.
        mask_unit_attn: for each stage, attend within units (True) or everywhere. The first block of
            a stage follows the stage before it, since its keys are not pooled yet.
        window_units: mask units, along (time, height, width), of the windows in which those blocks
            attend that do not within units; None: everywhere.
        global_blocks: blocks, counted from 0 through all stages, that attend everywhere although
            `window_units` is set (SAM 2's encoders).
        patch_kernel: of the patchifying convolution, along (time, height, width).
        patch_stride: likewise.
        patch_padding: likewise.
        sep_pos_embed: learn the position embedding as a spatial plus a temporal part (video).
        global_pos_size: tokens, along (height, width), of the global part of an absolute-window
            embedding, `hiera_video.models.positions.absolute_window`, which fits any size of input;
            None: one embedding for each token.
        global_pos_antialias: whether the global part is interpolated with antialiasing.
        layer_scale: a learned factor for each channel of both branches of a block.
        expand_proj: where the width doubles, the residual goes through a linear layer; else it is
            the maximum of the pooled tokens beside their mean (timm's absolute-window models).
        mlp_ratio: hidden width of the MLP over the block's width.
        drop_path: rate of stochastic depth in the last block, growing linearly from 0 in the first.
        head_dropout: dropout before the classifier.

    Raises:
        ModelError: for sizes that do not fit together, naming the nearest that do.
    """

    in_float32 = ("norm", "head")  # of a row a clip: it costs nothing

    @takes(HieraArguments)
    def __init__(
        self,
        *,
        input_size: Size3 = (16, 224, 224),
        in_chans: int = 3,
        num_classes: int = 400,
        embed_dim: int = 96,
        num_heads: int = 1,
        stages: Sequence[int] = (2, 3, 16, 3),
        q_pool: int = 3,
        q_stride: Size3 = (1, 2, 2),
        mask_unit: Size3 = (1, 8, 8),
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        window_units: Size3 | None = None,
        global_blocks: Sequence[int] = (),
        patch_kernel: Size3 = (3, 7, 7),
        patch_stride: Size3 = (2, 4, 4),
        patch_padding: Size3 = (1, 3, 3),
        sep_pos_embed: bool = True,
        global_pos_size: tuple[int, int] | None = None,
        global_pos_antialias: bool = True,
        layer_scale: bool = False,
        expand_proj: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        if not 0 <= q_pool < len(stages):
            raise ModelError(
                f"q_pool is {q_pool}: allowed are 0 to {len(stages) - 1}, one per stage transition"
            )
        if len(mask_unit_attn) != len(stages):
            raise ModelError(
                f"mask_unit_attn has {len(mask_unit_attn)} entries for {len(stages)} stages"
            )
        if unknown := set(global_blocks) - set(range(sum(stages))):
            raise ModelError(
                f"global_blocks has {min(unknown)}: the blocks are 0 to {sum(stages) - 1}"
            )
        if embed_dim % num_heads:
            raise ModelError(f"embed_dim is {embed_dim}: num_heads={num_heads} does not divide it")
        check_sizes(input_size, patch_stride, mask_unit, q_stride, q_pool)
        check_patches(input_size, patch_kernel, patch_stride, patch_padding)

        # What builds the network again, except for its classifier's outputs.
        others = ("self", "__class__", "num_classes", "drop_path", "head_dropout")
        self.architecture = {
            key: value
            for key, value in arguments.items()
            if key not in others and (key not in PLAIN or value != PLAIN[key])
        }
        self.input_size = size3(input_size)
        self.in_chans, self.head_dropout = in_chans, head_dropout
        self.mask_unit, self.patch_stride = size3(mask_unit), size3(patch_stride)
        self.tokens_shape = divided(input_size, patch_stride)
        self.units_shape = divided(self.tokens_shape, mask_unit)
        self.num_units = math.prod(self.units_shape)
        if window_units is not None:
            check_windows(self.units_shape, window_units)
        if global_pos_size is not None and self.tokens_shape[0] > 1 and not sep_pos_embed:
            raise ModelError("global_pos_size is set: for several frames, set sep_pos_embed too")
        self.pools: list[Size3] = [size3(q_stride)] * q_pool
        self.pooled_unit = divided(mask_unit, [s**q_pool for s in q_stride])  # tokens left of it
        self.stage_ends = [sum(stages[: i + 1]) - 1 for i in range(len(stages))]
        self.stage_dims = [embed_dim * 2**i for i in range(len(stages))]

        self.patch_embed = PatchEmbed(
            in_chans, embed_dim, patch_kernel, patch_stride, patch_padding
        )
        t, h, w = self.tokens_shape
        self.sep_pos_embed = sep_pos_embed
        self.global_pos_antialias = global_pos_antialias
        self.is_absolute_window = global_pos_size is not None
        if global_pos_size is not None:
            self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, *global_pos_size))
            self.pos_embed_win = nn.Parameter(torch.empty(1, embed_dim, *mask_unit[1:]))
        elif sep_pos_embed:
            self.pos_embed_spatial = nn.Parameter(torch.empty(1, h * w, embed_dim))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, t * h * w, embed_dim))
        if sep_pos_embed:
            self.pos_embed_temporal = nn.Parameter(torch.empty(1, t, embed_dim))

        beyond: Attends = "everywhere" if window_units is None else size3(window_units)
        depth = sum(stages)
        self.blocks = nn.ModuleList()
        for stage, num_blocks in enumerate(stages):
            for i in range(num_blocks):
                first = stage > 0 and i == 0
                attends = beyond if len(self.blocks) not in global_blocks else "everywhere"
                if mask_unit_attn[stage - 1 if first else stage]:
                    attends = "within units"
                self.blocks.append(
                    HieraBlock(
                        dim=self.stage_dims[stage - 1 if first else stage],
                        dim_out=self.stage_dims[stage],
                        heads=num_heads * 2**stage,
                        mlp_ratio=mlp_ratio,
                        drop_path=drop_path * len(self.blocks) / max(depth - 1, 1),
                        pool=math.prod(q_stride) if first and stage <= q_pool else 1,
                        attends=attends,
                        layer_scale=layer_scale,
                        expand_proj=expand_proj,
                    )
                )
        self.norm = LayerNorm(self.num_features, eps=1e-6)
        self.head = Head(self.num_features, num_classes, head_dropout)
        self.init_weights()

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier, 0 for none."""
        return outputs_of(self.head)

    @property
    def num_features(self) -> int:
        """Width of the last stage."""
        return self.stage_dims[-1]

    @torch.no_grad()
    def init_weights(self, part: nn.Module | None = None) -> None:
        """As the official code: truncated normal 0.02, biases 0.02, a classifier 1000x smaller.

        Args:
            part: one that has the classifier. None: the whole model.
        """
        part = self if part is None else part
        for name, parameter in part.named_parameters():
            if "pos_embed" in name:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Conv3d) and module.bias is not None:  # torch's own, kept
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound)
            if isinstance(module, nn.Linear | nn.LayerNorm):
                nn.init.constant_(module.bias, 0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, LayerScale):
                module.reset_parameters()
        for parameter in self.head.parameters():
            parameter.mul_(0.001)

    # Forward pass.

    def forward(self, x: Shaped[Tensor, "B C *T H W"]) -> Float[Tensor, "B L"]:
        """A normalised clip of `input_size` to logits, in training and in evaluation alike.

        Models of one frame take images [B, C, H, W] too, here and in the other methods.
        """
        return self.forward_head(self.encode(x)[-1])

    def forward_features(self, x: Shaped[Tensor, "B C *T H W"]) -> Float[Tensor, "B t h w D"]:
        """The last stage's tokens in space-time order, not normalised."""
        return self.reroll(self.encode(x)[-1], stage=-1)

    def forward_head(
        self, x: Float[Tensor, "B ... D"], pre_logits: bool = False
    ) -> Float[Tensor, "B L"]:
        """Tokens, in any order, to logits: mean, norm, dropout, linear.

        With `pre_logits`, the pooled and normalised features `[B, D]` instead.
        """
        x = self.norm(x.flatten(1, -2).mean(dim=1, dtype=self.norm.weight.dtype))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self, x: Shaped[Tensor, "B C *T H W"], indices: Sequence[int] | None = None
    ) -> list[Float[Tensor, "B t h w D"]]:
        """Outputs of the stages `indices` (all by default; -1 is the last), in space-time order."""
        stages = range(len(self.stage_ends))
        if isinstance(indices, int):
            raise ModelError(f"indices is {indices}: expected a list of stages, such as [-2, -1]")
        indices = list(stages if indices is None else indices)
        for i in indices:
            if i not in stages and i + len(stages) not in stages:
                raise ModelError(f"indices has {i}: the model has stages 0 to {stages[-1]}")
        indices = [i % len(stages) for i in indices]
        outputs = self.encode(x, num_stages=max(indices, default=0) + 1)
        return [self.reroll(outputs[i], stage=i) for i in indices]

    def encode(
        self,
        x: Shaped[Tensor, "B C *T H W"],
        kept: Int[Tensor, "B K"] | None = None,
        num_stages: int | None = None,
    ) -> list[Float[Tensor, "B K U D"]]:
        """Outputs of the stages, unrolled: K units, in space-time order, of U tokens.

        Args:
            kept: mask units to see, ascending; of the others nothing is seen or computed. None:
                all. `hiera_video.models.masking` draws them.
            num_stages: how many to run. None: all.
        """
        x = self.as_clips(x)
        if kept is None:
            return self.run_blocks(self.embed(x), self.units_shape, num_stages)
        return self.run_blocks(self.embed_units(x, kept), None, num_stages)

    def run_blocks(
        self, x: Float[Tensor, "B K U D"], grid: Size3 | None, num_stages: int | None = None
    ) -> list[Float[Tensor, "B K _ _"]]:
        """Outputs of the stages for embedded tokens; `grid`: that of the units, if all are here."""
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x, grid)
            if i in self.stage_ends:
                outputs.append(x)
            if len(outputs) == num_stages:
                break
        return outputs

    def embed(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B M U D"]:
        """Tokens of all units, with their position embeddings."""
        x = self.patch_embed(x)  # in the type of autocast, in which tokens stay
        return unroll(x + self.get_pos_embed().to(x.dtype), self.mask_unit, self.pools)

    def embed_units(
        self, x: Float[Tensor, "B C T H W"], kept: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K U D"]:
        """Tokens of the units `kept`, with their position embeddings.

        The patches overlap: at the border of a unit they reach into its neighbours, of which the
        hidden ones count as zeros, as in the official code. That one zeroes the hidden pixels and
        convolves the whole clip; here the pixels of the kept units alone are convolved.
        """
        batch, num_kept = kept.shape
        windows = self.patch_embed.windows(x, kept, self.units_shape, self.mask_unit)
        x = self.patch_embed.convolve(windows.flatten(0, 1))  # [(B K), D, t, h, w] of a unit
        x = unroll(x, self.mask_unit, self.pools).view(batch, num_kept, -1, x.shape[1])
        t, h, w = self.tokens_shape
        tokens = torch.arange(t * h * w, device=kept.device).view(1, 1, t, h, w)
        tokens = unroll(tokens, self.mask_unit, self.pools)[0, ..., 0][kept]  # [B, K, U]
        if not self.sep_pos_embed:
            return x + F.embedding(tokens, self.spatial_pos_embed()[0]).to(x.dtype)
        spatial = F.embedding(tokens % (h * w), self.spatial_pos_embed()[0])
        temporal = F.embedding(tokens // (h * w), self.pos_embed_temporal[0])
        return x + (spatial + temporal).to(x.dtype)

    def get_pos_embed(self) -> Float[Tensor, "1 D t h w"]:
        """The position embedding on the token grid."""
        t, h, w = self.tokens_shape
        if not self.sep_pos_embed:
            return rearrange(self.spatial_pos_embed(), "b (t h w) d -> b d t h w", t=t, h=h, w=w)
        spatial = rearrange(self.spatial_pos_embed(), "b (h w) d -> b d 1 h w", h=h, w=w)
        return spatial + rearrange(self.pos_embed_temporal, "b t d -> b d t 1 1")

    def spatial_pos_embed(self) -> Float[Tensor, "1 n D"]:
        """That of the n tokens of a time step; of all tokens, without `sep_pos_embed`."""
        if not self.is_absolute_window:
            return self.pos_embed_spatial if self.sep_pos_embed else self.pos_embed
        _, *size = self.tokens_shape
        parts = self.pos_embed, self.pos_embed_win
        grid = absolute_window(*parts, size, self.global_pos_antialias)
        return rearrange(grid, "1 d h w -> 1 (h w) d")

    def reroll(self, x: Float[Tensor, "B M U D"], stage: int) -> Float[Tensor, "B t h w D"]:
        """The unrolled output of a stage, with all units present, in space-time order."""
        done = min(stage % len(self.stage_ends), len(self.pools))
        return reroll(x, self.units_shape, self.pooled_unit, self.pools[done:])

    def as_clips(self, x: Shaped[Tensor, "B C *T H W"]) -> Float[Tensor, "B C T H W"]:
        """The input of the model, an image as a clip of one frame.

        Raises:
            ModelError: another size, or values that are not normalised.
        """
        is_images = self.input_size[0] == 1 and x.shape[1:] == (self.in_chans, *self.input_size[1:])
        clips = x.unsqueeze(2) if is_images else x
        check_input(clips, self.in_chans, self.input_size)
        return clips

    # What timm's users expect of a model.

    def get_classifier(self) -> nn.Module:
        return self.head.projection

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier for `num_classes` outputs; 0 removes it."""
        weight = self.norm.weight
        head = Head(self.num_features, num_classes, self.head_dropout)
        self.head = head.to(weight.device, weight.dtype)
        self.init_weights(self.head)
        if self.card is not None:
            self.card = self.card.without_classes()
