"""The models that `hiera-video benchmark` measures: of this package, and of other libraries.

The input of each is the clip for which its authors publish its accuracy. Clips per second of
different clips are not comparable; the tables state the clip. Accuracies are top-1 on Kinetics-400
or ImageNet-1k as published by the authors, with their views and pretraining: for Hiera in arXiv
2306.00989, tables 4 and 8; for torchvision in the metadata of its weights; for pytorchvideo in its
docs/source/model_zoo.md, except MViT-B: arXiv 2104.11227, table 4.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import UnitMasking
from hiera_video.models.pretrained import create_autoencoder, create_model
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
PYTORCHVIDEO = {  # clip, accuracy
    "mvit_base_16x4": ((3, 16, 224, 224), 78.4),
    "slowfast_r50": ((3, 32, 256, 256), 76.94),
    "x3d_s": ((3, 13, 182, 182), 73.33),
    "x3d_m": ((3, 16, 256, 256), 75.94),
}
DECODER_HEADS = 16  # as in the official builders


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    name: str
    library: str
    build: Callable[[], nn.Module]
    """Builds the model with random weights; its input is one tensor."""
    clip: tuple[int, ...]
    """Shape of the input without batch: (C, T, H, W), or (C, H, W)."""
    top1: float | None = None
    """Published accuracy, percent."""
    variant: str | None = None
    """Variant of this package of which it is another implementation; FLOPs are taken from it."""
    build_pretraining: Callable[[], nn.Module] | None = None
    """Builds the masked autoencoder of the model, from a batch to its loss. None: there is none."""

    def build_for(self, work: str) -> nn.Module:
        """The model, or for "pretraining" its masked autoencoder, which must exist."""
        build = self.build_pretraining if work == "pretraining" else self.build
        assert build is not None
        return build()


class Adapted(nn.Module):
    """A model as a function of the batch, by `call(model, clips)`."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, clips: Tensor) -> Tensor:
        return self.call(self.model, clips)


def _pretraining(name: str) -> nn.Module:
    """The loss of a masked autoencoder of this package, with the paper's ratio."""
    autoencoder = create_autoencoder(name, decoder_heads=DECODER_HEADS)
    masking = UnitMasking.of(autoencoder.encoder, Masking())

    def loss(model: MaskedAutoencoderHiera, clips: Tensor) -> Tensor:
        order = torch.rand(len(clips), masking.num_units, device=clips.device).argsort(dim=1)
        kept = order[:, : masking.num_visible].sort(dim=1).values
        prediction = model(clips, kept)
        if clips.is_meta:  # for counting: the loss has no products and does not run on meta
            return prediction
        return reconstruction_losses(prediction, model.targets(clips, kept)).mean()

    return Adapted(autoencoder, loss)


def ours(name: str) -> Subject:
    """The subject of a variant of `list_models()`.

    Raises:
        ValueError: an unknown variant; the message has the most similar name.
    """
    check_known(name, VARIANTS, "The variants")
    return Subject(
        name,
        "hiera_video",
        partial(create_model, name),
        (3, *VARIANTS[name]["input_size"]),
        HIERA_TOP1.get(name),
        build_pretraining=partial(_pretraining, name),
    )


def peers(names: Sequence[str]) -> tuple[list[Subject], list[str]]:
    """Models of other libraries for the same data, video or images, as variants `names`.

    Returns:
        The subjects, and the packages that are not installed (the official code is installed if
        `hiera` can be imported).
    """
    found: list[Subject] = []
    missing = []
    libraries = {"hiera": _official_models, "torchvision": _torchvision_models}
    image = is_image(VARIANTS[names[0]])
    libraries |= {"timm": _timm_models} if image else {"pytorchvideo": _pytorchvideo_models}
    for module, models in libraries.items():
        if importlib.util.find_spec(module) is None:
            missing.append("hiera-transformer" if module == "hiera" else module)
        else:
            found += models(names)
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
                partial(_official_pretraining, name),
            )


def _timm_models(names: Sequence[str]) -> Iterator[Subject]:
    import timm

    for name in names:
        if timm.is_model(name):
            clip = (3, *VARIANTS[name]["input_size"][1:])
            build = partial(timm.create_model, name)
            yield Subject(f"{name} (timm)", "timm", build, clip, HIERA_TOP1.get(name), name)


def _torchvision_models(names: Sequence[str]) -> Iterator[Subject]:
    from torchvision import models

    image = is_image(VARIANTS[names[0]])
    data = "ImageNet-1K" if image else "Kinetics-400"
    for name, clip in (TORCHVISION_IMAGES if image else TORCHVISION_VIDEOS).items():
        top1 = models.get_model_weights(name).DEFAULT.meta["_metrics"][data]["acc@1"]
        yield Subject(name, "torchvision", partial(models.get_model, name), clip, top1)


def _pytorchvideo(name: str) -> nn.Module:
    model = getattr(importlib.import_module("pytorchvideo.models.hub"), name)(pretrained=False)
    if not name.startswith("slowfast"):
        return model
    # The slow pathway has every 4th frame of the fast one.
    return Adapted(model, lambda model, clips: model([clips[:, :, ::4], clips]))


def _pytorchvideo_models(names: Sequence[str]) -> Iterator[Subject]:
    for name, (clip, top1) in PYTORCHVIDEO.items():
        yield Subject(name, "pytorchvideo", partial(_pytorchvideo, name), clip, top1)
