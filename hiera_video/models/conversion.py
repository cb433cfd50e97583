"""Weights of a classifier or backbone from one layout to another, and the way back as a check."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hiera_video.files import replacing, write_json
from hiera_video.models.hiera import Hiera
from hiera_video.models.layouts import (
    CARRIED,
    Layout,
    architecture_of,
    check_writable,
    config_of,
    from_official,
)
from hiera_video.models.registry import PUBLISHED, VARIANTS, create_model, input_statistics
from hiera_video.models.weights import (
    Checkpoint,
    load_folder,
    read_checkpoint,
    save_weights,
    told_by_shapes,
)

logger = logging.getLogger(__name__)


def load_any(source: str | Path) -> tuple[Hiera, dict[str, Any]]:
    """The model of weights in any layout, and what a weights folder's config says beside it.

    Of a masked autoencoder that is its encoder alone, which the log says. Where nothing states the
    architecture, it must be of a variant, which the shapes tell.

    Raises:
        ValueError: an action detector, or an architecture that cannot be told.
    """
    if str(source) in PUBLISHED and PUBLISHED[str(source)].num_classes is not None:
        return load_folder(source)
    checkpoint = read_checkpoint(source)
    if checkpoint.detector or checkpoint.roi_head:
        raise ValueError(
            f"{source} is an action detector, which other layouts do not have; "
            "`hiera-video export` takes it"
        )
    if checkpoint.config:
        return create_model(checkpoint=checkpoint), {
            key: value
            for key, value in checkpoint.config.items()
            if key not in ("format", "architecture", "num_classes", "num_frames", "autoencoder")
        }
    stated = checkpoint.foreign_config
    if checkpoint.layout == "transformers" and stated:
        name, arguments = "hiera_base_224", architecture_of(stated)
        if checkpoint.renamed:  # an autoencoder, which pools once less
            arguments["q_pool"] = len(arguments["stages"]) - 1
    else:
        name, arguments = told_variant(checkpoint)
    model = create_model(
        name, checkpoint=checkpoint, num_classes=checkpoint.num_classes or 0, **arguments
    )
    mean, std = input_statistics(model.architecture)
    by_id = stated.get("id2label", {})
    names = stated.get("label_names") or [by_id[key] for key in sorted(by_id, key=int)]
    own = stated.get("pretrained_cfg", {})
    return model, {
        "class_names": names if len(names) == model.num_classes else [],
        "multi_label": stated.get("problem_type") == "multi_label_classification",
        "mean": own.get("mean", mean),
        "std": own.get("std", std),
    }


def told_variant(checkpoint: Checkpoint) -> tuple[str, dict[str, int]]:
    """The variant, and number of frames and image size, that the shapes of a checkpoint tell."""
    state, told = checkpoint.state, told_by_shapes(checkpoint.state)
    found = [
        name
        for name, arguments in VARIANTS.items()
        if told and all(arguments[key] == value for key, value in told.items())
    ]
    spatial = state.get("pos_embed_spatial", state.get("pos_embed"))
    if not found or spatial is None:
        raise ValueError(
            f"{checkpoint.source} is of no variant ({', '.join(VARIANTS)}), and does not state its "
            f"architecture: its shapes tell {told or 'none'}"
        )
    (name,) = found
    _, step, _ = VARIANTS[name]["patch_stride"]
    side = math.isqrt(spatial.shape[1])
    if side**2 != spatial.shape[1]:
        raise ValueError(
            f"{checkpoint.source} has a position embedding of {spatial.shape[1]} tokens, which is "
            "not a square: its size cannot be told"
        )
    times = state["pos_embed_temporal"].shape[1] if "pos_embed_temporal" in state else 1
    num_frames = times * VARIANTS[name]["patch_stride"][0]
    return name, {"num_frames": num_frames, "image_size": side * step}


def convert(model: Hiera, meta: Mapping[str, Any], to: Layout, output: Path) -> int:
    """Writes `output` in another layout, reads it again, and compares all tensors.

    A file that torch.load reads for "official"; else a folder with model.safetensors and
    config.json. What was there is left alone.

    Returns:
        How many tensors came back the same, which is all of them.

    Raises:
        ValueError: the layout has no such models.
        FileExistsError: `output` exists.
        RuntimeError: the way back does not end where it began; nothing is left behind.
    """
    check_writable(to, model.architecture)
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name")
    if lost := [key for key in meta if meta[key] and key not in CARRIED.get(to, meta)]:
        logger.info("the %s layout has no place for %s", to, ", ".join(lost))
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as part:
        if to == "hiera_video":
            given = {key: value for key, value in meta.items() if key != "name"}
            save_weights(part, model, meta=given)
        else:
            renamed = from_official(state, to, model.architecture["stages"])
            if to == "official":
                torch.save({"model_state": renamed}, part)
            else:
                part.mkdir()
                tensors = {key: value.contiguous() for key, value in renamed.items()}
                save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
                config = config_of(to, model.architecture, model.num_classes, meta)
                write_json(part / "config.json", config)
        again = read_checkpoint(part).state
        same = [key for key in state if key in again and torch.equal(again[key], state[key])]
        if again.keys() != state.keys() or len(same) != len(state):
            wrong = sorted((again.keys() ^ state.keys()) | (state.keys() - set(same)))
            raise RuntimeError(f"{output} does not read as it was written: {', '.join(wrong)}")
    return len(same)
