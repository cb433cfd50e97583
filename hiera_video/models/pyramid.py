"""Hiera as the backbone of torchvision's detectors: the outputs of its stages as a pyramid."""

import math
from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from hiera_video.errors import ModelError
from hiera_video.models.hiera import Hiera
from hiera_video.models.positions import absolute_window, resize_spatial
from hiera_video.models.units import divided, reroll, unroll


class Pyramid(nn.Module):
    """The outputs of all stages of a Hiera, for pictures of any size.

    A model for video takes a picture as one moment of a clip in which nothing moves: patches are
    summed over time, and temporal position embeddings are averaged.

    Args:
        encoder: its parameters are shared, and trained with the pyramid's. Its last norm and its
            classifier are not used, and are frozen.

    Attributes:
        channels: width of each stage.
        strides: pixels from one place of a map to the next: 4, 8, 16 and 32 for all variants.
        multiple: height and width of a picture are padded to multiples of these numbers of pixels:
            a mask unit, or a window of several.

    Raises:
        ModelError: mask units or pooling steps of several time steps, or one position embedding
            over space and time.
    """

    def __init__(self, encoder: Hiera) -> None:
        super().__init__()
        times = [encoder.mask_unit[0], *(pool[0] for pool in encoder.pools)]
        if times != [1] * len(times):
            raise ModelError(
                f"mask_unit is {encoder.mask_unit} and q_stride {encoder.pools[0]}: a pyramid of "
                "single frames needs 1 along time in both"
            )
        if encoder.tokens_shape[0] > 1 and not encoder.sep_pos_embed:
            raise ModelError("sep_pos_embed is false: a pyramid of single frames needs it")
        self.encoder = encoder
        self.channels = encoder.stage_dims
        first = encoder.patch_stride[1:]
        pools = [1, *(pool[1] for pool in encoder.pools)]
        self.strides = [first[0] * math.prod(pools[: i + 1]) for i in range(len(self.channels))]
        _, *window = encoder.architecture.get("window_units", (1, 1, 1))
        units = zip(first, encoder.mask_unit[1:], window, strict=True)
        self.multiple = tuple(math.prod(sizes) for sizes in units)
        encoder.norm.requires_grad_(False)
        encoder.head.requires_grad_(False)

    def forward(self, images: Shaped[Tensor, "..."]) -> OrderedDict[str, Tensor]:
        """Maps [B, D, h, w] of the stages, with keys "0", "1", ... as torchvision counts them.

        Where a picture ends inside of a mask unit, zeros are added at its right and bottom; what
        lies there is cut off of the maps, whose sizes are those of the pictures over the strides,
        rounded up.

        Args:
            images: normalised, float [B, C, H, W].

        Raises:
            ModelError: another kind of tensor.
        """
        encoder, channels = self.encoder, self.encoder.in_chans
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise ModelError(
                f"the pictures are {images.dtype} {list(images.shape)}: expected normalised "
                f"pictures in floating point, [B, {channels}, H, W]"
            )
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % self.multiple[1], 0, -height % self.multiple[0]))
        patches = encoder.patch_embed.proj
        kernel = patches.weight.sum(dim=2)
        x = F.conv2d(images, kernel, patches.bias, patches.stride[1:], patches.padding[1:])
        x = (x + self.pos_embed((x.shape[2], x.shape[3])).to(x.dtype)).unsqueeze(2)
        grid = divided(x.shape[2:], encoder.mask_unit)
        x = unroll(x, encoder.mask_unit, encoder.pools)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for i, block in enumerate(encoder.blocks):
            x = block(x, grid)
            if i not in encoder.stage_ends:
                continue
            stage, stride = len(maps), self.strides[len(maps)]
            left = encoder.pools[min(stage, len(encoder.pools)) :]
            tokens = reroll(x, grid, encoder.pooled_unit, left)
            whole = rearrange(tokens, "b 1 h w d -> b d h w")
            maps[str(stage)] = whole[..., : -(-height // stride), : -(-width // stride)]
        return maps

    def pos_embed(self, size: tuple[int, int]) -> Float[Tensor, "1 D h w"]:
        """The position embedding of a picture of `size` = (h, w) tokens."""
        encoder = self.encoder
        if encoder.is_absolute_window:
            parts = encoder.pos_embed, encoder.pos_embed_win
            spatial = absolute_window(*parts, size, encoder.global_pos_antialias)
        else:
            _, height, width = encoder.tokens_shape
            spatial = rearrange(encoder.spatial_pos_embed(), "1 (h w) d -> 1 d h w", h=height)
            if (height, width) != size:
                spatial = resize_spatial(spatial, size, encoder.mask_unit[1:], "window")
        if not encoder.sep_pos_embed:
            return spatial
        return spatial + encoder.pos_embed_temporal.mean(dim=1)[..., None, None]


def feature_pyramid(encoder: Hiera, channels: int) -> FeaturePyramidNetwork:
    """The network that makes maps of `channels` of the stages, and one of twice the last stride."""
    return FeaturePyramidNetwork(
        encoder.stage_dims,
        channels,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=partial(LayerNorm2d, eps=1e-6),
    )


class FeaturePyramid(nn.Module):
    """A Hiera and a feature pyramid network (arXiv 1612.03144), as a backbone for torchvision.

    Maps "0" to "3" have the strides 4 to 32; "pool", of stride 64, has every second value of "3".

    Args:
        encoder: see `Pyramid`.
        out_channels: of all maps.
    """

    def __init__(self, encoder: Hiera, out_channels: int = 256) -> None:
        super().__init__()
        self.body = Pyramid(encoder)
        self.fpn = feature_pyramid(encoder, out_channels)
        self.out_channels = out_channels

    def forward(self, images: Float[Tensor, "B C H W"]) -> OrderedDict[str, Tensor]:
        return self.fpn(self.body(images))
