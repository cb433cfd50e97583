"""Reading weights: whatever the layout of a file, its tensors under official names, and its card.

A key that no list here knows is an error. What a file does not state, `with_card` infers.
"""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiera_video.errors import ModelError, NotFetched, WeightsError
from hiera_video.models.build import described_tensors
from hiera_video.models.card import Kind, ModelCard
from hiera_video.models.download import fetch_file
from hiera_video.models.layouts import (
    PATCHES,
    architecture_of,
    rename,
    statements_of,
    to_official,
)
from hiera_video.models.sources import Source, find, load_card
from hiera_video.models.tensors import read_metadata, read_state
from hiera_video.models.variants import PLAIN, PUBLISHED, VARIANTS
from hiera_video.settings.tools import Layout

logger = logging.getLogger(__name__)

HEAD = ("head.projection.weight", "head.projection.bias")
ROI_HEAD = re.compile(r"roi_head\.projection\.(weight|bias)")  # of an action detector
# Of an instance segmenter: what is the same for all classes, and what is not.
SEGMENTER = re.compile(r"(fpn|rpn|roi_heads\.(box|mask)_head)\..+")
PREDICTORS = re.compile(r"roi_heads\.(box|mask)_predictor\..+")
# What an official autoencoder has beside its encoder.
DECODER = re.compile(
    r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred|blocks)\..+|multi_scale_fusion_heads\..+"
)
IS_3D = re.compile(r"patch_embed\.|multi_scale_fusion_heads\.")  # kernels; those of images are 2-D
READ = re.compile(
    r"pos_embed(_spatial|_temporal|_win)?"
    r"|(patch_embed\.proj|norm|head\.projection)\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]|proj)\.(weight|bias)"
    r"|blocks\.\d+\.ls[12]\.gamma"
    rf"|{DECODER.pattern}|{ROI_HEAD.pattern}|{SEGMENTER.pattern}|{PREDICTORS.pattern}"
)
# The equivalent keys in transformers checkpoints, which are not read, and AveragedModel's counter.
DROPPED = re.compile(r"decoder\..+|multiscale_fusion\..+|n_averaged")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file or folder, under official names."""

    source: str
    layout: Layout  # hiera_video for a weights folder
    state: dict[str, Tensor]  # patch kernels [D, C, t, h, w]
    taken: list[str] = field(default_factory=list)  # how the state was chosen in a file, in words
    dropped: list[str] = field(default_factory=list)  # keys that nobody reads
    renamed: list[str] = field(default_factory=list)  # an autoencoder's norm serves as the model's
    card: ModelCard | None = None  # None: of a file, or of a folder of another project
    foreign_config: dict[str, Any] = field(default_factory=dict)  # config.json of such a folder

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier; None where there is none, as in a masked autoencoder."""
        if self.card is not None:
            return self.card.num_classes
        return self.state[HEAD[0]].shape[0] if HEAD[0] in self.state else None

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of `Hiera`, where there is a card that states them; else empty."""
        return self.card.architecture if self.card is not None else {}

    @property
    def likely_architecture(self) -> dict[str, Any]:
        """What shapes show, and beside it the card or else the input of published models."""
        shown = architecture_shown(self.state)
        if self.card is not None or not shown:
            return {**self.architecture, **shown}
        frames, stride = (1, 1) if shown["patch_kernel"][0] == 1 else (16, 2)
        return {"input_size": (frames, 224, 224), "patch_stride": (stride, 4, 4), **shown}


def read_checkpoint(
    source: Source | Checkpoint, kind: Kind | None = None, weights_key: str | None = None
) -> Checkpoint:
    """Reads the weights of a source, see `hiera_video.models.sources`.

    Args:
        kind: what the weights are needed as; a card of another kind is refused before gigabytes
            are fetched and read.
        weights_key: of several states in a file, the one to take; see `read_state`.

    Raises:
        WeightsError: not the weights of a Hiera, or of another kind; gives the keys or the reason.
        WeightsNotFoundError: nothing there, or a folder without config.json.
        FetchError: weights that cannot be fetched.
    """
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ModelError(
            f"the checkpoint is a {type(source).__name__}: expected a path or a name; a state "
            "dict goes into a model by model.load_state_dict"
        )
    path, described = find(source, kind)
    card, config = (described, {}) if isinstance(described, ModelCard) else (None, described)
    if card is not None:
        card.require(kind, source)
    if path is None:
        try:
            url, license, name, _ = PUBLISHED[str(source)]
            file = fetch_file(url, license, name)
        except NotFetched as what:
            assert card is not None
            return _stand_in(str(source), card, what)
    else:
        file = path / "model.safetensors" if path.is_dir() else path
    found = read_state(file, weights_key)
    layout, state = to_official(found.tensors)
    renamed = ["encoder_norm -> norm"] if "encoder_norm.weight" in state else []
    state = {
        rename(key, {"encoder_norm.": "norm."}): value.unsqueeze(2)
        if value.dim() == 4 and IS_3D.match(key)
        else value
        for key, value in state.items()  # the kernels of images have two dimensions
    }
    dropped = [key for key in state if DROPPED.fullmatch(key)]
    all_beside = weights_key is not None or layout == "sam2"
    dropped += [key for key in found.beside if all_beside or DROPPED.fullmatch(key)]
    if beside := [key for key in found.beside if key not in dropped]:
        raise WeightsError(
            f"{source} holds other tensors beside the weights in {found.name}: {shorten(beside)}. "
            f"weights_key={found.name} leaves them out"
        )
    read = {key: value for key, value in state.items() if READ.fullmatch(key)}
    if numbers := [key for key, value in read.items() if not value.is_floating_point()]:
        raise WeightsError(f"{file}: {numbers[0]} is {read[numbers[0]].dtype}: expected floats")
    if unknown := [key for key in state if key not in read and key not in dropped]:
        raise WeightsError(
            f"{source} is not a Hiera in a layout that is known: {len(unknown)} of its "
            f"{len(state)} keys are not, {shorten(unknown)}"
        )
    if card is not None and path is not None:
        layout = "hiera_video"
        _check_described(read, card, path / "config.json")
    return Checkpoint(
        str(source),
        layout,
        read,
        taken=found.taken,
        dropped=dropped,
        renamed=renamed,
        card=card,
        foreign_config=config,
    )


def _stand_in(source: str, card: ModelCard, what: NotFetched) -> Checkpoint:
    """Zeros in place of published weights, in a dry run, which logs what it does not fetch."""
    tensors = {k.removeprefix("encoder."): v for k, v in described_tensors(card).items()}
    size_mb = sum(tensor.numel() for tensor in tensors.values()) * 4 / 1e6
    logger.info("%s: about %.0f MB", what, size_mb)
    zeros = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in tensors.items()}
    return Checkpoint(f"{source}, not downloaded", "official", zeros, card=card)


def _check_described(state: Mapping[str, Tensor], card: ModelCard, source: object) -> None:
    """Raises WeightsError unless the tensors of a weights folder are those that its card describes.

    Args:
        source: names the card's file in errors.
    """
    for key, shown in architecture_shown(state).items():  # before a model of any depth is built
        value = {**PLAIN, **card.architecture}[key]
        if value != shown:
            raise WeightsError(f"{source}: architecture.{key} is {value}, the weights have {shown}")
    try:
        described = described_tensors(card)
    except ModelError as error:
        raise WeightsError(f"{source}: {error}") from error
    needed = {key.removeprefix("encoder."): value for key, value in described.items()}
    if differs := differences(state, needed):
        raise WeightsError(f"{source} does not describe the weights: {shorten(differs, 1)}")


def check_weights_folder(folder: Path) -> None:
    """Raises WeightsError if a file of a weights folder is missing or damaged.

    Tensors are not read.
    """
    load_card(folder)
    read_metadata(folder / "model.safetensors")


def differences(state: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded into tensors `needed`: KEY is SHAPE, expected SHAPE."""
    own, other = ({k: list(v.shape) for k, v in tensors.items()} for tensors in (state, needed))
    return [
        f"{key} is {own.get(key, 'missing')}, expected {other.get(key, 'none')}"
        for key in sorted(own.keys() | other.keys())
        if own.get(key) != other.get(key)
    ]


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The keys of tensors that hold a value which is not finite."""
    finite = [value.isfinite().all() for value in state.values()]
    flags = torch.stack(finite).tolist() if finite else []  # one wait for the device
    return [key for key, is_finite in zip(state, flags, strict=True) if not is_finite]


def shorten(names: Sequence[str], shown: int = 6) -> str:
    """The first of the names, and how many more there are."""
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


# What a file does not state.


def with_card(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a card, inferred from its shapes and names if it states none.

    Where nothing states the architecture, it must be that of a variant.

    Raises:
        WeightsError: it is of no variant, or a config.json beside it is wrong.
    """
    if checkpoint.card is not None:
        return checkpoint
    source = f"{checkpoint.source}: config.json"
    if checkpoint.layout == "transformers" and checkpoint.foreign_config:
        architecture = architecture_of(checkpoint.foreign_config, source)
        if checkpoint.renamed:  # the encoder of an autoencoder, which pools once less
            architecture["q_pool"] = len(architecture["stages"]) - 1
    else:
        architecture = _variant_shown(checkpoint)
    if any(map(DECODER.fullmatch, checkpoint.state)):
        architecture = {**architecture, "q_pool": 2}
        card = ModelCard(architecture=architecture, num_classes=None, autoencoder={})
        return replace(checkpoint, card=card)
    num_classes = checkpoint.num_classes or 0
    statements = statements_of(checkpoint.foreign_config, num_classes, source)
    fields = {"architecture": architecture, "num_classes": num_classes, **statements}
    card = ModelCard.checked(fields, source)
    if checkpoint.foreign_config:
        _check_described(checkpoint.state, card, source)
    return replace(checkpoint, card=card)


def architecture_shown(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of `Hiera` that shapes show; none where blocks or patches are missing."""
    widths: list[int] = []
    while (key := f"blocks.{len(widths)}.norm2.weight") in state:
        widths.append(state[key].shape[0])
    if not widths or PATCHES not in state:
        return {}
    grid = state.get("pos_embed", torch.empty(0))
    firsts = [i for i, width in enumerate(widths) if i and width != widths[i - 1]]  # of a stage
    return {
        "patch_kernel": tuple(state[PATCHES].shape[2:]),
        "embed_dim": min(widths),
        "stages": tuple(widths.count(width) for width in sorted(set(widths))),
        "global_pos_size": tuple(grid.shape[2:]) if grid.dim() == 4 else None,
        "layer_scale": "blocks.0.ls1.gamma" in state,
        "expand_proj": not firsts or f"blocks.{firsts[0]}.proj.weight" in state,
    }


def _variant_shown(checkpoint: Checkpoint) -> dict[str, Any]:
    """The architecture of the variant, and the size of its input, that shapes show."""
    state, shown = checkpoint.state, architecture_shown(checkpoint.state)
    found = [
        name
        for name, arguments in VARIANTS.items()
        if shown and all({**PLAIN, **arguments}[key] == value for key, value in shown.items())
    ]
    spatial = state.get("pos_embed_spatial", state.get("pos_embed"))
    if not found or spatial is None:
        raise WeightsError(
            f"{checkpoint.source} is of no variant ({', '.join(VARIANTS)}), and does not state its "
            f"architecture: its shapes show {shown or 'none'}"
        )
    (name,) = found
    arguments = {key: value for key, value in VARIANTS[name].items() if key != "num_classes"}
    if arguments.get("global_pos_size"):
        return arguments  # any size of input has the same embeddings
    stride, step, _ = arguments["patch_stride"]
    side = math.isqrt(spatial.shape[1])
    if side**2 != spatial.shape[1]:
        raise WeightsError(
            f"{checkpoint.source} has a position embedding of {spatial.shape[1]} tokens, which is "
            "not a square: its size cannot be known"
        )
    times = state["pos_embed_temporal"].shape[1] if "pos_embed_temporal" in state else 1
    return {**arguments, "input_size": (times * stride, side * step, side * step)}
