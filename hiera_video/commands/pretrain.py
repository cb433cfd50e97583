"""`hiera-video pretrain`: masked-autoencoder pretraining on videos or images, labels unused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from hiera_video.config import (
    PretrainConfig,
    check_same_config,
    configured,
    to_yaml,
    trained_with,
)
from hiera_video.data.datasets import TrainingClips
from hiera_video.data.order import default_num_workers, training_loader
from hiera_video.data.transforms import PretrainTransform
from hiera_video.data.videos.records import read_video_list
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.masking import UnitMasking
from hiera_video.models.registry import create_autoencoder, input_statistics, paper_mask_ratio
from hiera_video.runtime.distributed import first_process_first, process_group
from hiera_video.runtime.logging import setup_logging
from hiera_video.training.loop import StopSignal
from hiera_video.training.reconstruction import ReconstructionLoss
from hiera_video.training.run import Schedule, open_run, optimizer_of, train_to_the_end
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video

logger = logging.getLogger(__name__)


def run(config: PretrainConfig, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Trains to the end, or until stopped; returns the exit code."""
    with ExitStack() as stack:
        process = stack.enter_context(process_group(config.device))
        stop = stack.enter_context(StopSignal())
        setup_logging(quiet=not process.is_main)
        assert config.data.train is not None  # config.check() saw to it
        train = read_video_list(config.data.train, root=config.data.root, labelled=False)
        folder = Path(config.run_dir)
        latest = open_run(
            folder,
            process,
            check_config=partial(check_same_config, config=config),
            config_yaml=to_yaml(config),
            data={
                "train": train.source,
                "videos": len(train.records),
                "fingerprint": train.fingerprint,
            },
            dry_run=dry_run,
        )

        # The model, and what of a clip it sees.
        create = model_builder(config, latest)
        with configured(), torch.device("meta"):
            create(decoder_heads=config.model.decoder_heads or 1)  # a folder may state them
        torch.manual_seed(config.train.seed)
        with first_process_first(process):
            init = None if latest else config.model.init  # which may be gone by now
            model = create(checkpoint=init).to(process.device)
        model.set_grad_checkpointing(config.model.grad_checkpointing)
        encoder = model.encoder
        masking = masking_of(config, model)
        mean, std = input_statistics(encoder.architecture)

        schedule = Schedule.plan(len(train.records), config.train, config.optim)
        for line in (
            f"{len(train.records)} training videos from {train.source}",
            describe(config, model, masking),
            schedule.describe(process, config.optim),
        ):
            print(line) if dry_run else logger.info(line)
        schedule.order(process)  # says if the batch does not divide
        if dry_run:
            return 0

        dataset = TrainingClips(
            train.records,
            ClipSampler(num_frames=encoder.input_size[0], **asdict(config.clips)),
            PretrainTransform(
                encoder.input_size[1:],
                crop_area=config.augment.crop_area,
                crop_aspect=config.augment.crop_aspect,
                flip=config.augment.flip,
            ),
            num_repeats=config.train.num_repeats,
            seed=config.train.seed,
            masking=masking,
            open_video=partial(
                open_video, backend=config.data.backend, deadline_sec=config.data.deadline_sec
            ),
        )
        workers = config.data.num_workers

        def batches_from(step: int) -> DataLoader[Any]:
            return training_loader(
                dataset,
                schedule.order(process, step),
                clip_shape=(*encoder.input_size, 3),
                num_workers=default_num_workers(process.local_world_size)
                if workers is None
                else workers,
                pin_memory=process.device.type == "cuda",
            )

        return train_to_the_end(
            model,
            ReconstructionLoss(model, masking, mean=mean, std=std, device=process.device),
            optimizer_of(model, config.optim),
            batches_from,
            folder=folder,
            latest=latest,
            process=process,
            stop=stop,
            schedule=schedule,
            clip_grad=config.optim.clip_grad,
            max_failed_frac=config.data.max_failed_frac,
            meta={
                "masking": {"kind": masking.kind, "mask_ratio": masking.mask_ratio},
                "clips": asdict(config.clips),
            },
            as_json=as_json,
        )


def model_builder(
    config: PretrainConfig, latest: Path | None
) -> Callable[..., MaskedAutoencoderHiera]:
    """Makes the model; a run that goes on needs the heads that its folder states."""
    settings = config.model
    heads = settings.decoder_heads
    if heads is None and latest is not None:
        heads = trained_with(str(latest), ["autoencoder"])["autoencoder"]["decoder_heads"]
    return partial(
        create_autoencoder,
        settings.name,
        num_frames=settings.num_frames,
        image_size=settings.image_size,
        drop_path=settings.drop_path,
        decoder_heads=heads,
        decoder_dim=settings.decoder_dim,
        decoder_depth=settings.decoder_depth,
        target=settings.target,
        pos_embed_resize=settings.pos_embed_resize,
        **settings.overrides,
    )


def masking_of(config: PretrainConfig, model: MaskedAutoencoderHiera) -> UnitMasking:
    """What draws the visible units."""
    mask_ratio = config.masking.mask_ratio
    if mask_ratio is None:
        mask_ratio = paper_mask_ratio(model.encoder.architecture)
    with configured():
        return UnitMasking(model.encoder.units_shape, mask_ratio, config.masking.kind)


def describe(config: PretrainConfig, model: MaskedAutoencoderHiera, masking: UnitMasking) -> str:
    """The model and the masks, in a line."""
    encoder, decoder = model.encoder, model.decoder_architecture
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"{config.model.name}, input {encoder.input_size}, {millions:.2f} M parameters; "
        f"{masking.num_visible} of {masking.num_units} mask units of {encoder.mask_unit} tokens "
        f"are visible ({masking.kind} masking); decoder of {decoder['decoder_depth']} blocks, "
        f"width {decoder['decoder_dim']}, {decoder['decoder_heads']} heads; "
        f"{config.clips.sampling} sampling {encoder.input_size[0]}x{config.clips.sampling_rate}, "
        f"flips {'on' if config.augment.flip else 'off'}"
    )
