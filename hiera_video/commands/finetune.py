"""`hiera-video finetune`: train a classifier on videos or images, from weights or from scratch.

Longer than other commands, because a run is read from top to bottom here: data, model, what of it
learns, views to evaluate, batches, loss.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from hiera_video.config import FinetuneConfig, check_same_config, configured, to_yaml, trained_with
from hiera_video.data.datasets import EvaluationViews, TrainingClips
from hiera_video.data.order import balanced_weights, default_num_workers, training_loader
from hiera_video.data.randaugment import RandAugment
from hiera_video.data.transforms import FinetuneTransform
from hiera_video.data.videos.records import VideoList, read_splits
from hiera_video.evaluation.accuracy import summarize
from hiera_video.evaluation.scoring import validate
from hiera_video.models.hiera import Hiera
from hiera_video.models.registry import create_model, input_statistics
from hiera_video.runtime.distributed import Process, first_process_first, process_group
from hiera_video.runtime.logging import setup_logging
from hiera_video.training.classification import ClassificationLoss, balanced_class_weights, freeze
from hiera_video.training.loop import StopSignal
from hiera_video.training.run import Schedule, open_run, optimizer_of, train_to_the_end
from hiera_video.training.run_folder import RunReport
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video

logger = logging.getLogger(__name__)


def run(config: FinetuneConfig, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Trains to the end, or until stopped; returns the exit code."""
    with ExitStack() as stack:
        process = stack.enter_context(process_group(config.device))
        stop = stack.enter_context(StopSignal())
        setup_logging(quiet=not process.is_main)
        settings = config.train
        data = config.data
        assert data.train is not None  # config.check() saw to it
        train, val = read_splits(
            data.train,
            data.val,
            root=data.root,
            class_names=data.class_names,
            multi_label=data.multi_label,
        )
        labels = [record.labels for record in train.records]
        num_classes = len(train.class_names)
        folder = Path(config.run_dir)
        summary = {"train": train.source, "videos": len(train.records), "classes": num_classes}
        latest = open_run(
            folder,
            process,
            check_config=partial(check_same_config, config=config),
            config_yaml=to_yaml(config),
            data={**summary, "fingerprint": train.fingerprint},
            dry_run=dry_run,
        )

        # The model, and what of it learns.
        create = partial(
            create_model,
            config.model.name,
            num_classes=num_classes,
            num_frames=config.model.num_frames,
            image_size=config.model.image_size,
            drop_path=config.model.drop_path,
            head_dropout=config.model.head_dropout,
            pos_embed_resize=config.model.pos_embed_resize,
            **config.model.overrides,
        )
        with configured(), torch.device("meta"):
            create()  # do the settings fit, whatever the weights?
        torch.manual_seed(settings.seed)
        init = None if latest else config.model.init  # which may be gone by now
        with first_process_first(process):
            model = create(checkpoint=init).to(process.device)
        known = init and trained_with(init, ["class_names"]).get("class_names")
        if known and known != list(train.class_names):
            logger.info("%s knows other classes: the classifier starts afresh", init)
            model.reset_classifier(num_classes)
        mean, std = input_statistics(model.architecture)
        model.set_grad_checkpointing(config.model.grad_checkpointing)
        freeze(model, train_only=settings.train_only, freeze_stages=settings.freeze_stages)
        optimizer = optimizer_of(model, config.optim)
        average = None
        if settings.ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))

        schedule = Schedule.plan(len(train.records), settings, config.optim)
        for line in (
            *describe(config, model, train, val),
            schedule.describe(process, config.optim),
        ):
            print(line) if dry_run else logger.info(line)
        weights = balanced_weights(labels, num_classes) if config.data.balanced else None
        schedule.order(process, weights=weights)  # says if the batch does not divide
        if dry_run:
            return 0

        sampler = ClipSampler(num_frames=model.input_size[0], **asdict(config.clips))
        size = model.input_size[1:]
        views = None
        if val is not None:
            views = EvaluationViews(
                val.records,
                sampler,
                crop_size=size,
                num_clips=1,
                num_crops=1,
                open_video=opener(config),
            )

        def batches_from(step: int) -> DataLoader[Any]:
            return training_loader(
                training_clips(config, sampler, train, size, mean, std),
                schedule.order(process, step, weights),
                clip_shape=(*model.input_size, 3),
                num_workers=num_workers(config, process),
                pin_memory=process.device.type == "cuda",
            )

        loss = ClassificationLoss(
            num_classes=num_classes,
            mean=mean,
            std=std,
            mixup=config.augment.mixup,
            cutmix=config.augment.cutmix,
            label_smoothing=config.augment.label_smoothing,
            multi_label=config.data.multi_label,
            class_weights=balanced_class_weights(labels, num_classes)
            if settings.class_weights == "balanced"
            else None,
            device=process.device,
        )
        return train_to_the_end(
            model,
            loss,
            optimizer,
            batches_from,
            folder=folder,
            latest=latest,
            process=process,
            stop=stop,
            schedule=schedule,
            clip_grad=config.optim.clip_grad,
            max_failed_frac=config.data.max_failed_frac,
            meta=exported(config, train),
            average=average,
            evaluate=partial(evaluate, config, process, views, (mean, std)) if views else None,
            evaluate_every=settings.evaluate_every,
            as_json=as_json,
        )


def training_clips(
    config: FinetuneConfig,
    sampler: ClipSampler,
    train: VideoList,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> TrainingClips:
    """Random, augmented clips of the training videos."""
    augment = config.augment
    rand_augment = None
    if augment.rand_augment_magnitude is not None:
        rand_augment = RandAugment(
            mean,
            magnitude=augment.rand_augment_magnitude,
            magnitude_std=augment.rand_augment_std,
        )
    transform = FinetuneTransform(
        size,
        mean=mean,
        std=std,
        crop_area=augment.crop_area,
        crop_aspect=augment.crop_aspect,
        flip=augment.flip,
        rand_augment=rand_augment,
        erasing_prob=augment.erasing_prob,
    )
    return TrainingClips(
        train.records,
        sampler,
        transform,
        num_repeats=config.train.num_repeats,
        seed=config.train.seed,
        open_video=opener(config),
    )


def evaluate(
    config: FinetuneConfig,
    process: Process,
    views: EvaluationViews,
    statistics: tuple[Sequence[float], Sequence[float]],
    model: torch.nn.Module,
    report: RunReport,
    step: int,
) -> None:
    """One centre view of each validation video; every process takes its share."""
    multi_label = config.data.multi_label
    videos, failures = validate(
        model,
        views,
        process,
        mean=statistics[0],
        std=statistics[1],
        batch_size=config.views.batch_size,
        num_workers=num_workers(config, process),
        bf16=config.train.precision == "bf16",
        multi_label=multi_label,
    )
    model.train()
    if not process.is_main:
        return
    report.failures(failures, step)
    expected = [record.labels for record in views.records]
    summary = summarize(videos, expected=expected, multi_label=multi_label)
    accuracy = summary.get("video", {})
    report.metrics(step, "val", {**accuracy, "decoded": summary["decoded"]})
    told = "  ".join(f"{name} {100 * value:.2f}" for name, value in accuracy.items())
    counts = f"{summary['decoded']} of {summary['expected']} videos"
    logger.info("step %d  val (1 view)  %s  %s", step, told, counts)


def exported(config: FinetuneConfig, train: VideoList) -> dict[str, Any]:
    """What evaluation and prediction need to know beside the weights."""
    return {
        "class_names": list(train.class_names),
        "multi_label": config.data.multi_label,
        "clips": asdict(config.clips),
        "views": asdict(config.views),
    }


def describe(
    config: FinetuneConfig, model: Hiera, train: VideoList, val: VideoList | None
) -> list[str]:
    """What is about to be trained, in a few lines."""
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frames = f"{model.input_size[0]}x{config.clips.sampling_rate}"
    return [
        f"{len(train.records)} training videos of {len(train.class_names)} classes from "
        f"{train.source}"
        + (f", {len(val.records)} validation videos" if val else ", no validation"),
        f"{config.model.name}, input {model.input_size}, {learning / 1e6:.2f} M parameters learn; "
        f"{config.clips.sampling} sampling {frames}, "
        f"flips {'on' if config.augment.flip else 'off'}",
    ]


def opener(config: FinetuneConfig) -> Any:
    return partial(open_video, backend=config.data.backend, deadline_sec=config.data.deadline_sec)


def num_workers(config: FinetuneConfig, process: Process) -> int:
    if config.data.num_workers is not None:
        return config.data.num_workers
    return default_num_workers(process.local_world_size)
