"""Weights of a checkpoint into a model, with a report of what became of each tensor.

Patch kernels and position embeddings of another clip size are adapted. A parameter that the
checkpoint lacks is an error; only a classifier and a decoder may start with random values.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hiera_video.errors import WeightsError
from hiera_video.models.card import ModelCard
from hiera_video.models.checkpoint import (
    DECODER,
    HEAD,
    PREDICTORS,
    ROI_HEAD,
    SEGMENTER,
    Checkpoint,
    differences,
    read_checkpoint,
    shorten,
)
from hiera_video.models.hiera import Hiera
from hiera_video.models.layouts import PATCHES
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.positions import resize_spatial, resize_temporal
from hiera_video.models.units import divided
from hiera_video.models.variants import PLAIN, as_tuple, check_known, variant_name
from hiera_video.settings.model import PosEmbedResize

if TYPE_CHECKING:
    from hiera_video.models.detector import ActionDetector
    from hiera_video.models.segmenter import InstanceSegmenter

logger = logging.getLogger(__name__)

Model: TypeAlias = "Hiera | MaskedAutoencoderHiera | ActionDetector | InstanceSegmenter"


@dataclass
class LoadReport:
    """What became of every tensor of a checkpoint and of every parameter of a model."""

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)  # parameters that got the file's values
    taken: list[str] = field(default_factory=list)  # which state of a file, without which prefix
    renamed: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)  # "what: how", for values that were adapted
    reinitialised: list[str] = field(default_factory=list)  # of a fresh head or decoder
    dropped: list[str] = field(default_factory=list)  # keys of the file that were not used
    loaded_frac: float = 0.0  # of the model's parameters, counted by elements

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.reinitialised)
        lines = [
            f"{self.source} ({self.layout} layout): loaded {len(self.loaded)} of {total} tensors, "
            f"{self.loaded_frac:.1%} of the parameters"
        ]
        for what in ("taken", "renamed", "resized", "reinitialised", "dropped"):
            if entries := getattr(self, what):
                lines.append(f"  {what} ({len(entries)}): {shorten(entries)}")
        return "\n".join(lines)


def load_weights(
    model: Model,
    source: str | Path | Checkpoint,
    *,
    pos_embed_resize: PosEmbedResize = "window",
) -> LoadReport:
    """Loads weights into a model, whole or not at all, and logs the report that it returns.

    The report is a warning where values were resized, start afresh, or were dropped: Python shows
    warnings of a program that has not set up logging, and no other messages.

    The model then has the card of the weights, as far as it still describes it: `model.card`.
    Patch kernels and position embeddings of another clip size are adapted, so that image weights
    fit a video model too. These parts start with random values: a classifier for another number of
    classes, or where the checkpoint has none; the head of an action detector for other actions;
    the last layers of an instance segmenter for other classes, and all its heads where the
    checkpoint has none of its widths; the decoder of an autoencoder where the checkpoint has none,
    or has that of images for a video model; and the decoder's position embedding at another clip
    size.

    Args:
        source: as for `read_checkpoint`.
        pos_embed_resize: how position embeddings are interpolated in space: in step with the
            attention windows ("window"), or plainly ("bicubic").

    Raises:
        WeightsError: weights of another architecture, or missing parameters.
    """
    checkpoint = read_checkpoint(source)
    encoder = encoder_of(model)
    _check_architecture(checkpoint, encoder)
    parameters = {key.removeprefix("encoder."): value for key, value in model.named_parameters()}
    fresh = (ROI_HEAD, SEGMENTER, PREDICTORS, DECODER)
    may_be_fresh = {key for key in parameters if any(part.fullmatch(key) for part in fresh)}
    if checkpoint.layout == "sam2":
        may_be_fresh |= {"norm.weight", "norm.bias"}
    unused = _unfitting_decoder(checkpoint, model)
    if checkpoint.num_classes != encoder.num_classes:
        may_be_fresh |= set(HEAD)
        unused |= set(HEAD)
    for part in (ROI_HEAD, SEGMENTER, PREDICTORS):  # each is loaded whole or not at all
        shapes = [
            {key: value.shape for key, value in tensors.items() if part.fullmatch(key)}
            for tensors in (checkpoint.state, parameters)
        ]
        if shapes[0] != shapes[1]:
            unused |= shapes[0].keys()
    state = {key: value for key, value in checkpoint.state.items() if key not in unused}
    dropped = checkpoint.dropped + [key for key in checkpoint.state if key in unused]
    try:
        resized = adapt_state(state, encoder, checkpoint.architecture, pos_embed_resize)
    except WeightsError as error:
        raise WeightsError(f"{checkpoint.source}: {error}") from error

    absent = [key for key in parameters if key in may_be_fresh and key not in state]
    needed = {key: value for key, value in parameters.items() if key not in absent}
    if differs := differences(state, needed):
        raise WeightsError(f"{checkpoint.source} does not fit the model: {shorten(differs)}")
    with torch.no_grad():
        for key, value in state.items():
            parameters[key].copy_(value)
    if absent and not isinstance(model, MaskedAutoencoderHiera):
        if "norm.weight" in absent:
            encoder.norm.reset_parameters()
        if any(map(SEGMENTER.fullmatch, absent)):
            cast("InstanceSegmenter", model).reset_heads()
        else:
            model.reset_classifier(model.num_classes)
    card = checkpoint.card
    if card is not None and not any(
        key in HEAD or ROI_HEAD.fullmatch(key) or PREDICTORS.fullmatch(key) for key in state
    ):
        card = card.without_classes()
    model.card = None if card is None else card_of(model, card)
    report = LoadReport(
        checkpoint.source,
        checkpoint.layout,
        loaded=list(state),
        taken=checkpoint.taken,
        renamed=[] if isinstance(model, MaskedAutoencoderHiera) else checkpoint.renamed,
        resized=resized,
        reinitialised=absent,
        dropped=dropped,
        loaded_frac=sum(value.numel() for value in state.values())
        / sum(value.numel() for value in parameters.values()),
    )
    is_changed = report.resized or report.reinitialised or report.dropped
    for line in str(report).split("\n"):
        logger.log(logging.WARNING if is_changed else logging.INFO, "%s", line)
    return report


def card_of(model: Model, card: ModelCard | None = None, **entries: Any) -> ModelCard:
    """The card of a model: what the model itself shows, and beside it `card` and `entries`.

    Args:
        card: of the weights from which the model comes.
        entries: fields of `ModelCard`, which replace those of `card`.

    Raises:
        ModelError: an unknown entry.
        WeightsError: a wrong entry, or class names for another number of classes.
    """
    encoder = encoder_of(model)
    shown: dict[str, Any] = {"architecture": encoder.architecture, "num_classes": None}
    if isinstance(model, Hiera):
        shown["num_classes"] = model.num_classes
    elif isinstance(model, MaskedAutoencoderHiera):
        shown["autoencoder"] = model.decoder_architecture
    elif hasattr(model, "detector_architecture"):
        shown["detector"] = model.detector_architecture
    else:
        shown["segmenter"] = model.segmenter_architecture
    if claimed := sorted(shown.keys() & entries.keys()):
        raise WeightsError(f"{', '.join(claimed)}: the model decides, give none")
    for entry in entries:
        check_known(entry, ModelCard.model_fields, "Entries of a card")
    stated = {} if card is None else card.entries()
    if "autoencoder" not in shown:
        stated.pop("masking", None)  # it concerns pretraining alone
    return ModelCard.checked({**stated, **entries, **shown}, "the card")


def _unfitting_decoder(checkpoint: Checkpoint, model: Model) -> set[str]:
    """The tensors of a checkpoint's decoder that do not go into the model's.

    Raises:
        WeightsError: a folder that states another decoder.
    """
    decoder = set(filter(DECODER.fullmatch, checkpoint.state))
    trained = checkpoint.likely_architecture
    if not isinstance(model, MaskedAutoencoderHiera) or not trained:
        return decoder
    own = model.encoder.architecture
    if (trained["patch_stride"][0] == 1) != (own["patch_stride"][0] == 1):
        return decoder  # predicted pixels of images and of video have different orders
    stated = checkpoint.card.autoencoder if checkpoint.card is not None else None
    for key, value in (stated or {}).items():
        if value != model.decoder_architecture[key]:
            raise WeightsError(
                f"{checkpoint.source} was pretrained with {key}={value}, the model has "
                f"{key}={model.decoder_architecture[key]}: take {value}"
            )
    same = divided(trained["input_size"], trained["patch_stride"]) == model.encoder.tokens_shape
    return set() if same else {"decoder_pos_embed"}


def encoder_of(model: Model) -> Hiera:
    """The backbone of a model, which may be the model itself."""
    return model if isinstance(model, Hiera) else model.encoder


def _check_architecture(checkpoint: Checkpoint, model: Hiera) -> None:
    """Compares widths and depths, as shapes show them, and what only a card states."""
    theirs, own = checkpoint.likely_architecture, {**PLAIN, **model.architecture}
    if not theirs:
        return  # the caller reports what is missing
    keys = ("embed_dim", "stages", "num_heads", "q_stride", "mask_unit_attn", *PLAIN)
    differs = [
        f"{key} {theirs[key]}, not {own[key]}"
        for key in keys
        if as_tuple(theirs.get(key, own[key])) != as_tuple(own[key])
    ]
    if differs:
        raise WeightsError(
            f"{checkpoint.source} looks like {variant_name(theirs)}, the model is "
            f"{variant_name(own)}: the file has {', '.join(differs)}"
        )


# Other clip sizes.


def adapt_state(
    state: dict[str, Tensor], model: Hiera, trained: Mapping[str, Any], mode: PosEmbedResize
) -> list[str]:
    """Changes `state`, under official names, for the model's patches and grid of tokens.

    Args:
        trained: the architecture that the weights were trained with, {} where it is not known.
        mode: as in `resize_spatial`.

    Returns:
        What was changed, and how: one entry for each tensor.

    Raises:
        WeightsError: video weights for an image model, or a grid that cannot be known.
    """
    changes = []
    frames = model.patch_embed.proj.kernel_size[0]
    if PATCHES in state and state[PATCHES].shape[2] != frames:
        state[PATCHES] = inflate_patches(state[PATCHES], frames)
        changes.append(f"{PATCHES}: inflated over {frames} frames, zero but in the middle")

    times, *size = model.tokens_shape
    if model.sep_pos_embed and "pos_embed" in state and "pos_embed_temporal" not in state:
        if not model.is_absolute_window:
            state["pos_embed_spatial"] = state.pop("pos_embed")
        width = model.pos_embed_temporal.shape[2]
        state["pos_embed_temporal"] = torch.zeros(1, times, width)
        changes.append(f"pos_embed_temporal: {times} zeros, an image has no times")
    temporal = state.get("pos_embed_temporal")
    if temporal is not None and temporal.shape[1] != times:
        state["pos_embed_temporal"] = resize_temporal(temporal, times)
        changes.append(f"pos_embed_temporal: {temporal.shape[1]} -> {times} (linear)")

    if model.is_absolute_window:
        return changes  # it fits any size
    key = "pos_embed_spatial" if model.sep_pos_embed else "pos_embed"
    if key not in state or (times > 1 and not model.sep_pos_embed):
        return changes  # one embedding over space and time is taken as it is
    grid = token_grid(state[key].shape[1], size, trained)
    if grid != size:
        _, *window = trained.get("mask_unit", (1, 8, 8))  # which all published models have
        x = rearrange(state[key], "1 (h w) d -> 1 d h w", h=grid[0])
        x = resize_spatial(x, size, window, mode)
        state[key] = rearrange(x, "1 d h w -> 1 (h w) d")
        changes.append(f"{key}: {grid[0]}x{grid[1]} -> {size[0]}x{size[1]} ({mode})")
    return changes


def inflate_patches(kernel: Float[Tensor, "D C s h w"], frames: int) -> Float[Tensor, "D C t h w"]:
    """A kernel over `frames` frames that sees the middle one as `kernel`, over one, sees it.

    Of a still clip, the model then computes what the image model does (measured: logits differ by
    1e-6 of their standard deviation). A kernel that is repeated and divided by `frames` (I3D) also
    weighs the frames of zeros before the first: 0.06.
    """
    if kernel.shape[2] != 1:
        raise WeightsError(
            f"patches over {kernel.shape[2]} frames do not fit a model with patches over {frames}; "
            "video weights are for the video variants"
        )
    before, after = frames // 2, (frames - 1) // 2
    return F.pad(kernel, (0, 0, 0, 0, before, after))


def token_grid(tokens: int, own: list[int], trained: Mapping[str, Any]) -> list[int]:
    """The grid (h, w) of a position embedding: as `trained` states, else a square or `own`."""
    if trained:
        return list(divided(trained["input_size"], trained["patch_stride"])[1:])
    side = math.isqrt(tokens)
    square, same = side**2 == tokens, tokens == math.prod(own)
    if square == same and own != [side, side]:
        raise WeightsError(
            f"a position embedding of {tokens} tokens may be for several sizes or for none that is "
            "known: use a weights folder, which states it"
        )
    return [side, side] if square else own
