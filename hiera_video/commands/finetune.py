"""`hiera-video finetune`: train a classifier on videos or images, from weights or from scratch.

Longer than other commands, because a run is read from top to bottom here: data, model, length,
resuming, loop, what is left behind.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hiera_video.config import FinetuneConfig, check_same_config, to_yaml, trained_with
from hiera_video.data.annotations import VideoList, read_splits
from hiera_video.data.datasets import ClipSampler, EvaluationViews, TrainingClips
from hiera_video.data.loaders import (
    TrainingOrder,
    balanced_weights,
    default_num_workers,
    steps_per_epoch,
    training_loader,
)
from hiera_video.data.randaugment import RandAugment
from hiera_video.data.transforms import FinetuneTransform
from hiera_video.evaluation.classification import summarize
from hiera_video.models.hiera import Hiera
from hiera_video.models.registry import create_model, input_statistics
from hiera_video.models.weights import save_weights
from hiera_video.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from hiera_video.training.classification import ClassificationLoss, balanced_class_weights, freeze
from hiera_video.training.distributed import (
    Process,
    barrier,
    from_main,
    process_group,
    sum_over_processes,
)
from hiera_video.training.loop import StopSignal, train_steps
from hiera_video.training.optim import build_optimizer, learning_rate, parameter_groups
from hiera_video.training.reporting import (
    ConsoleLine,
    FailureLimit,
    RunReport,
    setup_logging,
    start_run,
)
from hiera_video.training.validation import validate
from hiera_video.video.reader import open_video

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
        checkpoints = folder / "checkpoints"
        latest = from_main(latest_checkpoint(checkpoints))
        if latest or (folder / "weights").exists():
            check_same_config(folder / "config.yaml", config)  # a failed start leaves no run
        if (folder / "weights").exists() and not latest:
            raise ValueError(
                f"{folder} holds a finished run without checkpoints: choose another run_dir"
            )
        if not dry_run:
            summary = {"train": train.source, "videos": len(train.records), "classes": num_classes}
            summary["fingerprint"] = train.fingerprint
            start_run(folder, process, to_yaml(config), summary, resumes=latest is not None)

        # The model, and what of it learns.
        torch.manual_seed(settings.seed)
        if not process.is_first_here:
            barrier()  # the first process of a machine fetches published weights
        model = create_model(
            config.model.name,
            checkpoint=config.model.init,
            num_classes=num_classes,
            num_frames=config.model.num_frames,
            image_size=config.model.image_size,
            drop_path=config.model.drop_path,
            head_dropout=config.model.head_dropout,
            pos_embed_resize=config.model.pos_embed_resize,
            **config.model.overrides,
        ).to(process.device)
        if process.is_first_here:
            barrier()
        known = config.model.init and trained_with(config.model.init, ["class_names"]).get(
            "class_names"
        )
        if known and known != list(train.class_names):
            logger.info("%s knows other classes: the classifier starts afresh", config.model.init)
            model.reset_classifier(num_classes)
        mean, std = input_statistics(model.architecture)
        model.set_grad_checkpointing(config.model.grad_checkpointing)
        freeze(model, train_only=settings.train_only, freeze_stages=settings.freeze_stages)
        optimizer = build_optimizer(
            config.optim.optimizer,
            parameter_groups(
                model,
                weight_decay=config.optim.weight_decay,
                layer_decay=config.optim.layer_decay,
                layer_ids=model.layer_ids(),
                no_weight_decay=model.no_weight_decay(),
            ),
            lr=config.optim.lr,
            betas=config.optim.betas,
        )
        average = None
        if settings.ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))

        # How long: effective epochs count the repeats of a video.
        pass_steps = steps_per_epoch(len(train.records), settings.global_batch_size)
        end_step = math.ceil(settings.epochs / settings.num_repeats * pass_steps)
        lr_at = partial(
            learning_rate,
            total_steps=end_step,
            warmup_steps=round(settings.warmup_epochs / settings.num_repeats * pass_steps),
            peak=config.optim.lr,
            first=config.optim.warmup_lr,
            last=config.optim.final_lr,
        )
        for line in describe(config, process, model, train, val, end_step):
            print(line) if dry_run else logger.info(line)
        order = partial(
            TrainingOrder,
            len(train.records),
            global_batch_size=settings.global_batch_size,
            accumulation_steps=settings.accumulation_steps,
            end_step=end_step,
            seed=settings.seed,
            rank=process.rank,
            world_size=process.world_size,
            weights=balanced_weights(labels, num_classes) if config.data.balanced else None,
        )
        if dry_run:
            order(start_step=0)  # says if the batch does not divide
            return 0

        # Go on where an earlier start of this run stopped.
        start_step = load_checkpoint(latest, model, optimizer, average) if latest else 0
        if latest:
            logger.info("resumed from %s", latest)

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
        loader = training_loader(
            training_clips(config, sampler, train, size, mean, std),
            order(start_step=start_step),
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
        if settings.compile:
            model.compile()
        wrapped = DistributedDataParallel(model) if process.world_size > 1 else model
        report = stack.enter_context(RunReport(folder, process, start_step))
        console = ConsoleLine(end_step, process.device)
        limit = FailureLimit(config.data.max_failed_frac)
        checkpoint_steps = max(1, round(settings.checkpoint_every * pass_steps))
        evaluate_steps = settings.evaluate_every and max(
            1, round(settings.evaluate_every * pass_steps)
        )
        nonfinite = 0

        def evaluation_due(step: int) -> bool:
            return step == end_step or bool(evaluate_steps and step % evaluate_steps == 0)

        # A run that was killed between saving and evaluating makes up for it.
        if views and start_step and evaluation_due(start_step):
            missing = torch.tensor(float(process.is_main and not report.has(start_step, "val")))
            if sum_over_processes(missing):
                evaluate(config, process, average or model, views, (mean, std), report, start_step)
        for done in train_steps(
            wrapped,
            loss,
            optimizer,
            iter(loader),
            start_step=start_step,
            end_step=end_step,
            accumulation_steps=settings.accumulation_steps,
            lr_at=lr_at,
            clip_grad=config.optim.clip_grad,
            bf16=settings.precision == "bf16",
            seed=settings.seed,
            process=process,
            average=average,
            stop_requested=stop.requested,
        ):
            step, last = done.step, done.step == end_step
            report.step(done)
            console.add(done)
            limit.add(done, settings.num_repeats)
            nonfinite = nonfinite + 1 if done.skipped and done.num_clips else 0
            if nonfinite >= settings.max_nonfinite_steps:
                raise RuntimeError(
                    f"{nonfinite} steps in a row had a non-finite gradient: lower optim.lr, or "
                    "train with train.precision=fp32"
                )
            if last or step % settings.log_every == 0 or step == start_step + 1:
                logger.info(console.take(done))
            if last or done.stop or step % checkpoint_steps == 0:
                save_checkpoint(checkpoints, step, model, optimizer, average)
                if process.is_main:
                    prune_checkpoints(checkpoints, settings.keep_checkpoints)
            if done.stop and not last:
                logger.info("stopped by SIGTERM; saved step %d of %d", step, end_step)
                return 143
            if views and evaluation_due(step):
                evaluate(config, process, average or model, views, (mean, std), report, step)

        trained: Hiera = average.module if average is not None else model  # type: ignore[assignment]
        if process.is_main:
            save_weights(folder / "weights", trained, meta=exported(config, train))
            logger.info("trained %d steps; weights are in %s", end_step, folder / "weights")
            if as_json:
                print(json.dumps({"steps": end_step, "weights": str(folder / "weights")}))
        # Together: torchrun ends all processes when one has left with another code than 0.
        failed = torch.tensor(float((folder / "failures.jsonl").exists()))
        return 3 if sum_over_processes(failed) else 0


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
    model: torch.nn.Module,
    views: EvaluationViews,
    statistics: tuple[Sequence[float], Sequence[float]],
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
    config: FinetuneConfig,
    process: Process,
    model: Hiera,
    train: VideoList,
    val: VideoList | None,
    end_step: int,
) -> list[str]:
    """What is about to happen, in a few lines."""
    settings, clips = config.train, config.clips
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frames = f"{model.input_size[0]}x{clips.sampling_rate}"
    micro = settings.global_batch_size // (process.world_size * settings.accumulation_steps)
    return [
        f"{len(train.records)} training videos of {len(train.class_names)} classes from "
        f"{train.source}"
        + (f", {len(val.records)} validation videos" if val else ", no validation"),
        f"{config.model.name}, input {model.input_size}, {learning / 1e6:.2f} M parameters learn; "
        f"{clips.sampling} sampling {frames}, flips {'on' if config.augment.flip else 'off'}",
        f"{end_step} steps of {settings.global_batch_size} videos x {settings.num_repeats} clips = "
        f"{settings.global_batch_size * settings.num_repeats} clips: {process.world_size} "
        f"processes x {settings.accumulation_steps} parts x {micro} videos; "
        f"peak lr {config.optim.lr:g} ({config.optim.optimizer}, {settings.precision}, "
        f"{process.device})",
    ]


def opener(config: FinetuneConfig) -> Any:
    return partial(open_video, backend=config.data.backend, deadline_sec=config.data.deadline_sec)


def num_workers(config: FinetuneConfig, process: Process) -> int:
    if config.data.num_workers is not None:
        return config.data.num_workers
    return default_num_workers(process.local_world_size)
