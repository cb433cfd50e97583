"""The variants of Hiera, and the published weights: tables, and what their names say.

A name is ARCHITECTURE (`hiera_base_16x224`), or ARCHITECTURE.TAG for published weights
(`hiera_base_16x224.mae_k400_ft_k400`). Sizes are those of the paper's table 8. Nothing here needs
torch.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from hiera_video.errors import ModelError, did_you_mean

Statistics = tuple[float, float, float]  # of the three colour channels, for values in 0..1

IMAGENET_MEAN: Statistics = (0.485, 0.456, 0.406)
IMAGENET_STD: Statistics = (0.229, 0.224, 0.225)
KINETICS_MEAN: Statistics = (0.45, 0.45, 0.45)
KINETICS_STD: Statistics = (0.225, 0.225, 0.225)

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "num_heads": 1, "stages": (1, 2, 7, 2)},
    "small": {"embed_dim": 96, "num_heads": 1, "stages": (1, 2, 11, 2)},
    "base": {"embed_dim": 96, "num_heads": 1, "stages": (2, 3, 16, 3)},
    "base_plus": {"embed_dim": 112, "num_heads": 2, "stages": (2, 3, 16, 3)},
    "large": {"embed_dim": 144, "num_heads": 2, "stages": (2, 6, 36, 4)},
    "huge": {"embed_dim": 256, "num_heads": 4, "stages": (2, 6, 36, 4)},
}
IMAGE: dict[str, Any] = {
    "input_size": (1, 224, 224),
    "num_classes": 1000,
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
}
VIDEO: dict[str, Any] = {
    "input_size": (16, 224, 224),
    "num_classes": 400,
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "sep_pos_embed": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"hiera_{size}_{clip}": {**dims, **kind}
    for clip, kind in (("224", IMAGE), ("16x224", VIDEO))
    for size, dims in SIZES.items()
}


def is_image(arguments: Mapping[str, Any]) -> bool:
    """Whether these keyword arguments build an image model: one frame, no patches over time."""
    return arguments["input_size"][0] == 1 and arguments["patch_kernel"][0] == 1


def paper_mask_ratio(arguments: Mapping[str, Any]) -> float:
    """Fraction of the mask units that pretraining hides (arXiv 2306.00989, Tab. 3)."""
    return 0.6 if is_image(arguments) else 0.9


def input_statistics(arguments: Mapping[str, Any]) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation by which the published models of this kind normalise."""
    if is_image(arguments):
        return IMAGENET_MEAN, IMAGENET_STD
    return KINETICS_MEAN, KINETICS_STD


def _published() -> Iterable[tuple[str, str]]:
    """Name and address of each file of facebookresearch/hiera."""
    folder = "https://dl.fbaipublicfiles.com/hiera"
    for name, arguments in VARIANTS.items():
        if name in ("hiera_tiny_16x224", "hiera_small_16x224"):
            continue  # nobody has released any
        data = "in1k" if is_image(arguments) else "k400"
        yield f"{name}.mae_{data}", f"{folder}/mae_{name}.pth"
        yield f"{name}.mae_{data}_ft_{data}", f"{folder}/{name}.pth"


PUBLISHED: dict[str, str] = dict(_published())
PUBLISHED_LICENSE = "CC-BY-NC-4.0"


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names that match `pattern`: of variants, or with `pretrained` of published weights."""
    return fnmatch.filter(PUBLISHED if pretrained else VARIANTS, pattern)


def variant_name(arguments: Mapping[str, Any]) -> str:
    """The variant that these keyword arguments build, at any size of input, or the nearest one."""

    def distance(name: str) -> float:
        size = VARIANTS[name]
        width = abs(size["embed_dim"] / arguments["embed_dim"] - 1)
        depth = abs(sum(size["stages"]) / sum(arguments["stages"]) - 1)
        return width + depth

    name = min(list_models("*_224" if is_image(arguments) else "*_16x224"), key=distance)
    sizes = {key: VARIANTS[name][key] for key in ("embed_dim", "num_heads", "stages")}
    exact = all(as_tuple(arguments.get(key, sizes[key])) == sizes[key] for key in sizes)
    return name if exact else f"custom (nearest {name})"


def check_known(name: str, allowed: Iterable[str], what: str) -> None:
    """Raises ModelError for a name that is not allowed, with the nearest one that is.

    Args:
        what: the subject of "... are", e.g. "the variants".
    """
    allowed = list(allowed)
    if name not in allowed:
        hint = did_you_mean(name, allowed) or did_you_mean(name.partition(".")[0], allowed)
        raise ModelError(f"{name!r} is unknown. {what} are: {', '.join(allowed)}{hint}")


def as_tuple(value: Any) -> Any:
    """A list as a tuple: JSON and YAML have lists alone."""
    return tuple(value) if isinstance(value, list) else value
