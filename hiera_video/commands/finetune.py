"""`hiera-video finetune`: train a classifier on videos or images, from weights or from scratch."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch

from hiera_video.data.datasets import TrainingClips
from hiera_video.data.order import balanced_weights
from hiera_video.data.transforms import Crops, FinetuneTransform
from hiera_video.data.videos.records import VideoList, read_splits
from hiera_video.evaluation.accuracy import summarize
from hiera_video.evaluation.prediction import views_of
from hiera_video.evaluation.scoring import validate
from hiera_video.models.card import ModelCard
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import card_of
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_model
from hiera_video.models.variants import input_statistics
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import FinetuneSettings
from hiera_video.settings.video import Views
from hiera_video.training.losses import ClassificationLoss, balanced_class_weights
from hiera_video.training.optim import freeze
from hiera_video.training.run import train
from hiera_video.training.task import Evaluate, Evaluation, Task
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener

logger = logging.getLogger(__name__)


class FinetuneTask(Task):
    """Fine-tuning of a classifier."""

    settings: FinetuneSettings
    train: VideoList

    def __init__(self, settings: FinetuneSettings) -> None:
        data = settings.data
        train, self.val = read_splits(data)
        super().__init__(settings, train)
        self.class_names = list(train.class_names)
        self.data["classes"] = len(self.class_names)
        self.labels = [record.labels for record in train.records]
        if data.balanced:
            self.record_weights = balanced_weights(self.labels, len(self.class_names))
        self.ema_decay = settings.train.ema_decay
        self.evaluate_every = settings.train.evaluate_every

    def create(self, checkpoint: str | Path | None) -> Hiera:
        model = self.settings.model
        return create_model(
            model.name,
            checkpoint=checkpoint,
            num_classes=len(self.class_names),
            **model.arguments(),
        )

    def prepare(self, model: Hiera, checkpoint: str | Path | None) -> None:
        known = model.card.class_names if model.card is not None else ()
        if known and known != tuple(self.class_names):
            logger.info(
                "%s has other classes: the classifier starts with random weights", checkpoint
            )
            model.reset_classifier(len(self.class_names))
        freeze(model, self.settings.train)

    def describe(self, model: Hiera) -> list[str]:
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        clips = self.settings.clips
        val = f"{len(self.val.records)} validation videos" if self.val else "no validation"
        return [
            f"{self.num_records} training videos of {len(self.class_names)} classes from "
            f"{self.train.source}, {val}",
            f"{self.settings.model.name}, input {model.input_size}, {num_trained / 1e6:.2f} M "
            f"trained parameters; {clips.sampling} sampling "
            f"{model.input_size[0]}x{clips.sampling_rate}, "
            f"flips {'on' if self.settings.augment.flip else 'off'}",
        ]

    def dataset(self, model: Hiera) -> TrainingClips:
        mean, std = input_statistics(model.architecture)
        return TrainingClips(
            self.train.records,
            ClipSampler.of(self.settings.clips, model.input_size[0]),
            FinetuneTransform(model.input_size[1:], self.settings.augment, mean=mean, std=std),
            num_repeats=self.settings.train.num_repeats,
            seed=self.settings.train.seed,
            open_video=opener(self.settings.data),
        )

    def loss(self, model: Hiera, device: torch.device) -> ClassificationLoss:
        weights = None
        if self.settings.train.class_weights == "balanced":
            weights = balanced_class_weights(self.labels, len(self.class_names))
        return ClassificationLoss(
            self.settings.augment,
            num_classes=len(self.class_names),
            normalize=Normalize(*input_statistics(model.architecture)),
            multi_label=self.settings.data.multi_label,
            class_weights=weights,
            device=device,
        )

    def evaluation(self, model: Hiera, process: Process) -> Evaluate | None:
        """One centre view of each validation video; every process takes its share."""
        views = self.settings.views  # checked now, for `evaluate` later:
        Crops(model.input_size[1:], views.num_crops, views.short_side)
        if self.val is None:
            return None
        data, records = self.settings.data, self.val.records
        one_view = Views(num_clips=1, num_crops=1)
        centre_views = views_of(records, model, self.settings.clips, one_view, data)

        def evaluate(model: Hiera) -> Evaluation:
            videos, failures = validate(
                model,
                centre_views,
                process,
                normalize=Normalize(*input_statistics(model.architecture)),
                batch_size=views.batch_size,
                decoding=data,
                bf16=self.settings.train.precision == "bf16",
                multi_label=data.multi_label,
            )
            if not process.is_main:
                return Evaluation({}, failures, "")
            expected = [record.labels for record in records]
            summary = summarize(videos, expected=expected, multi_label=data.multi_label)
            accuracy = summary.get("video", {})
            figures = "  ".join(f"{name} {100 * value:.2f}" for name, value in accuracy.items())
            return Evaluation(
                {**accuracy, "decoded": summary["decoded"]},
                failures,
                f"(1 view)  {figures}  {summary['decoded']} of {summary['expected']} videos",
            )

        return evaluate

    def card(self, model: Hiera) -> ModelCard:
        return card_of(
            model,
            class_names=self.class_names,
            multi_label=self.settings.data.multi_label,
            clips=self.settings.clips,
            views=self.settings.views,
        )


run = partial(train, FinetuneTask)
