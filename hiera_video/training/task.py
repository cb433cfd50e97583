"""What a training command brings to a run: data, model, loss and evaluation."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiera_video.data.batches import Failure
from hiera_video.data.boxes.keyframes import KeyframeEvaluation, TrainingKeyframeList
from hiera_video.data.datasets import RecordDataset
from hiera_video.data.instances.coco import InstanceList
from hiera_video.data.videos.records import VideoList
from hiera_video.errors import counted
from hiera_video.models.card import ModelCard
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.normalize import Normalize
from hiera_video.models.variants import input_statistics
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import (
    DetectTrainSettings,
    FinetuneSettings,
    InstancesTrainSettings,
    PretrainSettings,
)
from hiera_video.training.loop import LossFunction
from hiera_video.video.clips import ClipSampler

logger = logging.getLogger(__name__)

TaskSettings = FinetuneSettings | PretrainSettings | DetectTrainSettings | InstancesTrainSettings
TrainingList = VideoList | TrainingKeyframeList | InstanceList


class Task(ABC):
    """One of fine-tuning, pretraining, detection and instance segmentation.

    A task is made from the settings of its command and has read its lists then. `train` calls its
    methods in the order in which they stand here.
    """

    settings: TaskSettings
    train: TrainingList
    val: VideoList | KeyframeEvaluation | InstanceList | None = None
    unit = "videos"  # what a record is
    contents = ""  # of the training records, for the console
    val_note = "1 view"  # how validation differs from evaluation, for the console
    record_weights: np.ndarray | None = None  # relative probability of each; None: each once
    ema_decay: float | None = None  # of the average of the weights that is evaluated and saved
    evaluate_every: float | None = None  # passes over the data; None: at the end only

    def __init__(self, settings: TaskSettings, train: TrainingList) -> None:
        self.settings, self.train = settings, train
        self.num_records = len(train.records)
        self.data: dict[str, Any] = {  # for run.json
            "train": train.source,
            self.unit.replace(" ", ""): self.num_records,
            "fingerprint": train.fingerprint,
        }

    @abstractmethod
    def create(self, checkpoint: str | Path | None) -> Model:
        """The model with the weights of `checkpoint`, or with random ones."""

    def prepare(self, model: Any, checkpoint: str | Path | None) -> None:
        """Changes the model after its weights are loaded: a new classifier, frozen parameters."""
        if model.card is None:
            return
        cards = (model.card, self.card(model))
        known, own = (card.class_names or card.label_map for card in cards)
        if known and known != own:
            logger.info(
                "%s has other classes: the classifier starts with random weights", checkpoint
            )
            model.reset_classifier(model.num_classes)

    def describe(self, model: Any) -> list[str]:
        """What is about to be trained, in a few lines."""
        settings = self.settings
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        unit = self.unit.removesuffix("s")
        val = "no validation"
        if self.val is not None:
            val = counted(len(self.val.records), f"validation {unit}")
        train = counted(self.num_records, f"training {unit}")
        return [
            f"{train}{self.contents} from {self.train.source}, {val}",
            f"{settings.model.name}, input {encoder_of(model).input_size}, "
            f"{num_trained / 1e6:.2f} M trained parameters; {self.sampling(model)}, "
            f"flips {'on' if settings.augment.flip else 'off'}",
        ]

    def sampling(self, model: Any) -> str:
        """How samples are made of records, in words."""
        sampler = self.sampler(model)
        return f"{sampler.sampling} sampling {sampler.num_frames}x{sampler.sampling_rate}"

    def sampler(self, model: Any) -> ClipSampler:
        """Chooses the frames of clips for the model."""
        clips = self.settings.clips  # type: ignore[union-attr]  # tasks without clips do not call
        return ClipSampler.of(clips, encoder_of(model).input_size[0])

    def normalize(self, model: Any) -> Normalize:
        """The normalisation of the model's input."""
        return Normalize(*input_statistics(encoder_of(model).architecture))

    @abstractmethod
    def dataset(self, model: Any) -> RecordDataset:
        """The samples to train on."""

    @abstractmethod
    def card(self, model: Any) -> ModelCard:
        """The card of the weights that are written."""

    @abstractmethod
    def loss(self, model: Any, device: torch.device) -> LossFunction:
        """The loss of a batch."""

    def score(self, model: Any, process: Process) -> tuple[list[Any], list[Failure]]:
        """Scores of the records of `val`, and those that could not be read.

        Every process takes its share; the main process gets the whole.
        """
        raise NotImplementedError  # by tasks without `val`

    def figures(self, scored: list[Any]) -> dict[str, float]:
        """Shares, by name, that all scores amount to."""
        raise NotImplementedError
