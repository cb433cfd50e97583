"""`hiera-video instances train`: train a Mask R-CNN on pictures in COCO's json."""

import logging
from functools import partial
from pathlib import Path

import torch

from hiera_video.data.batches import Failure
from hiera_video.data.checks import warn_of_flips, warn_of_similar
from hiera_video.data.instances.coco import (
    InstanceList,
    check_categories,
    check_trainable,
    read_coco,
)
from hiera_video.data.instances.datasets import TrainingPictures, WholePictures
from hiera_video.data.instances.masks import mask_library
from hiera_video.data.instances.transforms import ScaleJitter
from hiera_video.errors import counted
from hiera_video.evaluation.instances import check_has_objects, check_truth, score_instances
from hiera_video.evaluation.scoring import PictureObjects, detections_of, find_objects
from hiera_video.evaluation.views import Scorer
from hiera_video.models.card import ModelCard
from hiera_video.models.loading import card_of
from hiera_video.models.pretrained import create_segmenter
from hiera_video.models.segmenter import InstanceSegmenter
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import InstancesTrainSettings
from hiera_video.training.losses import InstanceLoss
from hiera_video.training.run import train
from hiera_video.training.task import Task
from hiera_video.video.open import opener

logger = logging.getLogger(__name__)


class InstancesTrainTask(Task):
    """Training of an instance segmenter."""

    unit = "pictures"
    val_note = "whole pictures"
    settings: InstancesTrainSettings
    train: InstanceList
    val: InstanceList | None = None

    def __init__(self, settings: InstancesTrainSettings) -> None:
        data = settings.data
        mask_library()  # before hours of work, not in a decoding process
        super().__init__(settings, read_coco(data.train, data.root))
        check_trainable(self.train)
        self.names = {category.id: category.name for category in self.train.categories}
        objects = sum(len(record.boxes) for record in self.train.records)
        classes = counted(len(self.train.categories), "class")
        self.contents = f" with {counted(objects, 'object')} of {classes}"
        if data.val is not None:
            self.val = read_coco(data.val, data.val_root or data.root)
            check_categories(self.val, self.names, self.train.source)
            check_truth(self.val)
            check_has_objects(self.val)
        for instances in filter(None, (self.train, self.val)):
            for problem in instances.problems:
                logger.warning("%s: %s", instances.source, problem)
        warn_of_flips(self.names.values(), settings.augment.flip)
        warn_of_similar(self.names.values())
        self.evaluate_every = settings.train.evaluate_every

    def create(self, checkpoint: str | Path | None) -> InstanceSegmenter:
        arguments = self.settings.model.arguments(checkpoint)
        number = len(self.train.categories)
        return create_segmenter(checkpoint=checkpoint, num_classes=number, **arguments)

    def sampling(self, model: InstanceSegmenter) -> str:
        low, high = self.settings.augment.scale
        return f"large-scale jitter {low:g} to {high:g}"

    def dataset(self, model: InstanceSegmenter) -> TrainingPictures:
        return TrainingPictures(
            self.train.records,
            ScaleJitter(model.encoder.input_size[1:], self.settings.augment),
            num_repeats=self.settings.train.num_repeats,
            seed=self.settings.train.seed,
            open_video=opener(self.settings.data),
        )

    def loss(self, model: InstanceSegmenter, device: torch.device) -> InstanceLoss:
        return InstanceLoss(normalize=self.normalize(model), device=device)

    def score(
        self, model: InstanceSegmenter, process: Process
    ) -> tuple[list[PictureObjects], list[Failure]]:
        settings = self.settings
        assert self.val is not None
        size, open_video = model.encoder.input_size[1:], opener(settings.data)
        pictures = WholePictures(self.val.records, size=size, open_video=open_video)
        how = (process.device, settings.batch_size, process.precision)
        scorer = Scorer.of(model, self.card(model), *how)
        return find_objects(scorer, pictures, process, settings.data)

    def figures(self, scored: list[PictureObjects]) -> dict[str, float]:
        """AP of boxes and of masks, the mean over IoU from 0.5 to 0.95."""
        assert self.val is not None
        found = score_instances(self.val, detections_of(self.val, scored))
        return {f"ap_{kind}": result.figures["ap"] for kind, result in found.items()}

    def card(self, model: InstanceSegmenter) -> ModelCard:
        return card_of(model, label_map=self.names)


run = partial(train, InstancesTrainTask)
