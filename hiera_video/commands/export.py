"""`hiera-video export`: torch.export and ONNX files of a model, each compared with it."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hiera_video.errors import ConfigError, UserError
from hiera_video.files import replacing, write_json
from hiera_video.models.card import Kind, ModelCard
from hiera_video.models.checkpoint import read_checkpoint, with_card
from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.pretrained import load_model
from hiera_video.models.programs import Format, Part, check_installed, export, parts_of
from hiera_video.models.sources import find
from hiera_video.runtime.dry_run import in_the_way
from hiera_video.runtime.results import print_json, print_lines, print_planned
from hiera_video.settings.tools import ExportSettings

logger = logging.getLogger(__name__)
KEPT = ("class_names", "label_map", "multi_label", "mean", "std", "clips")  # of a folder's config


def run(config: ExportSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes the folder if all files agree with the model; returns the exit code."""
    formats: list[Format] = ["pt2", "onnx"] if config.format == "both" else [config.format]
    try:
        for format in formats:
            check_installed(format)
    except ImportError as error:
        raise ConfigError(f"format is {config.format}: {error}, or format=pt2") from None
    folder = Path(config.output_dir)
    is_free = not folder.exists() or (config.overwrite and (folder / "export.json").is_file())
    with in_the_way(config, "output_dir"):
        if not is_free:
            raise UserError(
                f"output_dir is {folder}, which exists: choose another"
                + (", it is not of an earlier export" if config.overwrite else " or overwrite=true")
            )
    _, stated = find(config.checkpoint)
    needed = exported_kind(stated) if isinstance(stated, ModelCard) else None
    weights = with_card(read_checkpoint(config.checkpoint, needed, config.weights_key))
    assert weights.card is not None
    model, card = load_model(weights, kind=exported_kind(weights.card))
    assert isinstance(model, Hiera | ActionDetector)
    parts = parts_of(model)
    if dry_run:
        print_planned(
            (f"{folder / part.name}.{end}" for part in parts for end in formats), as_json=as_json
        )
        return 0

    with replacing(folder) as unfinished:
        unfinished.mkdir(parents=True)
        compared = []
        for part in parts:
            for end in formats:
                logger.info("exporting %s.%s", part.name, end)
                compared.append(export(part, end, unfinished / f"{part.name}.{end}"))
        if wrong := [c for c in compared if not c.agrees]:
            raise UserError(
                f"{', '.join(c.path.name for c in wrong)}: the outputs differ from the model's by "
                f"more than 1e-4, by up to {max(c.difference for c in wrong):.1e}; nothing was "
                f"written to {folder}"
            )
        write_json(unfinished / "export.json", description(model, parts, card))
    if as_json:
        print_json([{**asdict(c), "path": str(folder / c.path.name)} for c in compared])
    else:
        print_lines(map(str, compared))
    return 0


def exported_kind(card: ModelCard) -> Kind:
    """The kind of the model itself; of one that cannot be exported, one that refuses it."""
    return card.kind if card.kind in ("classifier", "backbone", "detector") else "classifier"


def description(
    model: Hiera | ActionDetector, parts: list[Part], card: ModelCard
) -> dict[str, Any]:
    """Metadata that is needed to run the exported files."""
    saved = card.to_json()
    encoder = model if isinstance(model, Hiera) else model.encoder
    return {
        "input": {
            "layout": "batch, channel (RGB), frame, row, column",
            "shape": [encoder.in_chans, *encoder.input_size],
            "values": "(pixel / 255 - mean) / std",
        },
        "parts": {
            part.name: {"inputs": list(part.inputs), "output": part.output} for part in parts
        },
        **{key: saved[key] for key in KEPT if key in saved},
    }
