"""The models that `hiera-video benchmark` measures: of this package, and of other libraries.

The input of each is the clip for which its authors publish its accuracy. Clips per second of
different clips are not comparable; the tables state the clip. Accuracies are top-1 on Kinetics-400
or ImageNet-1k as published by the authors, with their views and pretraining: for Hiera in arXiv
2306.00989, tables 4 and 8; for torchvision in the metadata of its weights; for pytorchvideo in its
docs/source/model_zoo.md, except MViT-B: arXiv 2104.11227, table 4; for MViTv2-L with its settings.

MViTv2-L, from which Hiera was simplified, is built of torchvision's `MViT` for video. That class
always has a class token and tables of relative positions in time; the published model for images
has neither, and is that of timm.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import UnitMasking
from hiera_video.models.pretrained import create_autoencoder, create_model
from hiera_video.models.units import unroll
from hiera_video.models.variants import VARIANTS, check_known, is_image, paper_mask_ratio
from hiera_video.settings.model import Masking

HIERA_TOP1 = {
    "hiera_base_16x224": 84.0,
    "hiera_base_plus_16x224": 85.0,
    "hiera_large_16x224": 87.3,
    "hiera_huge_16x224": 87.8,
    "hiera_tiny_224": 82.8,
    "hiera_small_224": 83.8,
    "hiera_base_224": 84.5,
    "hiera_base_plus_224": 85.2,
    "hiera_large_224": 86.1,
    "hiera_huge_224": 86.9,
}
# Clips for which torchvision's weights state accuracies.
TORCHVISION_VIDEOS = {
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
    "swin3d_t": (3, 32, 224, 224),
    "swin3d_s": (3, 32, 224, 224),
    "swin3d_b": (3, 32, 224, 224),
    "s3d": (3, 128, 224, 224),
    "r3d_18": (3, 16, 112, 112),
}
TORCHVISION_IMAGES = {
    "vit_b_16": (3, 224, 224),
    "swin_v2_b": (3, 256, 256),
    "convnext_base": (3, 224, 224),
    "resnet50": (3, 224, 224),
}
PYTORCHVIDEO_HUB = "pytorchvideo.models.hub"
PYTORCHVIDEO = {  # clip, accuracy
    "mvit_base_16x4": ((3, 16, 224, 224), 78.4),
    "slowfast_r50": ((3, 32, 256, 256), 76.94),
    "x3d_s": ((3, 13, 182, 182), 73.33),
    "x3d_m": ((3, 16, 256, 256), 75.94),
}
# Configurations of facebookresearch/SlowFast: clip, accuracy, and whether a block that pools widens
# in its attention (DIM_MUL_IN_ATT), or the one before it in its MLP.
MVIT_V2_L = {
    # configs/masked_ssl/k400_MVITv2_L_16x4_FT.yaml, MaskFeat; 217.6 M parameters, 377 GFLOPs.
    "mvit_v2_l_16x4": ((3, 16, 224, 224), 84.3, False),
    # configs/Kinetics/MVITv2_L_40x3_test.yaml, from ImageNet-21k; 2828 GFLOPs.
    "mvit_v2_l_40x3": ((3, 40, 312, 312), 86.1, True),
}
MVIT_V2_L_BLOCKS, MVIT_V2_L_POOLING = 48, (2, 8, 44)  # the blocks that pool, counted from 0
TIMM_MVIT_V2_L = "mvitv2_large"  # mvit's configs/test/MVITv2_L_test.yaml; 218 M parameters
TIMM_MVIT_V2_L_TOP1 = 85.3
OURS = "hiera_video"  # as a library
DECODER_HEADS = 16  # as in the official builders


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    name: str
    library: str
    build: Callable[[], nn.Module] | None
    """Builds the model with random weights; its input is one tensor. None: there is pretraining
    only."""
    clip: tuple[int, ...]
    """Shape of the input without batch: (C, T, H, W), or (C, H, W)."""
    top1: float | None = None
    """Published accuracy, percent."""
    variant: str | None = None
    """Variant of this package with which it is compared."""
    same_flops: bool = False
    """Whether it is another implementation of `variant`, so that FLOPs are taken from that."""
    build_pretraining: Callable[[], nn.Module] | None = None
    """Builds the masked autoencoder of the model, from a batch to its loss. None: there is none."""

    def does(self, work: str) -> bool:
        return self._builder(work) is not None

    def build_for(self, work: str) -> nn.Module:
        """The model, or for "pretraining" its masked autoencoder, of work that it `does`."""
        build = self._builder(work)
        assert build is not None
        return build()

    def _builder(self, work: str) -> Callable[[], nn.Module] | None:
        return self.build_pretraining if work == "pretraining" else self.build


class Adapted(nn.Module):
    """A model as a function of the batch, by `call(model, clips)`."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, clips: Tensor) -> Tensor:
        return self.call(self.model, clips)


class Dense(nn.Module):
    """A masked autoencoder whose encoder computes all units, without Hiera's sparsity.

    The patches of hidden units are replaced by a learned token, and those units' outputs are left
    out before the decoder, which is the same: the difference in time is the encoder's alone.
    """

    def __init__(self, autoencoder: MaskedAutoencoderHiera) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.token = nn.Parameter(torch.zeros(autoencoder.encoder.stage_dims[0]))

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """As `MaskedAutoencoderHiera.forward`."""
        encoder = self.autoencoder.encoder
        tokens = encoder.embed(encoder.as_clips(x))  # [B, M, U, D]
        positions = unroll(encoder.get_pos_embed(), encoder.mask_unit, encoder.pools)
        hidden = (positions + self.token).to(tokens.dtype)
        seen = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=x.device)
        seen = seen.scatter(1, kept, True)[..., None, None]
        stages = encoder.run_blocks(torch.where(seen, tokens, hidden), encoder.units_shape)
        fused = self.autoencoder.fuse(stages)
        fused = fused.gather(1, kept[..., None, None].expand(-1, -1, *fused.shape[2:]))
        return self.autoencoder.decode(fused, kept)

    def targets(self, x: Tensor, kept: Tensor) -> Tensor:
        return self.autoencoder.targets(x, kept)


def _pretraining(name: str, dense: bool = False) -> nn.Module:
    """The loss of a masked autoencoder of this package, with the paper's ratio."""
    autoencoder = create_autoencoder(name, decoder_heads=DECODER_HEADS)
    masking = UnitMasking.of(autoencoder.encoder, Masking())

    def loss(model: MaskedAutoencoderHiera | Dense, clips: Tensor) -> Tensor:
        order = torch.rand(len(clips), masking.num_units, device=clips.device).argsort(dim=1)
        kept = order[:, : masking.num_visible].sort(dim=1).values
        prediction = model(clips, kept)
        if clips.is_meta:  # for counting: the loss has no products and does not run on meta
            return prediction
        return reconstruction_losses(prediction, model.targets(clips, kept)).mean()

    return Adapted(Dense(autoencoder) if dense else autoencoder, loss)


@cache
def ours(name: str) -> Subject:
    """The subject of a variant of `list_models()`.

    Raises:
        ValueError: an unknown variant; the message has the most similar name.
    """
    check_known(name, VARIANTS, "The variants")
    return Subject(
        name,
        OURS,
        partial(create_model, name),
        (3, *VARIANTS[name]["input_size"]),
        HIERA_TOP1.get(name),
        build_pretraining=partial(_pretraining, name),
    )


def dense(name: str) -> Subject:
    """Pretraining of a variant with an encoder that computes the hidden units too."""
    sparse = ours(name)
    build = partial(_pretraining, name, dense=True)
    return Subject(
        f"{name} (dense)", sparse.library, None, sparse.clip, None, name, build_pretraining=build
    )


def peers(names: Sequence[str]) -> tuple[list[Subject], dict[str, str]]:
    """What variants `names` are compared with.

    That is their own pretraining without sparsity, and the models of other libraries for the same
    data, video or images.

    Returns:
        The subjects, and of the packages that cannot be imported, why.
    """
    found = [dense(name) for name in names]
    missing = dict[str, str]()
    libraries = {"hiera": _official_models, "torchvision": _torchvision_models}
    image = is_image(VARIANTS[names[0]])
    libraries |= {"timm": _timm_models} if image else {"pytorchvideo": _pytorchvideo_models}
    for module, models in libraries.items():
        try:
            found += list(models(names))
        except Exception as error:  # whatever an import raises, the others are measured
            why = str(error) or type(error).__name__
            missing["hiera-transformer" if module == "hiera" else module] = why
    return found, missing


def _official(name: str) -> nn.Module:
    return getattr(importlib.import_module("hiera"), name)(pretrained=False)


def _official_pretraining(name: str) -> nn.Module:
    ratio = paper_mask_ratio(VARIANTS[name])
    # The loss is the first output.
    return Adapted(_official(f"mae_{name}"), lambda model, x: model(x, mask_ratio=ratio)[0])


def _official_models(names: Sequence[str]) -> Iterator[Subject]:
    for name in names:
        if hasattr(importlib.import_module("hiera"), name):  # no tiny and small for video
            frames, *size = VARIANTS[name]["input_size"]
            yield Subject(
                f"{name} (official)",
                "hiera",
                partial(_official, name),
                (3, *size) if frames == 1 else (3, frames, *size),
                HIERA_TOP1.get(name),
                name,
                same_flops=True,
                build_pretraining=partial(_official_pretraining, name),
            )


def _timm_models(names: Sequence[str]) -> Iterator[Subject]:
    import timm

    for name in names:
        if timm.is_model(name):
            clip = (3, *VARIANTS[name]["input_size"][1:])
            build = partial(timm.create_model, name)
            top1 = HIERA_TOP1.get(name)
            yield Subject(f"{name} (timm)", "timm", build, clip, top1, name, same_flops=True)
    build = partial(timm.create_model, TIMM_MVIT_V2_L)
    yield Subject(TIMM_MVIT_V2_L, "timm", build, (3, 224, 224), TIMM_MVIT_V2_L_TOP1)


def _torchvision_models(names: Sequence[str]) -> Iterator[Subject]:
    from torchvision import models

    image = is_image(VARIANTS[names[0]])
    data = "ImageNet-1K" if image else "Kinetics-400"
    for name, clip in (TORCHVISION_IMAGES if image else TORCHVISION_VIDEOS).items():
        top1 = models.get_model_weights(name).DEFAULT.meta["_metrics"][data]["acc@1"]
        yield Subject(name, "torchvision", partial(models.get_model, name), clip, top1)
    for name, (clip, top1, _) in ({} if image else MVIT_V2_L).items():
        yield Subject(name, "torchvision", partial(_mvit_v2_l, name), clip, top1)


def _mvit_v2_l(name: str) -> nn.Module:
    """MViTv2-L for video (arXiv 2112.01526), as configured in `MVIT_V2_L`."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    (_, frames, *size), _, widens_in_attention = MVIT_V2_L[name]
    blocks = []
    width, heads, kv_stride = 144, 2, 8
    for i in range(MVIT_V2_L_BLOCKS):
        pools = i in MVIT_V2_L_POOLING
        if pools:
            heads, kv_stride = 2 * heads, kv_stride // 2
        widens = pools if widens_in_attention else i + 1 in MVIT_V2_L_POOLING
        wider = 2 * width if widens else width
        stride = 2 if pools else 1
        block = MSBlockConfig(
            heads, width, wider, [3] * 3, [3] * 3, [1, stride, stride], [1, kv_stride, kv_stride]
        )
        blocks.append(block)
        width = wider
    return MViT(
        tuple(size),
        frames,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=widens_in_attention,
        num_classes=400,
    )


def _pytorchvideo(name: str) -> nn.Module:
    model = getattr(importlib.import_module(PYTORCHVIDEO_HUB), name)(pretrained=False)
    if not name.startswith("slowfast"):
        return model
    # The slow pathway has every 4th frame of the fast one.
    return Adapted(model, lambda model, clips: model([clips[:, :, ::4], clips]))


def _pytorchvideo_models(names: Sequence[str]) -> Iterator[Subject]:
    importlib.import_module(PYTORCHVIDEO_HUB)  # fails here, where it is reported
    for name, (clip, top1) in PYTORCHVIDEO.items():
        yield Subject(name, "pytorchvideo", partial(_pytorchvideo, name), clip, top1)
