"""`hiera-video finetune`: train a classifier on videos or images, from weights or from scratch."""

from functools import partial
from pathlib import Path

import torch

from hiera_video.data.batches import Failure
from hiera_video.data.checks import warn_of_flips, warn_of_similar
from hiera_video.data.datasets import TrainingClips
from hiera_video.data.order import balanced_weights
from hiera_video.data.transforms import Crops, FinetuneTransform
from hiera_video.data.videos.records import VideoList, read_splits
from hiera_video.errors import counted
from hiera_video.evaluation.accuracy import VideoScores, summarize
from hiera_video.evaluation.prediction import views_of
from hiera_video.evaluation.scoring import validate
from hiera_video.evaluation.views import Scorer
from hiera_video.models.card import ModelCard
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import card_of
from hiera_video.models.pretrained import create_model
from hiera_video.models.variants import input_statistics
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import FinetuneSettings
from hiera_video.settings.video import Views
from hiera_video.training.losses import ClassificationLoss, balanced_class_weights
from hiera_video.training.optim import freeze
from hiera_video.training.run import train
from hiera_video.training.task import Task
from hiera_video.video.open import opener

MAX_COUNTED = 20  # classes whose videos are counted on the console


class FinetuneTask(Task):
    """Fine-tuning of a classifier."""

    settings: FinetuneSettings
    train: VideoList
    val: VideoList | None

    def __init__(self, settings: FinetuneSettings) -> None:
        data = settings.data
        train, self.val = read_splits(data)
        super().__init__(settings, train)
        self.class_names = list(train.class_names)
        self.data["classes"] = len(self.class_names)
        self.contents = f" of {counted(len(self.class_names), 'class')}"
        self.labels = [record.labels for record in train.records]
        warn_of_flips(self.class_names, settings.augment.flip)
        warn_of_similar(self.class_names)
        if data.balanced:
            self.record_weights = balanced_weights(self.labels, len(self.class_names))
        self.ema_decay = settings.train.ema_decay
        self.evaluate_every = settings.train.evaluate_every

    def create(self, checkpoint: str | Path | None) -> Hiera:
        arguments = self.settings.model.arguments(checkpoint)
        return create_model(checkpoint=checkpoint, num_classes=len(self.class_names), **arguments)

    def prepare(self, model: Hiera, checkpoint: str | Path | None) -> None:
        super().prepare(model, checkpoint)
        freeze(model, self.settings.train)
        views = self.settings.views  # checked now, for `evaluate` later:
        Crops(model.input_size[1:], views.num_crops, views.short_side)

    def describe(self, model: Hiera) -> list[str]:
        data, *others = super().describe(model)
        if len(self.class_names) > MAX_COUNTED:
            return [data, *others]
        counts = self.train.class_counts
        named = (f"{name!r} {counts[i]}" for i, name in enumerate(self.class_names))
        return [data, f"training {self.unit} of each class: {', '.join(named)}", *others]

    def dataset(self, model: Hiera) -> TrainingClips:
        mean, std = input_statistics(model.architecture)
        size, augment = model.input_size[1:], self.settings.augment
        transform = FinetuneTransform(size, augment, mean=mean, std=std)
        return TrainingClips(
            self.train.records,
            self.sampler(model),
            transform,
            num_repeats=self.settings.train.num_repeats,
            seed=self.settings.train.seed,
            short_side=transform.short_side,
            open_video=opener(self.settings.data, self.sampler(model).num_frames),
        )

    def loss(self, model: Hiera, device: torch.device) -> ClassificationLoss:
        weights = None
        if self.settings.train.class_weights == "balanced":
            weights = balanced_class_weights(self.labels, len(self.class_names))
        return ClassificationLoss(
            self.settings.augment,
            num_classes=len(self.class_names),
            normalize=self.normalize(model),
            multi_label=self.settings.data.multi_label,
            class_weights=weights,
            device=device,
        )

    def score(self, model: Hiera, process: Process) -> tuple[list[VideoScores], list[Failure]]:
        """Of one centre view of each video."""
        settings, data = self.settings, self.settings.data
        assert self.val is not None
        one_view = Views(num_clips=1, num_crops=1)
        views = views_of(self.val.records, model, settings.clips, one_view, data)
        how = (process.device, settings.views.batch_size, process.precision)
        return validate(Scorer.of(model, self.card(model), *how), views, process, data)

    def figures(self, scored: list[VideoScores]) -> dict[str, float]:
        assert self.val is not None
        expected = [record.labels for record in self.val.records]
        multi_label = self.settings.data.multi_label
        return summarize(scored, expected=expected, multi_label=multi_label).get("video", {})

    def card(self, model: Hiera) -> ModelCard:
        return card_of(
            model,
            class_names=self.class_names,
            multi_label=self.settings.data.multi_label,
            clips=self.settings.clips,
            views=self.settings.views,
        )


run = partial(train, FinetuneTask)
