"""Models by name or from weights, and back into a folder.

`create_model` and its like build a model to train, with weights of any kind to start from.
`load_model` gives a trained model as it is, in evaluation mode, and the card that describes it.
`save_model` writes a folder from which `load_model` gives the same model again.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from hiera_video.errors import ModelError, OutputExistsError, WeightsError
from hiera_video.files import replacing, write_json
from hiera_video.models.card import Kind, ModelCard
from hiera_video.models.checkpoint import Checkpoint, read_checkpoint, with_card
from hiera_video.models.hiera import Hiera as Hiera
from hiera_video.models.hub import SCHEME, write_repository
from hiera_video.models.layouts import rename
from hiera_video.models.loading import (
    Model,
    PosEmbedResize,
    card_of,
    load_weights,
    official_name,
)
from hiera_video.models.mae import MaskedAutoencoderHiera, Target
from hiera_video.models.sources import stated_card
from hiera_video.models.variants import (
    PUBLISHED,
    VARIANTS,
    as_tuple,
    check_known,
    is_image,
    list_models,
)

if TYPE_CHECKING:
    from hiera_video.models.detector import ActionDetector

logger = logging.getLogger(__name__)

# What other libraries call things, and what to write here.
HABITS = {
    "pretrained": "name the weights, create_model('hiera_base_16x224.mae_k400_ft_k400') or "
    "checkpoint=...; list_models(pretrained=True) has their names",
    "features_only": "model.forward_intermediates(x, indices=...) gives the outputs of the stages",
    "global_pool": "num_classes=0 leaves the pooled features, and "
    "model.forward_head(x, pre_logits=True) gives them of a classifier; "
    "model.forward_features(x) gives the tokens",
}


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
            None takes the architecture from `checkpoint`: as its card states it, else the variant
            that its shapes show.
        checkpoint: weights, see `hiera_video.models.sources`; beside a name, the tag of published
            weights alone (image weights are inflated into a video model).
        num_classes: outputs of the classifier, 0 for none; a count that differs from the
            checkpoint's gives a fresh classifier. None: the checkpoint's, else the variant's.
        num_frames: frames of a clip. None: the variant's.
        image_size: pixels of a clip, of both sides or as (height, width). None: the variant's.
        mask_unit: tokens of a mask unit, (time, height, width). None: the variant's, (1, 8, 8).
        q_pool: stage transitions that pool. None: the variant's, 3.
        drop_path, head_dropout: regularisation in training.
        pos_embed_resize: how position embeddings of another size are adapted, see
            `hiera_video.models.loading.resize_spatial`.
        overrides: other keyword arguments of `Hiera`.

    Raises:
        ModelError: unknown name or argument, or sizes that do not fit.
        WeightsError: weights that do not fit, or are not there.
        ConnectionError: weights that cannot be fetched.
    """
    arguments, source = _arguments(name, checkpoint, num_frames, image_size)
    if num_classes is None and source is not None:
        num_classes = source.num_classes if name is not None else source.num_classes or 0
    arguments |= _given(num_classes=num_classes, mask_unit=mask_unit, q_pool=q_pool)
    arguments |= {"drop_path": drop_path, "head_dropout": head_dropout, **overrides}
    if source is None:
        return build(arguments)
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
            `checkpoint`.
        checkpoint, num_frames, image_size, mask_unit, drop_path, pos_embed_resize, overrides:
            as for `create_model`.
        decoder_heads, decoder_dim, decoder_depth, target: of `MaskedAutoencoderHiera`. None: as the
            card of `checkpoint` states them, else 512, 8 and "pixels"; the heads must then be
            given.
        q_pool: stage transitions that pool. None: 2.

    Raises:
        ModelError: as for `create_model`, and where nothing says how many heads the decoder has.
        WeightsError, ConnectionError: as for `create_model`.
    """
    arguments, source = _arguments(name, checkpoint, num_frames, image_size, pools=True)
    stated = source.card.autoencoder if source is not None and source.card is not None else None
    if q_pool is not None or stated is None or name is not None:
        arguments["q_pool"] = 2 if q_pool is None else q_pool
    arguments |= _given(mask_unit=mask_unit)
    arguments |= {"num_classes": 0, "drop_path": drop_path, **overrides}
    decoder = (stated or {}) | _given(
        decoder_heads=decoder_heads,
        decoder_dim=decoder_dim,
        decoder_depth=decoder_depth,
        target=target,
    )
    if "decoder_heads" not in decoder:
        raise ModelError(
            "decoder_heads is not given, and no tensor's shape shows it: 8 in the paper's video "
            "recipes, 16 in its image recipes and in all public builders"
        )
    with torch.device("meta"):
        model = MaskedAutoencoderHiera(build(arguments), **decoder)
    model.to_empty(device=torch.get_default_device())
    model.init_weights()
    if source is not None:
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
        num_classes, roi_resolution, head_dropout: of `ActionDetector`. None: as the card of
            `checkpoint` states them, else 80, the actions of AVA, and 7.

    Raises:
        ModelError, WeightsError, ConnectionError: as for `create_model`.
    """
    from hiera_video.models.detector import ActionDetector  # torchvision takes its time

    arguments, source = _arguments(name, checkpoint, num_frames, image_size)
    stated = source.card.detector if source is not None and source.card is not None else None
    arguments |= _given(mask_unit=mask_unit, q_pool=q_pool)
    arguments |= {"num_classes": 0, "drop_path": drop_path, **overrides}
    detector = {"num_classes": 80, "roi_resolution": 7, **(stated or {})}
    detector |= _given(num_classes=num_classes, roi_resolution=roi_resolution)
    if source is None:
        return ActionDetector(build(arguments), head_dropout=head_dropout, **detector)
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
    pools: bool = False,
) -> tuple[dict[str, Any], Checkpoint | None]:
    """Keyword arguments of `Hiera` that a name or checkpoint states, and the checkpoint, read.

    Args:
        pools: keep an autoencoder's number of pooling steps, which is one less than in the models
            that start from it.
    """
    if name is not None and "." in name:
        if checkpoint is not None:
            raise ModelError(f"name is {name!r}, which names weights: give no checkpoint beside it")
        check_known(name, PUBLISHED, "Published weights")
        name, checkpoint = name.split(".")[0], name
    if name is not None:
        check_known(name, VARIANTS, "The variants")

    source = None
    if checkpoint is not None:
        if f"{name}.{checkpoint}" in PUBLISHED:
            checkpoint = f"{name}.{checkpoint}"
        source = read_checkpoint(checkpoint)

    if name is not None:
        arguments = dict(VARIANTS[name])
    elif source is not None:
        source = with_card(source)
        arguments = dict(source.architecture)
        if source.card is not None and source.card.kind == "autoencoder" and not pools:
            arguments["q_pool"] = len(arguments["stages"]) - 1
    else:
        raise ModelError("name is None: name a variant, or give a checkpoint")
    frames, height, width = arguments["input_size"]
    if num_frames is not None and is_image(arguments) and num_frames != 1:
        raise ModelError(
            f"num_frames is {num_frames}: {name or checkpoint} is an image model, of 1 frame; "
            "video variants are " + ", ".join(list_models("*_16x224"))
        )
    if image_size is not None:
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    arguments["input_size"] = (frames if num_frames is None else num_frames, height, width)
    return arguments, source


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}


def build(arguments: Mapping[str, Any]) -> Hiera:
    """`Hiera(**arguments)` with lists as tuples; an unknown argument is a ModelError."""
    for key in arguments:
        if key in HABITS:
            raise ModelError(f"{key} is not an argument of Hiera: {HABITS[key]}")
        check_known(key, inspect.signature(Hiera).parameters, "Arguments of Hiera")
    return Hiera(**{key: as_tuple(value) for key, value in arguments.items()})


# Whole models, as they were saved.


@overload
def load_model(
    source: str | Path | Checkpoint, *, kind: Literal["classifier", "backbone"], **changes: Any
) -> tuple[Hiera, ModelCard]: ...
@overload
def load_model(
    source: str | Path | Checkpoint, *, kind: Literal["autoencoder"], **changes: Any
) -> tuple[MaskedAutoencoderHiera, ModelCard]: ...
@overload
def load_model(
    source: str | Path | Checkpoint, *, kind: Literal["detector"], **changes: Any
) -> tuple[ActionDetector, ModelCard]: ...
@overload
def load_model(
    source: str | Path | Checkpoint, *, kind: Kind | None = None, **changes: Any
) -> tuple[Model, ModelCard]: ...
def load_model(
    source: str | Path | Checkpoint, *, kind: Kind | None = None, **changes: Any
) -> tuple[Model, ModelCard]:
    """A trained model in evaluation mode, and its card, which is `model.card` too.

    Args:
        source: a run, checkpoint or weights folder, published weights, a repository, a file or
            folder of another project, see `hiera_video.models.sources`. Of the last two, what they
            do not state is inferred.
        kind: what is needed; weights of another kind are refused. "backbone" takes weights of any
            kind: a classifier as it is, and the encoder of an autoencoder or a detector. None:
            whatever the weights are.
        changes: arguments of `create_model`, `create_autoencoder` or `create_detector`, such as
            `num_frames` and `image_size`; `decoder_heads` of published autoencoders must be given.

    Raises:
        WeightsError: not the weights of a Hiera, or of another kind than is needed.
        WeightsNotFoundError: nothing of that name is there.
        ConnectionError: weights that cannot be fetched.
        ModelError: changes that do not fit.
    """
    if not isinstance(source, Checkpoint):
        stated = stated_card(source)
        if stated is not None:
            stated.require(kind, source)  # before gigabytes are fetched
    checkpoint = with_card(read_checkpoint(source))
    assert checkpoint.card is not None
    checkpoint.card.require(kind, checkpoint.source)
    model: Model
    if kind != "backbone" and checkpoint.card.kind == "autoencoder":
        model = create_autoencoder(checkpoint=checkpoint, **changes)
    elif kind != "backbone" and checkpoint.card.kind == "detector":
        model = create_detector(checkpoint=checkpoint, **changes)
    else:
        model = create_model(checkpoint=checkpoint, **changes)
    assert model.card is not None
    return model.eval(), model.card


def save_model(
    folder: str | Path,
    model: Model,
    card: ModelCard | None = None,
    *,
    repository: str | None = None,
    **entries: Any,
) -> None:
    """Writes config.json and model.safetensors; the folder appears when both are complete.

    Autoencoders and detectors are written under official names, so that classifiers can start from
    their encoders.

    Args:
        folder: replaced if it is a weights folder already.
        card: what config.json says beside what the model itself shows. None: the card that the
            model has from its weights, if it comes from any.
        repository: OWNER/NAME on the Hugging Face Hub to upload the folder to.
        entries: fields of `ModelCard` that differ, such as `class_names`.

    Raises:
        ModelError: an unknown entry.
        WeightsError: a wrong entry, or a model that is not what its card describes.
        OutputExistsError: `folder` is something else than a weights folder.
        FetchError: the folder is written, but cannot be uploaded.
    """
    folder = Path(folder).expanduser()
    card = card_of(model, model.card if card is None else card, **entries)
    _check_described(model, card)
    replaces = (folder / "config.json").is_file()
    if folder.exists() and not replaces:
        raise OutputExistsError(f"{folder} exists and is not a weights folder")
    if replaces:
        logger.info("replacing the weights in %s", folder)
    from safetensors.torch import save_file  # not needed to build a model

    norm = "encoder_norm." if card.kind == "autoencoder" else "norm."
    state = {
        rename(official_name(key), {"norm.": norm}): value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    with replacing(folder) as part:
        part.mkdir(parents=True)
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        write_json(part / "config.json", card.to_json())
    if repository is not None:
        write_repository(repository, folder)


def _check_described(model: Model, card: ModelCard) -> None:
    """Raises WeightsError for a model that cannot be loaded into what its card describes."""
    with torch.device("meta"):
        encoder = build({**card.architecture, "num_classes": card.num_classes or 0})
        described: Model = encoder
        if card.autoencoder is not None:
            described = MaskedAutoencoderHiera(encoder, **card.autoencoder)
        elif card.detector is not None:
            from hiera_video.models.detector import ActionDetector

            described = ActionDetector(encoder, **card.detector)
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    expected = {key: list(value.shape) for key, value in described.state_dict().items()}
    differs = [
        f"{key} is {own.get(key, 'missing')}, described is {expected.get(key, 'none')}"
        for key in sorted(own.keys() | expected.keys())
        if own.get(key) != expected.get(key)
    ]
    if not differs:
        return
    advice = "save its state dict with torch.save"
    if all("head." in difference.split(" ")[0] for difference in differs):
        advice = "replace the classifier by model.reset_classifier(num_classes), not by hand"
    raise WeightsError(
        f"the model was changed after it was built, and could not be loaded again: {differs[0]}"
        + (f", and {len(differs) - 1} more" if differs[1:] else "")
        + f". Instead, {advice}"
    )


# Names of the first edition.


def _save_pretrained(
    model: Hiera, folder: str | Path, *, repository: str | None = None, **meta: Any
) -> None:
    """`hiera_video.save_model(folder, model, ...)`."""
    warnings.warn(
        "Hiera.save_pretrained will be removed: use hiera_video.save_model",
        DeprecationWarning,
        stacklevel=2,
    )
    known = {key: value for key, value in meta.items() if key in ModelCard.model_fields}
    notes = {key: value for key, value in meta.items() if key not in known}
    if notes:
        known["notes"] = {**(model.card.notes if model.card is not None else {}), **notes}
    save_model(folder, model, repository=repository, **known)


def _from_pretrained(source: str | Path, *, revision: str | None = None) -> Hiera:
    """The model of `hiera_video.load_model(source, kind="backbone")`."""
    warnings.warn(
        "Hiera.from_pretrained will be removed: use hiera_video.load_model",
        DeprecationWarning,
        stacklevel=2,
    )
    name = str(source)
    if not Path(source).exists() and name.count("/") == 1:
        source = f"{SCHEME}{name}" + (f"@{revision}" if revision is not None else "")
    elif revision is not None:
        raise ModelError(f"revision is {revision!r}, but {source} is no repository: give none")
    model, _ = load_model(source, kind="backbone")
    return model


Hiera.save_pretrained = _save_pretrained  # type: ignore[attr-defined]
Hiera.from_pretrained = staticmethod(_from_pretrained)  # type: ignore[attr-defined]
