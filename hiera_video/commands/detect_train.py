"""`hiera-video detect train`: train an action detector on key frames with boxes.

Longer than other commands, because a run is read from top to bottom here: data, model, batches,
evaluation, loss.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from hiera_video.config import (
    DetectTrainConfig,
    check_same_config,
    configured,
    to_yaml,
    trained_with,
)
from hiera_video.data.boxes.keyframes import (
    KeyframeEvaluation,
    TrainingKeyframeList,
    detections_of,
    read_evaluation,
    read_training,
)
from hiera_video.data.boxes.table import LabelMap, read_label_map
from hiera_video.data.datasets import KeyframeClips, TrainingKeyframes
from hiera_video.data.order import default_num_workers, training_loader
from hiera_video.data.transforms import DetectionTransform
from hiera_video.evaluation.ava import PROTOCOLS, frame_ap
from hiera_video.evaluation.scoring import score_keyframes
from hiera_video.models.detector import ActionDetector
from hiera_video.models.registry import create_detector, input_statistics
from hiera_video.runtime.distributed import Process, first_process_first, process_group
from hiera_video.runtime.logging import setup_logging
from hiera_video.training.detection import DetectionLoss
from hiera_video.training.loop import StopSignal
from hiera_video.training.run import Schedule, open_run, optimizer_of, train_to_the_end
from hiera_video.training.run_folder import RunReport
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import open_video

logger = logging.getLogger(__name__)


def run(config: DetectTrainConfig, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Trains to the end, or until stopped; returns the exit code."""
    with ExitStack() as stack:
        process = stack.enter_context(process_group(config.device))
        stop = stack.enter_context(StopSignal())
        setup_logging(quiet=not process.is_main)
        data, settings = config.data, config.train
        assert data.train is not None  # config.check() saw to it
        assert data.label_map is not None
        label_map = read_label_map(data.label_map)
        train = read_training(
            data.train,
            label_map,
            root=data.root,
            excluded=data.train_excluded,
            proposals=data.train_proposals,
            proposal_score=data.proposal_score,
            proposal_iou=data.proposal_iou,
        )
        val = None
        if data.val is not None:
            val = read_evaluation(
                data.val,
                label_map,
                root=data.root,
                proposals=data.val_proposals,
                proposal_score=data.proposal_score,
                excluded=data.val_excluded,
                keyframes=data.val_keyframes,
                seconds=data.seconds,
            )
        folder = Path(config.run_dir)
        latest = open_run(
            folder,
            process,
            check_config=partial(check_same_config, config=config),
            config_yaml=to_yaml(config),
            data={
                "train": train.source,
                "keyframes": len(train.records),
                "fingerprint": train.fingerprint,
            },
            dry_run=dry_run,
        )

        # The model.
        create = partial(
            create_detector,
            config.model.name,
            num_classes=max(label_map.names),
            num_frames=config.model.num_frames,
            image_size=config.model.image_size,
            drop_path=config.model.drop_path,
            head_dropout=config.model.head_dropout,
            roi_resolution=config.model.roi_resolution,
            pos_embed_resize=config.model.pos_embed_resize,
            **config.model.overrides,
        )
        with configured(), torch.device("meta"):
            create()  # do the settings fit, whatever the weights?
        torch.manual_seed(settings.seed)
        init = None if latest else config.model.init  # which may be gone by now
        with first_process_first(process):
            model = create(checkpoint=init).to(process.device)
        known = init and trained_with(init, ["label_map"]).get("label_map")
        if known and known != exported(config, label_map)["label_map"]:
            logger.info("%s knows other actions: the classifier starts afresh", init)
            model.reset_classifier(model.num_classes)
        mean, std = input_statistics(model.encoder.architecture)
        model.set_grad_checkpointing(config.model.grad_checkpointing)

        schedule = Schedule.plan(len(train.records), settings, config.optim)
        for line in (
            describe(config, model, train, val),
            schedule.describe(process, config.optim, unit="key frames"),
        ):
            print(line) if dry_run else logger.info(line)
        schedule.order(process)  # says if the batch does not divide
        if dry_run:
            return 0

        sampler = ClipSampler(num_frames=model.encoder.input_size[0], **asdict(config.clips))
        size = model.encoder.input_size[1:]
        opener = partial(
            open_video,
            backend=data.backend,
            deadline_sec=data.deadline_sec,
            frames_fps=data.frames_fps,
        )
        workers = data.num_workers
        if workers is None:
            workers = default_num_workers(process.local_world_size)
        dataset = TrainingKeyframes(
            train.records,
            sampler,
            DetectionTransform(size, zoom=config.augment.zoom, flip=config.augment.flip),
            num_repeats=settings.num_repeats,
            seed=settings.seed,
            start_sec=data.start_sec,
            open_video=opener,
        )

        def batches_from(step: int) -> DataLoader[Any]:
            return training_loader(
                dataset,
                schedule.order(process, step),
                clip_shape=(*model.encoder.input_size, 3),
                num_workers=workers,
                pin_memory=process.device.type == "cuda",
            )

        evaluation = None
        if val is not None:
            clips = KeyframeClips(
                val.records, sampler, size=size, start_sec=data.start_sec, open_video=opener
            )
            scores = partial(
                score_keyframes,
                keyframes=clips,
                process=process,
                mean=mean,
                std=std,
                batch_size=config.batch_size,
                num_workers=workers,
                bf16=settings.precision == "bf16",
            )
            evaluation = partial(evaluate, process, val, label_map, scores)
        return train_to_the_end(
            model,
            DetectionLoss(num_classes=model.num_classes, mean=mean, std=std, device=process.device),
            optimizer_of(model, config.optim),
            batches_from,
            folder=folder,
            latest=latest,
            process=process,
            stop=stop,
            schedule=schedule,
            clip_grad=config.optim.clip_grad,
            max_failed_frac=data.max_failed_frac,
            meta=exported(config, label_map),
            evaluate=evaluation,
            evaluate_every=settings.evaluate_every,
            as_json=as_json,
        )


def evaluate(
    process: Process,
    val: KeyframeEvaluation,
    label_map: LabelMap,
    scores: Any,
    model: ActionDetector,
    report: RunReport,
    step: int,
) -> None:
    """Frame mAP on the validation key frames; every process takes its share of them."""
    scored, failures = scores(model)
    model.train()
    if not process.is_main:
        return
    report.failures(failures, step)
    detections = detections_of(val.records, {k.index: k.scores for k in scored}, label_map)
    means = {
        f"map_{protocol}": frame_ap(
            val.ground_truth,
            detections,
            classes=list(label_map.names),
            protocol=protocol,
            excluded=val.excluded,
            keyframes=val.keyframes,
        ).mean_ap
        for protocol in PROTOCOLS
    }
    report.metrics(step, "val", {**means, "decoded": len(scored)})
    told = "  ".join(f"{name} {100 * value:.2f}" for name, value in means.items())
    counts = f"{len(scored)} of {len(val.records)} key frames"
    logger.info("step %d  val (boxes: %s)  %s  %s", step, val.boxes, told, counts)


def exported(config: DetectTrainConfig, label_map: LabelMap) -> dict[str, Any]:
    """What evaluation and prediction need to know beside the weights."""
    return {
        "label_map": {str(id): name for id, name in sorted(label_map.names.items())},
        "groups": {str(id): group for id, group in sorted(label_map.groups.items())},
        "clips": asdict(config.clips),
    }


def describe(
    config: DetectTrainConfig,
    model: ActionDetector,
    train: TrainingKeyframeList,
    val: KeyframeEvaluation | None,
) -> str:
    """What is about to be trained."""
    boxes = sum(len(record.boxes) for record in train.records)
    rate = config.clips.sampling_rate
    return (
        f"{len(train.records)} training key frames with {boxes} boxes from {train.source}, "
        + (f"{len(val.records)} validation key frames; " if val else "no validation; ")
        + f"{config.model.name}, input {model.encoder.input_size}, {model.num_classes} actions, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; "
        f"{model.encoder.input_size[0]}x{rate} frames around each"
    )
