"""The names that parameters of Hiera have in other projects: read, and written.

A table for each layout serves both directions. On this side stand the official names, those of
`Hiera` itself.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from hiera_video.errors import WeightsError
from hiera_video.models.card import ModelCard, first_mistake
from hiera_video.models.hiera import Hiera
from hiera_video.models.variants import PLAIN, VARIANTS, as_tuple, is_image, variant_name
from hiera_video.settings.tools import Layout

PATCHES = "patch_embed.proj.weight"
TIMM = {"head.fc.": "head.projection.", "head.norm.": "norm."}
SAM2 = {"mlp.layers.0.": "mlp.fc1.", "mlp.layers.1.": "mlp.fc2."}
SAM2_WINDOW, WINDOW = "pos_embed_window", "pos_embed_win"  # also of timm's models of SAM 2
SAM2_PREFIX = "image_encoder.trunk."
TRANSFORMERS = {
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.position_embeddings": "pos_embed",
    "pooler.layernorm.": "norm.",
    "classifier.": "head.projection.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
}
TRANSFORMERS_ARGUMENTS = {  # of its HieraConfig, and those of `Hiera`
    "num_channels": "in_chans",
    "embed_dim": "embed_dim",
    "depths": "stages",
    "mlp_ratio": "mlp_ratio",
    "num_query_pool": "q_pool",
    "masked_unit_attention": "mask_unit_attn",
}
TRANSFORMERS_SIZES = {  # of these, the former has no entry for time
    "image_size": "input_size",
    "patch_size": "patch_kernel",
    "patch_stride": "patch_stride",
    "patch_padding": "patch_padding",
    "query_stride": "q_stride",
    "masked_unit_size": "mask_unit",
}
TRANSFORMERS_LAYER = re.compile(r"(?:hiera\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)")


def to_official(state: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of a state dict, and its tensors under official names."""
    if SAM2_WINDOW in state:
        return "sam2", _from_sam2(state)
    if any(key.startswith(tuple(TIMM)) for key in state):
        return "timm", {rename(key, TIMM): value for key, value in state.items()}
    if any("embeddings.patch_embeddings" in key for key in state):
        return "transformers", _from_transformers(state)
    # Those of an autoencoder or detector here, which torch.save wrote.
    return "official", {key.removeprefix("encoder."): value for key, value in state.items()}


def _from_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names for those of an encoder in SAM 2, or of the same in timm."""
    official = {}
    for key, value in state.items():
        place = re.match(r"blocks\.\d+\.|", key)
        assert place is not None
        rest = rename(key[place.end() :], {SAM2_WINDOW: WINDOW, **SAM2, **TIMM})
        official[place[0] + rest] = value
    return official


def _to_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SAM 2's names for the tensors of an encoder, which has no norm after the last block."""
    names = {own: theirs for theirs, own in SAM2.items()}
    renamed = {}
    for key, value in state.items():
        place = re.match(r"blocks\.\d+\.|", key)
        assert place is not None
        rest = rename(key[place.end() :], {WINDOW: SAM2_WINDOW, **names})
        renamed[SAM2_PREFIX + place[0] + rest] = value
    return renamed


def from_official(
    state: Mapping[str, Tensor], layout: Layout, stages: Sequence[int]
) -> dict[str, Tensor]:
    """The inverse of `to_official`, with the patch kernels of images in two dimensions.

    Args:
        state: of a `Hiera`.
        stages: blocks of each stage.
    """
    state = dict(state)
    if state[PATCHES].shape[2] == 1:
        state[PATCHES] = state[PATCHES].squeeze(2)
    if layout == "timm":
        names = {own: theirs for theirs, own in TIMM.items()}
        return {rename(key, names): value for key, value in state.items()}
    if layout == "transformers":
        return _to_transformers(state, stages)
    return _to_sam2(state) if layout == "sam2" else state


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blocks counted through all stages, and official names."""
    matches = {key: TRANSFORMERS_LAYER.fullmatch(key) for key in state}
    places = sorted({(int(m[1]), int(m[2])) for m in matches.values() if m})
    official = {}
    for key, value in state.items():
        block, rest = "", key.removeprefix("hiera.")
        if m := matches[key]:
            block, rest = f"blocks.{places.index((int(m[1]), int(m[2])))}.", m[3]
        official[block + rename(rest, TRANSFORMERS)] = value
    return official


def _to_transformers(state: Mapping[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    """HieraForImageClassification's names, or without a classifier HieraModel's."""
    names = {own: theirs for theirs, own in TRANSFORMERS.items()}
    places = [(stage, layer) for stage, n in enumerate(stages) for layer in range(n)]
    prefix = "hiera." if "head.projection.weight" in state else ""
    renamed = {}
    for key, value in state.items():
        place, rest = "" if key.startswith("head.") else prefix, key
        if key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            stage, layer = places[int(block)]
            place += f"encoder.stages.{stage}.layers.{layer}."
        renamed[place + rename(rest, names)] = value
    return renamed


def rename(key: str, prefixes: Mapping[str, str]) -> str:
    """The key with the first of the prefixes that it has replaced."""
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


# What the config.json of a folder says.

CARRIED: dict[Layout, tuple[str, ...]] = {  # of a card, beside what the model itself shows
    "official": (),
    "timm": ("class_names", "mean", "std"),
    "transformers": ("class_names", "multi_label"),
    "sam2": (),
}


def check_writable(layout: Layout, architecture: Mapping[str, Any]) -> None:
    """Raises WeightsError for a model that the other project cannot build."""
    if layout == "hiera_video":
        return
    name, special = variant_name(architecture), sorted(architecture.keys() & PLAIN.keys())
    fits = {"timm": name == "hiera_small_abswin_256", "sam2": name in VARIANTS and "sam2" in name}
    if (layout == "sam2" or special) and not fits.get(layout):
        others = " or ".join(["hiera_video", *(key for key in fits if fits[key])])
        what = ", ".join(special) or "no absolute-window embedding"
        raise WeightsError(f"{layout} has no model like {name}, with {what}: take {others}")
    if layout in ("official", "sam2"):
        return
    if not is_image(architecture) or architecture["sep_pos_embed"]:
        raise WeightsError(
            f"{layout} has image models only, and this one is for video: take layout=official"
        )
    # transformers asks this of the height alone, and whatever the number of pooling steps.
    unit, stride = architecture["mask_unit"][1], architecture["q_stride"][1]
    needed = stride ** (len(architecture["stages"]) - 1)
    if layout == "transformers" and unit % needed:
        raise WeightsError(
            f"transformers refuses mask units of {unit} tokens: expected a multiple of {needed}"
        )
    with torch.device("meta"):
        variant = Hiera(**VARIANTS[name]).architecture if name in VARIANTS else {}
    if layout == "timm" and variant != architecture:
        raise WeightsError(
            f"timm builds its models by name and at one size; this one is {name} with other "
            "arguments: take to=transformers or official"
        )


def config_of(layout: Layout, card: ModelCard) -> dict[str, Any]:
    """The config.json of timm or transformers for a classifier or backbone."""
    a, num_classes = card.architecture, card.num_classes
    size = list(a["input_size"][1:])
    if layout == "timm":
        return {
            "architecture": card.name,
            "num_classes": num_classes,
            "num_features": a["embed_dim"] * 2 ** (len(a["stages"]) - 1),
            "label_names": card.classes,
            "pretrained_cfg": {
                "input_size": [a["in_chans"], *size],
                "mean": card.mean,
                "std": card.std,
                "num_classes": num_classes,
                "fixed_input_size": True,
                "first_conv": "patch_embed.proj",
                "classifier": "head.fc",
            },
        }
    return {
        "model_type": "hiera",
        "architectures": ["HieraForImageClassification" if num_classes else "HieraModel"],
        "id2label": dict(enumerate(card.classes)),
        "label2id": {name: c for c, name in enumerate(card.classes)},
        "problem_type": "multi_label_classification"
        if card.multi_label
        else "single_label_classification",
        **transformers_arguments(a),
    }


class ForeignConfig(BaseModel):
    """What timm and transformers say beside the architecture."""

    label_names: tuple[str, ...] = ()
    id2label: dict[int, str] = {}
    problem_type: str | None = None
    pretrained_cfg: dict[str, Any] = {}

    def statements(self, num_classes: int) -> dict[str, Any]:
        """Entries of a card. A name of several classes, as of cranes in ImageNet, gets the id."""
        names = self.label_names or [name for _, name in sorted(self.id2label.items())]
        stated = self.pretrained_cfg
        statements: dict[str, Any] = {k: stated[k] for k in ("mean", "std") if k in stated}
        if num_classes:
            counts = Counter(names)
            unique = [name if counts[name] == 1 else f"{name} {i}" for i, name in enumerate(names)]
            statements["multi_label"] = self.problem_type == "multi_label_classification"
            statements["class_names"] = unique if len(names) == num_classes else ()
        return statements


def statements_of(config: Mapping[str, Any], num_classes: int, source: object) -> dict[str, Any]:
    """Entries of a card that the config.json of timm or transformers states.

    Args:
        source: names the file in errors.

    Raises:
        WeightsError: an entry is of a wrong type.
    """
    try:
        return ForeignConfig.model_validate(config).statements(num_classes)
    except ValidationError as error:
        raise WeightsError(f"{source}: {first_mistake(error)}") from None


def transformers_arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of transformers' HieraConfig."""
    a = {k: list(v) if isinstance(v, tuple) else v for k, v in architecture.items()}
    return {
        **{theirs: a[own] for theirs, own in TRANSFORMERS_ARGUMENTS.items()},
        **{theirs: a[own][1:] for theirs, own in TRANSFORMERS_SIZES.items()},
        "num_heads": [a["num_heads"] * 2**i for i in range(len(a["stages"]))],
        "embed_dim_multiplier": 2.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def architecture_of(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Keyword arguments of `Hiera` from the config.json of a model of transformers.

    What its version 4 leaves out has its default there, that of `hiera_base_224`.

    Args:
        source: names the file in errors.

    Raises:
        WeightsError: values that `Hiera` does not have.
    """
    with torch.device("meta"):
        defaults = transformers_arguments(Hiera(**VARIANTS["hiera_base_224"]).architecture)
    c = {key: config.get(key, default) for key, default in defaults.items()}
    for key, default in defaults.items():
        if not _is_like(c[key], default):
            raise WeightsError(f"{source}: {key} is not of the same type as {default}")
    architecture = {own: as_tuple(c[theirs]) for theirs, own in TRANSFORMERS_ARGUMENTS.items()}
    architecture |= {own: (1, *c[theirs]) for theirs, own in TRANSFORMERS_SIZES.items()}
    architecture["patch_padding"] = (0, *c["patch_padding"])
    architecture |= {"num_heads": c["num_heads"][0], "sep_pos_embed": False}
    needed = transformers_arguments(architecture)
    if differs := [f"{k} is {c[k]}: expected {needed[k]}" for k in c if c[k] != needed[k]]:
        raise WeightsError(f"{source} is of no Hiera here: {'; '.join(differs)}")
    return architecture


def _is_like(value: Any, example: Any) -> bool:
    """Whether a value of a config.json is of the same type, a list as short."""
    if isinstance(example, list):
        is_short = isinstance(value, list) and 0 < len(value) <= 8
        return is_short and all(_is_like(entry, example[0]) for entry in value)
    return type(value) in (type(example), int if type(example) is float else type(example))
