"""Models into weights folders, from which `hiera_video.models.pretrained.load_model` reads them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from hiera_video.errors import ModelError, OutputExistsError, WeightsError
from hiera_video.files import json_text, parse_json, replacing, user_path, write_json
from hiera_video.models.build import described_tensors
from hiera_video.models.card import ModelCard
from hiera_video.models.checkpoint import differences, shorten
from hiera_video.models.hiera import Trainable
from hiera_video.models.hub import write_repository
from hiera_video.models.layouts import rename
from hiera_video.models.loading import Model, card_of
from hiera_video.models.mae import MaskedAutoencoderHiera

logger = logging.getLogger(__name__)


def save_model(
    folder: str | Path,
    model: nn.Module,
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
        model: a `Hiera`, `MaskedAutoencoderHiera` or action detector, also in the wrapper of
            DataParallel, DistributedDataParallel or torch.compile. A linear layer that was assigned
            as its classifier is written; the class names before are left out, with a warning, if
            its outputs are others.
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
    if not isinstance(folder, str | os.PathLike):
        raise ModelError(
            f"the folder is a {type(folder).__name__}: expected a path, save_model(folder, model)"
        )
    if not isinstance(card, ModelCard | None):
        raise ModelError(
            f"the card is a {type(card).__name__}: expected a ModelCard; its entries are given by "
            "name, such as class_names=[...]"
        )
    folder, model = user_path(folder), _unwrapped(model)
    card = card_of(model, _own_card(model, entries) if card is None else card, **entries)
    _check_described(model, card)
    replaces = (folder / "config.json").is_file()
    if folder.exists() and not replaces:
        raise OutputExistsError(f"{folder} exists and is not a weights folder")
    if replaces:
        logger.info("replacing the weights in %s", folder)
    names = official_names(model, card)
    official = {names[key]: value for key, value in model.state_dict().items()}
    with replacing(folder) as part:
        write_folder(part, official, card.to_json())
    if repository is not None:
        write_repository(repository, folder)


def official_names(model: Model, card: ModelCard) -> dict[str, str]:
    """Names of tensors in a weights folder, by their names in the model."""
    norm = "encoder_norm." if card.kind == "autoencoder" else "norm."
    return {k: rename(k.removeprefix("encoder."), {"norm.": norm}) for k in model.state_dict()}


def write_folder(folder: Path, state: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Makes a folder with model.safetensors and config.json."""
    folder.mkdir(parents=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", config)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes contiguous tensors as a new .safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # not needed to build a model

    path.touch()
    mode = path.stat().st_mode  # of any new file; that of safetensors is for the owner alone
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise
    path.chmod(mode)


def _unwrapped(model: nn.Module) -> Model:
    """The model in the wrappers of DataParallel, DistributedDataParallel and torch.compile."""
    found: object = model
    while not isinstance(found, Trainable):
        found = getattr(found, "module", getattr(found, "_orig_mod", None))
        if not isinstance(found, nn.Module):
            pair = "; load_model returns model, card" if isinstance(model, tuple) else ""
            raise ModelError(
                f"the model is a {type(model).__name__}: expected a Hiera, or an autoencoder or "
                f"action detector around one{pair}; save another's state dict with torch.save"
            )
    return cast("Model", found)


def _own_card(model: Model, entries: Mapping[str, Any]) -> ModelCard | None:
    """The card that a model has, without its classes if another classifier was assigned."""
    card = model.card
    if card is None or isinstance(model, MaskedAutoencoderHiera):
        return card
    classes = (card.detector or card.segmenter or {"num_classes": card.num_classes})["num_classes"]
    if classes == model.num_classes:
        return card
    if (card.class_names or card.label_map) and not {"class_names", "label_map"} & entries.keys():
        logger.warning(
            "the classifier was replaced by one of %d outputs: the names of the %d classes before "
            "are left out; class_names=... gives others",
            model.num_classes,
            classes,
        )
    return card.without_classes()


def _check_described(model: Model, card: ModelCard) -> None:
    """Raises WeightsError for a model that cannot be loaded into what its card describes."""
    if ModelCard.from_json(parse_json(json_text(card.to_json())), "config.json") != card:
        raise WeightsError("an entry of the card changes when it is written as JSON and read again")
    if differs := differences(model.state_dict(), described_tensors(card)):
        advice = "save its state dict with torch.save"
        if all("head." in difference.split(" ")[0] for difference in differs):
            advice = "replace the classifier by model.reset_classifier(num_classes), not by hand"
        raise WeightsError(
            "the model was changed after it was built, and could not be loaded again: "
            f"{shorten(differs, 1)}. Instead, {advice}"
        )
