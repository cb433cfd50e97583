"""`hiera-video visualize mae FILE...`: pictures of the predictions of a masked autoencoder."""

import math
from pathlib import Path

import numpy as np
import torch

from hiera_video.analysis.sheets import write_png
from hiera_video.analysis.visualize import contact_sheet, describe, reconstruct, write_movie
from hiera_video.errors import OTHER_WEIGHTS, ModelError, configured
from hiera_video.evaluation.prediction import model_transform
from hiera_video.files import replacing_all
from hiera_video.models.masking import UnitMasking
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.results import exit_code, output_files, print_planned, print_result
from hiera_video.settings.evaluation import VisualizeSettings
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError


def run(config: VisualizeSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes a contact sheet and a movie of each file's centre clip; returns the exit code."""
    outputs = output_files(
        config, config.inputs, {end: f"{config.mode}.{end}" for end in ("png", "mp4")}
    )
    model, card = load_model(
        config.checkpoint,
        kind="autoencoder",
        weights_key=config.weights_key,
        decoder_heads=config.decoder_heads,
    )
    if model.target != "pixels":
        raise ModelError(
            f"the model predicts target={model.target!r}: only target='pixels' can be shown as a "
            "picture"
        )
    with configured():
        masking = UnitMasking.of(model.encoder, config.masking)
    sampler = ClipSampler.of(config.clips, model.encoder.input_size[0])
    if model.encoder.tokens_shape[0] == 1:  # a picture does not move
        outputs = [{"png": files["png"]} for files in outputs]
    if dry_run:
        print_planned((file for files in outputs for file in files.values()), as_json=as_json)
        return 0

    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    failed = 0
    with process_group(config.device) as process:
        model = model.to(process.device)
        transform = model_transform(card)  # as in evaluation: the centre crop
        normalize = Normalize(card.mean, card.std).to(process.device)
        for index, (path, files) in enumerate(zip(config.inputs, outputs, strict=True)):
            try:
                with opener(config.data)(path) as video:
                    frames, times_sec = sampler.middle_clip(video)
            except VideoError as error:
                failed += 1
                record = {"path": path, "cause": error.cause, "error": str(error)}
                print_result(record, [str(error)], as_json=as_json)
                continue
            visible = masking(np.random.default_rng([config.seed, index]))
            reconstruction = reconstruct(
                model,
                transform(frames).to(process.device),
                torch.from_numpy(visible)[None],
                normalize=normalize,
                mode=config.mode,
            )
            loss = reconstruction.loss
            if not math.isfinite(loss):
                failed += 1
                message = f"{path}: its reconstruction loss is not finite; use {OTHER_WEIGHTS}"
                record = {"path": path, "cause": "not_finite", "error": message}
                print_result(record, [message], as_json=as_json)
                continue
            shown_sec = times_sec[:: model.token_pixels[0]]
            caption = describe(reconstruction, masking)
            with replacing_all(files) as parts:
                write_png(parts["png"], contact_sheet(reconstruction, shown_sec, caption))
                if "mp4" in parts:
                    write_movie(parts["mp4"], reconstruction, shown_sec, caption)
            written = {kind: str(file) for kind, file in files.items()}
            print_result(
                {"path": path, **written, "loss": loss},
                [
                    f"{path}: reconstruction loss {loss:.4f}",
                    *(f"  {file}" for file in written.values()),
                ],
                as_json=as_json,
            )
    return exit_code(done=len(config.inputs) - failed, failed=failed)
