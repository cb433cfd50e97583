"""`hiera-video visualize mae FILE...`: pictures of the predictions of a masked autoencoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from hiera_video.analysis.visualize import (
    contact_sheet,
    describe,
    reconstruct,
    require_pixels,
    write_movie,
    write_png,
)
from hiera_video.data.datasets import checked_short_side
from hiera_video.data.transforms import resize_short_side
from hiera_video.errors import configured
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.masking import UnitMasking
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from hiera_video.models.variants import paper_mask_ratio
from hiera_video.runtime.distributed import process_group
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.results import exit_code, numbered_stems, refuse_existing
from hiera_video.settings.evaluation import VisualizeSettings
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener
from hiera_video.video.reader import VideoError
from hiera_video.video.sampling import crop_offsets


def run(config: VisualizeSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes a contact sheet and a movie of each file's centre clip; returns the exit code."""
    setup_logging()
    model, card = load_model(
        config.checkpoint, kind="autoencoder", decoder_heads=config.decoder_heads
    )
    require_pixels(model)
    mask_ratio = config.masking.mask_ratio
    if mask_ratio is None:
        mask_ratio = paper_mask_ratio(model.encoder.architecture)
    with configured():
        masking = UnitMasking(model.encoder.units_shape, mask_ratio, config.masking.kind)
    outputs = output_files(config, moving=model.encoder.tokens_shape[0] > 1)
    refuse_existing((file for files in outputs for file in files), overwrite=config.overwrite)
    if dry_run:
        print("\n".join(str(file) for files in outputs for file in files))
        return 0

    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    failed = 0
    with process_group(config.device) as process:
        model = model.to(process.device)
        normalize = Normalize(card.mean, card.std).to(process.device)
        for index, (path, files) in enumerate(zip(config.inputs, outputs, strict=True)):
            try:
                frames, times_sec = centre_clip(path, config, model)
            except VideoError as error:
                failed += 1
                print_failure(path, error, as_json)
                continue
            clips = torch.from_numpy(frames)[None].to(process.device)
            visible = masking(np.random.default_rng([config.seed, index]))
            reconstruction = reconstruct(
                model,
                normalize(clips),
                torch.from_numpy(visible)[None],
                normalize=normalize,
                mode=config.mode,
            )
            shown_sec = times_sec[:: model.token_pixels[0]].tolist()
            caption = describe(reconstruction, masking)
            write_png(files[0], contact_sheet(reconstruction, shown_sec, caption))
            for movie in files[1:]:
                write_movie(movie, reconstruction, shown_sec, caption)
            print_result(path, files, reconstruction.loss, as_json)
    return exit_code(done=len(config.inputs) - failed, failed=failed)


def output_files(config: VisualizeSettings, *, moving: bool) -> list[list[Path]]:
    """The png of each input, and the mp4 if `moving`."""
    suffixes = ("png", "mp4") if moving else ("png",)
    return [
        [Path(config.output_dir, f"{name}_{config.mode}.{suffix}") for suffix in suffixes]
        for name in numbered_stems(config.inputs)
    ]


def centre_clip(
    path: str, config: VisualizeSettings, model: MaskedAutoencoderHiera
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the view of evaluation with one clip and one crop.

    Returns:
        Frames uint8 [T, H, W, 3], and their presentation times in seconds, float64 [T].

    Raises:
        VideoError: the file cannot be read.
    """
    num_frames, height, width = model.encoder.input_size
    sampler = ClipSampler.of(config.clips, num_frames)
    with opener(config.data)(path) as video:
        (indices,) = sampler.uniform_clips(video, 1)
        frames, times_sec = video.frames(indices), video.frame_times_sec[indices]
    frames = resize_short_side(frames, checked_short_side(None, (height, width), 1))
    ((top, left),) = crop_offsets(frames.shape[1], frames.shape[2], (height, width), 1)
    return frames[:, top : top + height, left : left + width], times_sec


def print_result(path: str, files: list[Path], loss: float, as_json: bool) -> None:
    if as_json:
        written = {file.suffix[1:]: str(file) for file in files}
        finite = loss if math.isfinite(loss) else None  # JSON has no NaN
        print(json.dumps({"path": path, **written, "loss": finite}, ensure_ascii=False), flush=True)
        return
    print(f"{path}: reconstruction loss {loss:.4f}")
    for file in files:
        print(f"  {file}", flush=True)


def print_failure(path: str, error: VideoError, as_json: bool) -> None:
    if as_json:
        record = {"path": path, "cause": error.cause, "error": str(error)}
        print(json.dumps(record, ensure_ascii=False), flush=True)
    else:
        print(error, flush=True)
