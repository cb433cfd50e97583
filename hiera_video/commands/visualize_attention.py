"""`hiera-video visualize attention FILE...`: where a classifier looks in a clip."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiera_video.analysis.attention import (
    LIMITS,
    default_stage,
    gradient_map,
    rollout_map,
    rollout_start,
)
from hiera_video.analysis.attention_pictures import enlarged, overlaid, overlay_pictures, panels
from hiera_video.analysis.sheets import TEXT_COLOUR, write_pictures, write_png
from hiera_video.data.batches import Failure
from hiera_video.data.checks import warn_of_pictures
from hiera_video.data.transforms import Crops
from hiera_video.data.videos.records import VideoRecord
from hiera_video.errors import ConfigError, configured, counted, did_you_mean, listing, printable
from hiera_video.evaluation.views import Scorer
from hiera_video.files import replacing_all
from hiera_video.models.card import ModelCard
from hiera_video.models.hiera import Hiera
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.results import exit_code, output_files, print_planned, print_result
from hiera_video.settings.evaluation import AttentionSettings
from hiera_video.settings.video import Views
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import crop_offsets, scaled_shape

ENDS = {"mp4": ".mp4", "png": ".png", "panels": "_panels.png", "npz": ".npz"}
COLOURS = "Blue to red: from the lowest value of the clip to its highest."


def run(config: AttentionSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes the map of each file and pictures of it; returns the exit code."""
    ends = {kind: f"{config.method}{end}" for kind, end in ENDS.items()}
    outputs = output_files(config, config.inputs, ends)
    model, card = load_model(config.checkpoint, kind="classifier", weights_key=config.weights_key)
    stage, class_id = stage_of(config, model), class_of(config, card)
    num_frames, height, width = model.input_size
    warn_of_pictures(config.inputs, num_frames, config.checkpoint)
    sampler = ClipSampler.of(config.clips, num_frames)
    views = card.views or Views(num_crops=1)
    crops = Crops((height, width), views.num_crops, views.short_side)
    unused = "mp4" if num_frames == 1 else "png"  # a picture does not move
    outputs = [{kind: files[kind] for kind in files if kind != unused} for files in outputs]
    if dry_run:
        print_planned((file for files in outputs for file in files.values()), as_json=as_json)
        return 0

    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    failed = 0
    with process_group(config.device) as process:
        scorer = Scorer.of(model, card, process.device, 1)
        for path, files in zip(config.inputs, outputs, strict=True):
            try:
                with opener(config.data)(path) as video:
                    frames, times_sec = sampler.middle_clip(video)
            except VideoError as error:
                failed += 1
                said = {"path": path, "cause": error.cause, "error": str(error)}
                print_result(said, [str(error)], as_json=as_json)
                continue
            seen = crops(frames)[crops.num_crops // 2]
            clip = torch.from_numpy(seen)[None].to(process.device)
            scores, inputs = scorer(clip)[0], scorer.normalize(clip)
            predicted = int(scores.argmax())
            shown = predicted if class_id is None else class_id
            if stage is None:
                values = rollout_map(model, inputs)[0].cpu()
            else:
                values = gradient_map(model, inputs, torch.tensor([shown]), stage=stage)[0].cpu()
            if not (scores.isfinite().all() and values.isfinite().all()):
                failed += 1
                failure = Failure.not_finite(VideoRecord(path, (), path), "its map is", "fp32")
                said = {"path": path, "cause": failure.cause, "error": failure.message}
                print_result(said, [failure.message], as_json=as_json)
                continue

            classes = {
                key: {"id": c, "name": card.classes[c], "probability": round(float(scores[c]), 6)}
                for key, c in (("class", shown), ("prediction", predicted))
            }
            record: dict[str, Any] = {
                "path": path,
                "method": config.method,
                "stage": None if stage is None else f"stage{stage + 1}",
                "class": None if stage is None else classes["class"],
                "prediction": classes["prediction"],
                "map_shape": list(values.shape),
                "limits": LIMITS[config.method],
            }
            summary = describe(record, is_zero=not values.any())
            overlays = overlaid(seen, enlarged(values, model.input_size))
            notes = [(text, TEXT_COLOUR) for text in (summary, COLOURS, record["limits"])]
            label = config.method if stage is None else f"{config.method}, {record['stage']}"
            pictures = overlay_pictures(seen, overlays, times_sec, label, notes)
            with replacing_all(files) as parts:
                if "mp4" in parts:
                    write_pictures(parts["mp4"], pictures, times_sec)
                else:
                    write_png(parts["png"], next(pictures))
                write_png(parts["panels"], panels(seen, overlays, times_sec, label, notes))
                with open(parts["npz"], "wb") as file:
                    np.savez_compressed(
                        file,
                        map=values.numpy(),
                        frame_times_sec=times_sec,
                        crop_xyxy_norm=crop_of(crops, frames.shape[1], frames.shape[2]),
                        method=config.method,
                        stage=record["stage"] or "",
                        class_id=-1 if stage is None else shown,
                        class_name="" if stage is None else card.classes[shown],
                        limits=record["limits"],
                    )
            written = {kind: str(file) for kind, file in files.items()}
            lines = [f"{path}: {summary}", record["limits"], *written.values()]
            print_result({**record, **written}, "\n  ".join(lines).split("\n"), as_json=as_json)
    return exit_code(done=len(config.inputs) - failed, failed=failed)


def stage_of(config: AttentionSettings, model: Hiera) -> int | None:
    """The stage that the gradient is taken at, from 0; None for rollout, which has none."""
    if config.method == "rollout":
        with configured():
            rollout_start(model)
        return None
    if config.stage is None:
        return default_stage(model)
    stage, stages = int(config.stage.removeprefix("stage")) - 1, len(model.stage_ends)
    if stage >= stages:
        raise ConfigError(f"stage is {config.stage}: the model has {counted(stages, 'stage')}")
    return stage


def class_of(config: AttentionSettings, card: ModelCard) -> int | None:
    """The id of the class that was asked for; names come before numbers."""
    name, classes = config.class_name, card.classes
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    near = did_you_mean(name, classes) or f"; there are {listing(classes)}"
    raise ConfigError(
        f"class_name is {name!r}: allowed is the name of one of the {len(classes)} classes of the "
        f"checkpoint, or its id, 0 to {len(classes) - 1}{near}"
    )


def describe(record: dict[str, Any], *, is_zero: bool) -> str:
    """What the map of a file is, in a sentence or two."""

    def scored(of: dict[str, Any]) -> str:
        return f"{printable(of['name'])} ({100 * of['probability']:.1f} %)"

    size = " x ".join(map(str, record["map_shape"]))
    tokens = f"{size} tokens along time, height and width"
    if record["class"] is None:
        return f"attention rollout, {tokens}. Predicted: {scored(record['prediction'])}."
    text = f"{scored(record['class'])}: gradient at {record['stage']}, {tokens}."
    if record["class"] != record["prediction"]:
        text += f" Predicted: {scored(record['prediction'])}."
    return text + " Nothing speaks for it there: the map is 0." * is_zero


def crop_of(crops: Crops, height: int, width: int) -> np.ndarray:
    """The part of frames of a size that the middle crop shows, as fractions: x1 y1 x2 y2."""
    rows, columns = scaled_shape(height, width, crops.short_side)
    top, left = crop_offsets(rows, columns, crops.size, crops.num_crops)[crops.num_crops // 2]
    corners = np.array([left, top, left + crops.size[1], top + crops.size[0]])
    return corners / (columns, rows, columns, rows)
