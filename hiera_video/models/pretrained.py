"""Models by name or from weights, and back into a folder.

`create_model` and its like build a model to train, with weights of any kind to start from.
`load_model` gives a trained model as it is, in evaluation mode, and the card that describes it.
`hiera_video.models.saving.save_model` writes a folder from which `load_model` gives the same model
again.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch

from hiera_video.errors import (
    ModelError,
    WeightsError,
    WeightsNotFoundError,
    did_you_mean,
)
from hiera_video.files import user_path
from hiera_video.models.build import build
from hiera_video.models.card import Kind, ModelCard
from hiera_video.models.checkpoint import (
    Checkpoint,
    read_checkpoint,
    with_card,
)
from hiera_video.models.hiera import Hiera as Hiera
from hiera_video.models.hub import SCHEME
from hiera_video.models.loading import Model, load_weights
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.saving import save_model
from hiera_video.models.sources import Source, check_source
from hiera_video.models.variants import (
    PUBLISHED,
    VARIANTS,
    check_known,
    is_image,
    list_models,
)
from hiera_video.settings.base import checked
from hiera_video.settings.model import Backbone, PosEmbedResize, Target

if TYPE_CHECKING:
    from hiera_video.models.detector import ActionDetector
    from hiera_video.models.segmenter import InstanceSegmenter

logger = logging.getLogger(__name__)


def create_model(
    name: str | None = None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    image_size: int | Sequence[int] | None = None,
    pos_embed_resize: PosEmbedResize = "window",
    **overrides: Any,
) -> Hiera:
    """A Hiera, with random weights or those of `checkpoint`. The load report is logged.

    Args:
        name: a variant of `list_models()`, or ARCHITECTURE.TAG for one with its published weights.
            None takes the architecture from `checkpoint`: as its card states it, else the variant
            that its shapes show.
        checkpoint: weights, see `hiera_video.models.sources`; beside a name, the tag of published
            weights alone (image weights are inflated into a video model).
        weights_key: of several states in a file, the one to take, such as `model_ema`. None: the
            plain one, with a warning that names the others.
        num_classes: outputs of the classifier, 0 for none; a count that differs from the
            checkpoint's gives a fresh classifier. None: the checkpoint's, else the variant's.
        num_frames: frames of a clip. None: the variant's.
        image_size: pixels of a clip, of both sides or as (height, width). None: the variant's.
        pos_embed_resize: how position embeddings of another size are adapted, see
            `hiera_video.models.loading.resize_spatial`.
        overrides: other keyword arguments of `Hiera`, such as `mask_unit`, `q_pool`, `drop_path`
            and `head_dropout`. None: the variant's.

    Raises:
        ModelError: unknown name or argument, or sizes that do not fit.
        WeightsError: weights that do not fit, or are not there.
        FetchError: weights that cannot be fetched.
    """
    overrides |= {"num_frames": num_frames, "image_size": image_size, "weights_key": weights_key}
    encoder, _, source = _stated("classifier", name, checkpoint, **overrides)
    if num_classes is None and source is not None:
        num_classes = source.num_classes if name is not None else source.num_classes or 0
    return _create(source, pos_embed_resize, encoder | _given(num_classes=num_classes))


def create_autoencoder(
    name: str | None = None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    decoder_heads: int | None = None,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    target: Target | None = None,
    pos_embed_resize: PosEmbedResize = "window",
    **arguments: Any,
) -> MaskedAutoencoderHiera:
    """A masked autoencoder around a Hiera, with random weights or those of `checkpoint`.

    Args:
        name: as for `create_model`.
        checkpoint: as for `create_model`.
        decoder_heads: of `MaskedAutoencoderHiera`. None: as the card of `checkpoint` states it,
            which it must then do.
        decoder_dim: of `MaskedAutoencoderHiera`. None: as the card of `checkpoint` states it, else
            512.
        decoder_depth: likewise, else 8.
        target: likewise, else "pixels".
        pos_embed_resize: as for `create_model`.
        arguments: as for `create_model`, but `q_pool` is 2 unless it is given, or stated by an
            autoencoder's `checkpoint` without a name.

    Raises:
        ModelError: as for `create_model`, and where nothing says how many heads the decoder has.
        WeightsError, FetchError: as for `create_model`.
    """
    encoder, stated, source = _stated("autoencoder", name, checkpoint, **arguments)
    decoder = stated | _given(
        decoder_heads=decoder_heads,
        decoder_dim=decoder_dim,
        decoder_depth=decoder_depth,
        target=target,
    )
    if "decoder_heads" not in decoder:
        where = f"{source.source}: " if source is not None else ""
        raise WeightsError(
            f"{where}decoder_heads is not given, and no tensor's shape shows it: 8 in the paper's "
            "video recipes, 16 in its image recipes and in all public builders"
        )
    return _create(source, pos_embed_resize, encoder, autoencoder=decoder)


def create_detector(
    name: str | None = None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    num_classes: int | None = None,
    head_dropout: float = 0.0,
    roi_resolution: int | None = None,
    pos_embed_resize: PosEmbedResize = "window",
    **arguments: Any,
) -> ActionDetector:
    """An action detector around a Hiera; the encoder starts from `checkpoint` of any kind.

    Args:
        name: as for `create_model`.
        checkpoint: as for `create_model`.
        num_classes: of `ActionDetector`. None: as the card of `checkpoint` states it, else 80, the
            actions of AVA.
        head_dropout: of `ActionDetector`.
        roi_resolution: of `ActionDetector`. None: as the card of `checkpoint` states it, else 7.
        pos_embed_resize: as for `create_model`.
        arguments: as for `create_model`.

    Raises:
        ModelError, WeightsError, FetchError: as for `create_model`.
    """
    encoder, stated, source = _stated("detector", name, checkpoint, **arguments)
    head = {"num_classes": 80, "head_dropout": head_dropout} | stated
    head |= _given(num_classes=num_classes, roi_resolution=roi_resolution)
    return _create(source, pos_embed_resize, encoder, detector=head)


def create_segmenter(
    name: str | None = None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    hidden: int | None = None,
    num_boxes: int = 512,
    pos_embed_resize: PosEmbedResize = "window",
    **arguments: Any,
) -> InstanceSegmenter:
    """An instance segmenter around an image model, which starts from `checkpoint` of any kind.

    Args:
        name: as for `create_model`.
        checkpoint: as for `create_model`.
        num_classes: of `InstanceSegmenter`. None: as the card of `checkpoint` states it, else 80,
            the classes of COCO.
        channels: of `InstanceSegmenter`. None: as the card of `checkpoint` states it, else 256.
        hidden: likewise, else 1024.
        num_boxes: of `InstanceSegmenter`.
        pos_embed_resize: as for `create_model`.
        arguments: as for `create_model`.

    Raises:
        ModelError, WeightsError, FetchError: as for `create_model`.
    """
    encoder, stated, source = _stated("segmenter", name, checkpoint, **arguments)
    if not is_image(encoder):
        images = ", ".join(variant for variant in VARIANTS if is_image(VARIANTS[variant]))
        raise ModelError(
            f"{name or checkpoint} is a video model, and instance segmenters take image models: "
            f"{images}"
        )
    heads = {"num_classes": 80, "num_boxes": num_boxes} | stated
    heads |= _given(num_classes=num_classes, channels=channels, hidden=hidden)
    return _create(source, pos_embed_resize, encoder, segmenter=heads)


def _stated(
    kind: Kind,
    name: str | None,
    checkpoint: str | Path | Checkpoint | None,
    *,
    weights_key: str | None = None,
    num_frames: int | None = None,
    image_size: int | Sequence[int] | None = None,
    **overrides: Any,
) -> tuple[dict[str, Any], dict[str, Any], Checkpoint | None]:
    """What a name or a checkpoint states for a model of that kind, and what replaces it.

    Returns:
        Keyword arguments of `Hiera`; of the autoencoder or detector around it, those on the card of
        the checkpoint; the checkpoint, read.
    """
    if name is not None and (
        not isinstance(name, str) or os.sep in name or user_path(name).exists()
    ):
        raise ModelError(
            f"{name!r} is not the name of a variant, such as hiera_base_16x224; a file, a folder "
            "or hf://OWNER/NAME with weights is given as checkpoint=... (model.init=... in "
            "training)"
        )
    size = checked(Backbone, {"num_frames": num_frames, "image_size": image_size})
    num_frames, image_size = size["num_frames"], size["image_size"]
    if name is not None and "." in name:
        if checkpoint is not None:
            raise ModelError(f"name is {name!r}, which names weights: give no checkpoint beside it")
        check_source(name, "backbone")
        name, checkpoint = name.split(".")[0], name
    if name is not None:
        check_known(name, VARIANTS, "The variants")
    source = None
    if checkpoint is not None:
        source = read_checkpoint(_with_variant(name, checkpoint), weights_key=weights_key)
    elif weights_key is not None:
        raise ModelError(f"weights_key is {weights_key!r}: give a checkpoint beside it")

    pools_less = False  # as autoencoders do: once less than the models that start from them
    if name is not None:
        arguments = dict(VARIANTS[name])
    elif source is not None:
        source = with_card(source)
        arguments = dict(source.architecture)
        pools_less = source.card is not None and source.card.kind == "autoencoder"
    else:
        raise ModelError("name is None: name a variant, or give a checkpoint")
    if kind != "classifier":
        arguments["num_classes"] = 0
    if pools_less != (kind == "autoencoder"):
        arguments["q_pool"] = 2 if kind == "autoencoder" else len(arguments["stages"]) - 1
    frames, height, width = arguments["input_size"]
    if is_image(arguments) and num_frames not in (None, 1):
        raise ModelError(
            f"num_frames is {num_frames}: {name or checkpoint} is an image model, of 1 frame; "
            "video variants are " + ", ".join(list_models("*_16x224"))
        )
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    height, width = image_size or (height, width)
    arguments["input_size"] = (num_frames or frames, height, width)
    around = getattr(source.card, kind, None) if source is not None else None
    return arguments | _given(**overrides), dict(around or {}), source


def _with_variant(name: str | None, checkpoint: str | Path | Checkpoint) -> str | Path | Checkpoint:
    """The checkpoint; of a tag of published weights alone, their whole name."""
    if not isinstance(checkpoint, str) or "." in checkpoint or user_path(checkpoint).exists():
        return checkpoint
    tags = [known.split(".")[1] for known in PUBLISHED if known.split(".")[0] == name]
    if checkpoint not in tags and (near := did_you_mean(checkpoint, tags)):
        raise WeightsNotFoundError(
            f"{checkpoint}: there is no such file or folder, and {name} has no such tag{near}"
        )
    return f"{name}.{checkpoint}" if checkpoint in tags else checkpoint


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}


def _create(
    source: Checkpoint | None,
    pos_embed_resize: PosEmbedResize,
    encoder: Mapping[str, Any],
    **around: Mapping[str, Any],
) -> Any:
    """The model that `build` makes of these arguments, with random weights or those of `source`."""
    checked(Backbone, {"pos_embed_resize": pos_embed_resize})
    if source is None and "autoencoder" not in around:
        return build(encoder, **around)
    # Drawing the first values of a huge model takes half a minute, and all of them are overwritten.
    with torch.device("meta"):
        model = build(encoder, **around)
    device = torch.get_default_device()
    # `to_empty` does the same, but imports sympy for tensors on the meta device: 0.3 s.
    model._apply(lambda values: torch.empty(values.shape, dtype=values.dtype, device=device))
    if isinstance(model, MaskedAutoencoderHiera):
        model.init_weights()
    elif "segmenter" in around:
        cast("InstanceSegmenter", model).reset_heads()
    if source is not None:
        load_weights(model, source, pos_embed_resize=pos_embed_resize)
    return model


# Whole models, as they were saved.


@overload
def load_model(
    source: Source | Checkpoint, *, kind: Literal["classifier", "backbone"], **changes: Any
) -> tuple[Hiera, ModelCard]: ...
@overload
def load_model(
    source: Source | Checkpoint, *, kind: Literal["autoencoder"], **changes: Any
) -> tuple[MaskedAutoencoderHiera, ModelCard]: ...
@overload
def load_model(
    source: Source | Checkpoint, *, kind: Literal["detector"], **changes: Any
) -> tuple[ActionDetector, ModelCard]: ...
@overload
def load_model(
    source: Source | Checkpoint, *, kind: Literal["segmenter"], **changes: Any
) -> tuple[InstanceSegmenter, ModelCard]: ...
@overload
def load_model(
    source: Source | Checkpoint, *, kind: Kind | None = None, **changes: Any
) -> tuple[Model, ModelCard]: ...
def load_model(
    source: Source | Checkpoint,
    *,
    kind: Kind | None = None,
    weights_key: str | None = None,
    **changes: Any,
) -> tuple[Model, ModelCard]:
    """A trained model in evaluation mode, and its card, which is `model.card` too.

    Of a file, or a folder of another project, what it does not state is inferred.

    Arguments and errors are those of `hiera_video.load_model`.
    """
    checkpoint = with_card(read_checkpoint(source, kind, weights_key))
    assert checkpoint.card is not None
    checkpoint.card.require(kind, checkpoint.source)
    creators: dict[Kind, Callable[..., Model]] = {
        "autoencoder": create_autoencoder,
        "detector": create_detector,
        "segmenter": create_segmenter,
    }
    create = creators.get(kind or checkpoint.card.kind, create_model)
    model = create(checkpoint=checkpoint, **changes)
    assert model.card is not None
    return model.eval(), model.card


# Names of the first edition.


def _save_pretrained(
    model: Hiera, folder: str | Path, *, repository: str | None = None, **meta: Any
) -> None:
    """`hiera_video.save_model(folder, model, ...)`."""
    _warn("save_pretrained", "save_model")
    known = {key: value for key, value in meta.items() if key in ModelCard.model_fields}
    notes = {key: value for key, value in meta.items() if key not in known}
    if notes:
        known["notes"] = {**(model.card.notes if model.card is not None else {}), **notes}
    save_model(folder, model, repository=repository, **known)


def _from_pretrained(source: str | Path, *, revision: str | None = None) -> Hiera:
    """The model of `hiera_video.load_model(source, kind="backbone")`."""
    _warn("from_pretrained", "load_model")
    name = str(source)
    if not Path(source).exists() and name.count("/") == 1:
        source = f"{SCHEME}{name}" + (f"@{revision}" if revision is not None else "")
    elif revision is not None:
        raise ModelError(f"revision is {revision!r}, but {source} is no repository: give none")
    model, _ = load_model(source, kind="backbone")
    return model


def _warn(old: str, new: str) -> None:
    message = f"Hiera.{old} will be removed: use hiera_video.{new}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


Hiera.save_pretrained = _save_pretrained  # type: ignore[attr-defined]
Hiera.from_pretrained = staticmethod(_from_pretrained)  # type: ignore[attr-defined]
