"""The models that `hiera-video benchmark` measures: of this package, and of other libraries.

The input of each is the clip for which its authors publish its accuracy. Clips per second of
different clips are not comparable; the tables state the clip. Accuracies are top-1 on Kinetics-400
or ImageNet-1k as published by the authors, with their views and pretraining: for Hiera in arXiv
2306.00989, tables 4 and 8; for torchvision in the metadata of its weights; for pytorchvideo in its
docs/source/model_zoo.md, except MViT-B: arXiv 2104.11227, table 4.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hiera_video.models.mae import reconstruction_losses
from hiera_video.models.masking import UnitMasking
from hiera_video.models.pretrained import create_autoencoder, create_model
from hiera_video.models.variants import VARIANTS, is_image, paper_mask_ratio

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


class PretrainingStep(nn.Module):
    """A masked autoencoder of this package as a function of the batch, with the paper's ratio."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = create_autoencoder(name, decoder_heads=DECODER_HEADS)
        encoder, ratio = self.model.encoder, paper_mask_ratio(VARIANTS[name])
        self.num_units = encoder.num_units
        self.num_visible = UnitMasking(encoder.units_shape, ratio).num_visible

    def forward(self, clips: Tensor) -> Tensor:
        order = torch.rand(len(clips), self.num_units, device=clips.device).argsort(dim=1)
        kept = order[:, : self.num_visible].sort(dim=1).values
        prediction = self.model(clips, kept)
        if clips.is_meta:  # for counting: the loss has no products and does not run on meta
            return prediction
        return reconstruction_losses(prediction, self.model.targets(clips, kept)).mean()


def ours(name: str) -> Subject:
    """The subject of a variant of `list_models()`.

    Raises:
        ValueError: an unknown variant; the message has the most similar name.
    """
    if name not in VARIANTS:
        create_model(name)  # raises, and names the nearest
    channels, (frames, height, width) = 3, VARIANTS[name]["input_size"]
    return Subject(
        name,
        "hiera_video",
        partial(create_model, name),
        (channels, frames, height, width),
        HIERA_TOP1.get(name),
        build_pretraining=partial(PretrainingStep, name),
    )


def peers(names: Sequence[str]) -> tuple[list[Subject], list[str]]:
    """Models of other libraries for the same data, video or images, as variants `names`.

    Returns:
        The subjects, and the packages that are not installed (the official code is installed if
        `hiera` can be imported).
    """
    image = is_image(VARIANTS[names[0]])
    libraries = {"hiera": "hiera-transformer", "torchvision": "torchvision"}
    libraries |= {"timm": "timm"} if image else {"pytorchvideo": "pytorchvideo"}
    found: list[Subject] = []
    missing = []
    for module, package in libraries.items():
        if importlib.util.find_spec(module) is None:
            missing.append(package)
        elif module == "hiera":
            found += _official_models(names)
        elif module == "timm":
            found += _timm_models(names)
        elif module == "pytorchvideo":
            found += PYTORCHVIDEO
        else:
            found += _torchvision_models(image)
    return found, missing


def _official(name: str) -> nn.Module:
    return getattr(importlib.import_module("hiera"), name)(pretrained=False)


class OfficialPretraining(nn.Module):
    """The official masked autoencoder as a function of the batch; its first output is the loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = _official(f"mae_{name}")
        self.mask_ratio = paper_mask_ratio(VARIANTS[name])

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(clips, mask_ratio=self.mask_ratio)[0]


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
                partial(OfficialPretraining, name),
            )


def _timm_models(names: Sequence[str]) -> Iterator[Subject]:
    import timm

    for name in names:
        if timm.is_model(name):
            clip = (3, *VARIANTS[name]["input_size"][1:])
            build = partial(timm.create_model, name)
            yield Subject(f"{name} (timm)", "timm", build, clip, HIERA_TOP1.get(name), name)


def _torchvision_models(image: bool) -> Iterator[Subject]:
    from torchvision import models

    data = "ImageNet-1K" if image else "Kinetics-400"
    for name, clip in (TORCHVISION_IMAGES if image else TORCHVISION_VIDEOS).items():
        top1 = models.get_model_weights(name).DEFAULT.meta["_metrics"][data]["acc@1"]
        yield Subject(name, "torchvision", partial(models.get_model, name), clip, top1)


class TwoPathways(nn.Module):
    """SlowFast as a function of the fast pathway's clip; the slow pathway has every 4th frame."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        return self.model([clips[:, :, ::4], clips])


def _pytorchvideo(name: str) -> nn.Module:
    hub = importlib.import_module("pytorchvideo.models.hub")
    model = getattr(hub, name)(pretrained=False)
    return TwoPathways(model) if name.startswith("slowfast") else model


PYTORCHVIDEO = [
    Subject(name, "pytorchvideo", partial(_pytorchvideo, name), clip, top1)
    for name, clip, top1 in (
        ("mvit_base_16x4", (3, 16, 224, 224), 78.4),
        ("slowfast_r50", (3, 32, 256, 256), 76.94),
        ("x3d_s", (3, 13, 182, 182), 73.33),
        ("x3d_m", (3, 16, 256, 256), 75.94),
    )
]
