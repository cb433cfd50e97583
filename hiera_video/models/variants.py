"""The variants of Hiera, and the published weights: tables, and what their names say.

A name is ARCHITECTURE (`hiera_base_16x224`), or ARCHITECTURE.TAG for published weights
(`hiera_base_16x224.mae_k400_ft_k400`). Sizes are those of the paper's table 8. Names with `abswin`
are timm's, as are those of the encoders of SAM 2. Nothing here needs torch.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

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
PLAIN: dict[str, Any] = {  # where the paper's models differ from others that came after it
    "global_pos_size": None,
    "global_pos_antialias": True,
    "layer_scale": False,
    "expand_proj": True,
    "window_units": None,
    "global_blocks": (),
}


def _sam2(size: str, side: int, units: int, global_blocks: tuple[int, ...]) -> dict[str, Any]:
    """An encoder of SAM 2, at a size whose mask units divide into its windows."""
    return {
        **SIZES[size],
        **IMAGE,
        "input_size": (1, side, side),
        "num_classes": 0,
        "global_pos_size": (14, 14) if size == "base_plus" else (7, 7),
        "global_pos_antialias": False,
        "window_units": (1, units, units),
        "global_blocks": global_blocks,
    }


VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"hiera_{size}_{clip}": {**dims, **kind}
        for clip, kind in (("224", IMAGE), ("16x224", VIDEO))
        for size, dims in SIZES.items()
    },
    "hiera_small_abswin_256": {
        **SIZES["small"],
        **IMAGE,
        "input_size": (1, 256, 256),
        "global_pos_size": (16, 16),
        "layer_scale": True,
        "expand_proj": False,
    },
    "sam2_hiera_tiny": _sam2("tiny", 896, 7, (5, 7, 9)),
    "sam2_hiera_small": _sam2("small", 896, 7, (7, 10, 13)),
    "sam2_hiera_base_plus": _sam2("base_plus", 896, 7, (12, 16, 20)),
    "sam2_hiera_large": _sam2("large", 1024, 8, (23, 33, 43)),
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


class Published(NamedTuple):
    """A file of weights on the web."""

    url: str
    license: str
    file: str  # its name in the cache
    num_classes: int | None  # None: a masked autoencoder; 0: a backbone


def _published() -> Iterator[tuple[str, Published]]:
    """The files of facebookresearch/hiera, timm and facebookresearch/sam2."""
    web = "https://dl.fbaipublicfiles.com"
    for name, arguments in VARIANTS.items():
        if not name.endswith("224") or name in ("hiera_tiny_16x224", "hiera_small_16x224"):
            continue  # of these two, nobody has released any
        data = "in1k" if is_image(arguments) else "k400"
        for tag, file, classes in (
            (f"mae_{data}", f"mae_{name}.pth", None),
            (f"mae_{data}_ft_{data}", f"{name}.pth", arguments["num_classes"]),
        ):
            yield f"{name}.{tag}", Published(f"{web}/hiera/{file}", "CC-BY-NC-4.0", file, classes)
    for run in ("sbb2_e200_in12k", "sbb2_pd_e200_in12k"):
        for tag, classes in ((run, 11821), (f"{run}_ft_in1k", 1000)):
            name = f"hiera_small_abswin_256.{tag}"
            url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
            yield name, Published(url, "Apache-2.0", f"{name}.safetensors", classes)
    for name in fnmatch.filter(VARIANTS, "sam2_*"):
        for version, end, folder in (("sam2", "", "072824"), ("sam2.1", "_2pt1", "092824")):
            tag, file = f"fb_r{VARIANTS[name]['input_size'][1]}{end}", f"{version}{name[4:]}.pt"
            url = f"{web}/segment_anything_2/{folder}/{file}"
            yield f"{name}.{tag}", Published(url, "Apache-2.0", file, 0)


PUBLISHED: dict[str, Published] = dict(_published())


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names that match `pattern`: of variants, or with `pretrained` of published weights."""
    return fnmatch.filter(PUBLISHED if pretrained else VARIANTS, pattern)


def variant_name(arguments: Mapping[str, Any]) -> str:
    """The variant that these keyword arguments build, at any size of input, or the nearest one."""

    def distance(name: str) -> tuple[int, float]:
        size = VARIANTS[name]
        width = abs(size["embed_dim"] / arguments["embed_dim"] - 1)
        depth = abs(sum(size["stages"]) / sum(arguments["stages"]) - 1)
        return sum(stated(arguments, key) != stated(size, key) for key in PLAIN), width + depth

    kind = is_image(arguments)
    name = min((name for name in VARIANTS if is_image(VARIANTS[name]) == kind), key=distance)
    sizes = {key: VARIANTS[name][key] for key in ("embed_dim", "num_heads", "stages")}
    exact = all(as_tuple(arguments.get(key, sizes[key])) == sizes[key] for key in sizes)
    return name if exact and distance(name)[0] == 0 else f"custom (nearest {name})"


def stated(arguments: Mapping[str, Any], key: str) -> Any:
    """The value of a keyword argument of `Hiera`, of `PLAIN` where it is left out."""
    return as_tuple(arguments.get(key, PLAIN[key]))


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
