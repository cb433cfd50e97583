"""What a training command brings to a run: data, model, loss and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiera_video.data.batches import Failure
from hiera_video.data.boxes.keyframes import TrainingKeyframeList
from hiera_video.data.datasets import TrainingClips, TrainingKeyframes
from hiera_video.data.videos.records import VideoList
from hiera_video.models.card import ModelCard
from hiera_video.models.loading import Model
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import RunSettings
from hiera_video.training.loop import LossFunction


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on validation data; on processes other than the main one, of its share."""

    values: dict[str, float]
    failures: list[Failure]
    text: str  # for the console


Evaluate = Callable[[Any], Evaluation]


class Task(ABC):
    """One of fine-tuning, pretraining and detection.

    A task is made from the settings of its command and has read its lists then. `train` calls its
    methods in the order in which they stand here.
    """

    settings: RunSettings
    train: VideoList | TrainingKeyframeList
    unit = "videos"  # what a record is
    record_weights: np.ndarray | None = None  # relative probability of each; None: each once
    ema_decay: float | None = None  # of the average of the weights that is evaluated and saved
    evaluate_every: float | None = None  # passes over the data; None: at the end only

    def __init__(self, settings: RunSettings, train: VideoList | TrainingKeyframeList) -> None:
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

    @abstractmethod
    def prepare(self, model: Any, checkpoint: str | Path | None) -> None:
        """Changes the model after its weights are loaded: a new classifier, frozen parameters."""

    @abstractmethod
    def describe(self, model: Any) -> list[str]:
        """What is about to be trained, in a few lines."""

    @abstractmethod
    def dataset(self, model: Any) -> TrainingClips | TrainingKeyframes:
        """The samples to train on."""

    @abstractmethod
    def card(self, model: Any) -> ModelCard:
        """The card of the weights that are written."""

    @abstractmethod
    def evaluation(self, model: Any, process: Process) -> Evaluate | None:
        """What scores a model on the validation data, on all processes; None without such data."""

    @abstractmethod
    def loss(self, model: Any, device: torch.device) -> LossFunction:
        """The loss of a batch."""
