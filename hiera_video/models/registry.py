"""The variants of Hiera, the published weights, and `create_model`.

Names are ARCHITECTURE, or ARCHITECTURE.TAG with the tag of published weights: `hiera_base_16x224`,
`hiera_base_16x224.mae_k400_ft_k400`. Sizes are those of the paper's table 8.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from hiera_video.models.hiera import Hiera, Size3
from hiera_video.models.mae import MaskedAutoencoderHiera, Target

if TYPE_CHECKING:
    from hiera_video.models.detector import ActionDetector
    from hiera_video.models.weights import Checkpoint

PosEmbedResize = Literal["window", "bicubic"]
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
    """Share of mask units that pretraining hides (arXiv 2306.00989, Tab. 3)."""
    return 0.6 if is_image(arguments) else 0.9


def input_statistics(arguments: Mapping[str, Any]) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation by which the published models of this kind normalise."""
    if is_image(arguments):
        return IMAGENET_MEAN, IMAGENET_STD
    return KINETICS_MEAN, KINETICS_STD


@dataclass(frozen=True)
class PublishedWeights:
    """A file of facebookresearch/hiera."""

    architecture: str
    tag: str
    url: str
    num_classes: int | None  # None: a masked autoencoder, without a classifier
    input_size: Size3
    sampling_rate: int | None  # distance between the frames of a clip, in source frames
    mean: Statistics
    std: Statistics
    license: str = "CC-BY-NC-4.0"

    @property
    def class_names(self) -> list[str]:
        """In id order; empty where no list of them is shipped."""
        if not self.tag.endswith("ft_k400"):
            return []
        package = Path(__file__).parents[1]
        inside = package / "datasets"  # as installed, or beside the package in a checkout
        folder = inside if inside.is_dir() else package.parent / "datasets"
        return (folder / "kinetics400" / "class_names.txt").read_text("utf-8").splitlines()

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def _published() -> Iterable[PublishedWeights]:
    base = "https://dl.fbaipublicfiles.com/hiera"
    for name, arguments in VARIANTS.items():
        if name in ("hiera_tiny_16x224", "hiera_small_16x224"):
            continue  # nobody has released any
        data, rate = ("in1k", None) if is_image(arguments) else ("k400", 4)
        rest = (arguments["input_size"], rate, *input_statistics(arguments))
        yield PublishedWeights(name, f"mae_{data}", f"{base}/mae_{name}.pth", None, *rest)
        classes = arguments["num_classes"]
        yield PublishedWeights(name, f"mae_{data}_ft_{data}", f"{base}/{name}.pth", classes, *rest)


PUBLISHED: dict[str, PublishedWeights] = {f"{w.architecture}.{w.tag}": w for w in _published()}


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names that match `pattern`: of variants, or with `pretrained` of published weights."""
    return fnmatch.filter(PUBLISHED if pretrained else VARIANTS, pattern)


def create_model(
    name: str | None = None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    image_size: int | Sequence[int] | None = None,
    mask_unit: Sequence[int] | None = None,
    q_pool: int | None = None,
    drop_path: float = 0.0,
    head_dropout: float = 0.0,
    pos_embed_resize: PosEmbedResize = "window",
    **overrides: Any,
) -> Hiera:
    """A Hiera, with random weights or those of `checkpoint`. The load report is logged.

    Args:
        name: a variant of `list_models()`, or ARCHITECTURE.TAG for one with its published weights.
            None takes the architecture from `checkpoint`, which must then be a weights folder.
        checkpoint: a file or folder that `hiera_video.models.weights` reads; the tag of published
            weights, alone or as ARCHITECTURE.TAG (image weights are inflated into a video model).
        num_classes: outputs of the classifier, 0 for none; a count that differs from the
            checkpoint's gives a fresh classifier. None: the checkpoint's, else the variant's.
        num_frames: frames of a clip. None: the variant's.
        image_size: pixels of a clip, of both sides or as (height, width). None: the variant's.
        mask_unit: tokens of a mask unit, (time, height, width). None: the variant's, (1, 8, 8).
        q_pool: stage transitions that pool. None: the variant's, 3.
        drop_path, head_dropout: regularisation in training.
        pos_embed_resize: how position embeddings of another size are adapted, see
            `hiera_video.models.adapt.resize_spatial`.
        overrides: other keyword arguments of `Hiera`.

    Raises:
        ValueError: unknown name or argument, sizes or weights that do not fit.
        FileNotFoundError, ConnectionError: weights that are not there or cannot be fetched.
    """
    arguments, source = _arguments(name, checkpoint, num_frames, image_size)
    if source is not None and source.autoencoder and name is None:
        num_classes = num_classes or 0
        arguments["q_pool"] = len(arguments["stages"]) - 1  # pretraining pools once less
    elif num_classes is None and source is not None:
        num_classes = source.num_classes
    chosen = {"num_classes": num_classes, "mask_unit": mask_unit, "q_pool": q_pool}
    arguments |= {key: value for key, value in chosen.items() if value is not None}
    arguments |= {"drop_path": drop_path, "head_dropout": head_dropout, **overrides}
    if source is None:
        return build(arguments)
    from hiera_video.models.weights import load_weights

    # Drawing the first values of a huge model takes half a minute, and all of them are overwritten.
    with torch.device("meta"):
        model = build(arguments)
    model.to_empty(device=torch.get_default_device())
    load_weights(model, source, pos_embed_resize=pos_embed_resize)
    return model


def create_autoencoder(
    name: str | None = None,
    *,
    decoder_heads: int | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    num_frames: int | None = None,
    image_size: int | Sequence[int] | None = None,
    mask_unit: Sequence[int] | None = None,
    q_pool: int | None = None,
    drop_path: float = 0.0,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    target: Target | None = None,
    pos_embed_resize: PosEmbedResize = "window",
    **overrides: Any,
) -> MaskedAutoencoderHiera:
    """A masked autoencoder around a Hiera, with random weights or those of `checkpoint`.

    Args:
        name: a variant; None takes the architecture, its mask unit and `q_pool` too, from
            `checkpoint`, which must then be a folder that pretraining wrote.
        checkpoint, num_frames, image_size, mask_unit, drop_path, pos_embed_resize, overrides:
            as for `create_model`.
        decoder_heads, decoder_dim, decoder_depth, target: of `MaskedAutoencoderHiera`. None: as
            `checkpoint` states them, else 512, 8 and "pixels"; the heads must then be given.
        q_pool: stage transitions that pool. None: 2.

    Raises:
        ValueError: as for `create_model`, and where nothing says how many heads the decoder has.
    """
    arguments, source = _arguments(name, checkpoint, num_frames, image_size)
    stated = source.autoencoder if source is not None else {}
    if q_pool is not None or not stated or name is not None:
        arguments["q_pool"] = 2 if q_pool is None else q_pool
    if mask_unit is not None:
        arguments["mask_unit"] = mask_unit
    arguments |= {"num_classes": 0, "drop_path": drop_path, **overrides}
    given = {
        "decoder_heads": decoder_heads,
        "decoder_dim": decoder_dim,
        "decoder_depth": decoder_depth,
        "target": target,
    }
    decoder = stated | {key: value for key, value in given.items() if value is not None}
    if "decoder_heads" not in decoder:
        raise ValueError(
            "decoder_heads is not given, and no tensor's shape tells: 8 in the paper's video "
            "recipes, 16 in its image recipes and in all public builders"
        )
    with torch.device("meta"):
        model = MaskedAutoencoderHiera(build(arguments), **decoder)
    model.to_empty(device=torch.get_default_device())
    model.init_weights()
    if source is not None:
        from hiera_video.models.weights import load_weights

        load_weights(model, source, pos_embed_resize=pos_embed_resize)
    return model


def create_detector(
    name: str | None = None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    image_size: int | Sequence[int] | None = None,
    mask_unit: Sequence[int] | None = None,
    q_pool: int | None = None,
    drop_path: float = 0.0,
    head_dropout: float = 0.0,
    roi_resolution: int | None = None,
    pos_embed_resize: PosEmbedResize = "window",
    **overrides: Any,
) -> ActionDetector:
    """An action detector around a Hiera; the encoder starts from `checkpoint` of any kind.

    Args:
        name, checkpoint, num_frames, image_size, mask_unit, q_pool, drop_path, pos_embed_resize,
            overrides: as for `create_model`.
        num_classes, roi_resolution, head_dropout: of `ActionDetector`. None: as `checkpoint` states
            them, else 80, the actions of AVA, and 7.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as for `create_model`.
    """
    from hiera_video.models.detector import ActionDetector  # torchvision takes its time

    arguments, source = _arguments(name, checkpoint, num_frames, image_size)
    if source is not None and source.autoencoder and name is None:
        arguments["q_pool"] = len(arguments["stages"]) - 1  # pretraining pools once less
    chosen = {"mask_unit": mask_unit, "q_pool": q_pool}
    arguments |= {key: value for key, value in chosen.items() if value is not None}
    arguments |= {"num_classes": 0, "drop_path": drop_path, **overrides}
    given = {"num_classes": num_classes, "roi_resolution": roi_resolution}
    detector = {"num_classes": 80, "roi_resolution": 7} | (source.detector if source else {})
    detector |= {key: value for key, value in given.items() if value is not None}
    if source is None:
        return ActionDetector(build(arguments), head_dropout=head_dropout, **detector)
    from hiera_video.models.weights import load_weights

    with torch.device("meta"):
        model = ActionDetector(build(arguments), head_dropout=head_dropout, **detector)
    model.to_empty(device=torch.get_default_device())
    load_weights(model, source, pos_embed_resize=pos_embed_resize)
    return model


def _arguments(
    name: str | None,
    checkpoint: str | Path | Checkpoint | None,
    num_frames: int | None,
    image_size: int | Sequence[int] | None,
) -> tuple[dict[str, Any], Checkpoint | None]:
    """Keyword arguments of `Hiera` that a name or checkpoint states, and the checkpoint, read."""
    if name is not None and "." in name:
        if checkpoint is not None:
            raise ValueError(f"name is {name!r}, which names weights: give no checkpoint beside it")
        _known(name, PUBLISHED, "published weights are")
        name, checkpoint = PUBLISHED[name].architecture, name
    if name is not None:
        _known(name, VARIANTS, "variants are")

    source = None
    if checkpoint is not None:
        # Here, so that building a model needs neither safetensors nor json.
        from hiera_video.models.weights import read_checkpoint

        if isinstance(checkpoint, str) and f"{name}.{checkpoint}" in PUBLISHED:
            checkpoint = f"{name}.{checkpoint}"
        source = read_checkpoint(checkpoint)

    if name is not None:
        arguments = dict(VARIANTS[name])
    elif source is not None and source.architecture:
        arguments = dict(source.architecture)
    else:
        raise ValueError(
            "name is None: name a variant, or give a weights folder with a config.json"
        )
    frames, height, width = arguments["input_size"]
    if num_frames is not None and is_image(arguments) and num_frames != 1:
        raise ValueError(
            f"num_frames is {num_frames}: {name or source} is an image model, of 1 frame; "
            "video variants are " + ", ".join(list_models("*_16x224"))
        )
    if image_size is not None:
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    arguments["input_size"] = (frames if num_frames is None else num_frames, height, width)
    return arguments, source


def build(arguments: Mapping[str, Any]) -> Hiera:
    """`Hiera(**arguments)` with lists as tuples; an unknown argument is a ValueError."""
    for key in arguments:
        _known(key, inspect.signature(Hiera).parameters, "arguments of Hiera are")
    return Hiera(**{key: _tuple(value) for key, value in arguments.items()})


def variant_name(arguments: Mapping[str, Any]) -> str:
    """The variant that these keyword arguments build, at any size of input, or the nearest one."""

    def distance(name: str) -> float:
        size = VARIANTS[name]
        width = abs(size["embed_dim"] / arguments["embed_dim"] - 1)
        depth = abs(sum(size["stages"]) / sum(arguments["stages"]) - 1)
        return width + depth

    kind = "*_224" if is_image(arguments) else "*_16x224"
    name = min(list_models(kind), key=distance)
    exact = all(
        _tuple(arguments.get(key, value)) == value
        for key, value in VARIANTS[name].items()
        if key in ("embed_dim", "num_heads", "stages")
    )
    return name if exact else f"custom (nearest {name})"


def _known(name: str, allowed: Iterable[str], sentence: str) -> None:
    """Raises ValueError with the nearest right name for one that is not allowed."""
    allowed = list(allowed)
    if name in allowed:
        return
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)
    raise ValueError(
        f"{name!r} is unknown; nearest is {near[0]!r}. The {sentence}: {', '.join(allowed)}"
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
