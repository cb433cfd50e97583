"""Losses of the training commands, each the sum over the targets of a batch, in float32."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.batches import ClipBatch, DetectionBatch, InstanceBatch
from hiera_video.data.mixing import mix, multi_hot
from hiera_video.errors import ModelError
from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import UnitMasking, kept_units
from hiera_video.models.normalize import Normalize
from hiera_video.settings.training import Augment


@dataclass(kw_only=True)
class _Loss:
    """What all losses share: the clips of a batch on the device, normalised."""

    normalize: Normalize
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.normalize = self.normalize.to(self.device)

    def _inputs(self, batch: ClipBatch | DetectionBatch | InstanceBatch) -> Tensor:
        return self.normalize(batch.clips.to(self.device, non_blocking=True))


@dataclass
class ClassificationLoss(_Loss):
    """Normalises, mixes and classifies a batch of clips.

    Softmax cross entropy with soft targets for one label a video; for several, binary cross entropy
    averaged over the classes. Label smoothing s changes targets y to (1 - s) y + s / L.

    Args:
        augment: its mixup, cutmix and label smoothing are used.
        class_weights: [L], factor on the loss of each class; None: 1.
    """

    augment: Augment
    _: KW_ONLY
    num_classes: int
    multi_label: bool = False
    class_weights: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(self.device)

    def __call__(self, model: nn.Module, batch: ClipBatch, rng: np.random.Generator) -> Tensor:
        targets = multi_hot(batch.labels, self.num_classes, self.augment.label_smoothing)
        clips, targets = mix(
            self._inputs(batch),
            targets.to(self.device, non_blocking=True),
            mixup=self.augment.mixup,
            cutmix=self.augment.cutmix,
            generator=rng,
        )
        logits = model(clips).float()
        if logits.shape[1] != self.num_classes:
            raise ModelError(
                f"the model has {logits.shape[1]} outputs, and the loss is of num_classes="
                f"{self.num_classes}: give both the number of classes"
            )
        if self.multi_label:
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            losses = losses / self.num_classes
        else:
            losses = -targets * logits.log_softmax(dim=1)
        if self.class_weights is not None:
            losses = losses * self.class_weights
        return losses.sum()


@dataclass
class ReconstructionLoss(_Loss):
    """Normalises a batch and predicts its hidden units: mean squared error of each clip.

    Args:
        autoencoder: the model without wrappers, which knows its targets.
        masking: what drew the batches' `visible`.
    """

    autoencoder: MaskedAutoencoderHiera
    masking: UnitMasking

    def __call__(self, model: nn.Module, batch: ClipBatch, rng: np.random.Generator) -> Tensor:
        visible = batch.visible
        if visible is None:  # nothing could be read: any units of the one black clip
            visible = torch.from_numpy(self.masking(np.random.default_rng(0)))[None]
        kept = kept_units(visible).to(self.device, non_blocking=True)
        return self.of_units(model, self._inputs(batch), kept)

    def of_units(self, model: nn.Module, clips: Tensor, kept: Tensor) -> Tensor:
        """The loss of normalised clips of which the units `kept` [B, K] are visible."""
        prediction = model(clips, kept)
        return reconstruction_losses(prediction, self.autoencoder.targets(clips, kept)).sum()


@dataclass(kw_only=True)
class DetectionLoss(_Loss):
    """Binary cross entropy of each box, averaged over the actions.

    As SlowFast's on AVA: an action that is not annotated counts as absent.
    """

    num_classes: int

    def __call__(self, model: nn.Module, batch: DetectionBatch, rng: np.random.Generator) -> Tensor:
        boxes, clip_of_box = (
            values.to(self.device, non_blocking=True) for values in (batch.boxes, batch.clip_of_box)
        )
        logits = model(self._inputs(batch), boxes, clip_of_box).float()
        columns = [tuple(action - 1 for action in ids) for ids in batch.actions]
        targets = multi_hot(columns, self.num_classes).to(self.device, non_blocking=True)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.sum() / self.num_classes


@dataclass
class InstanceLoss(_Loss):
    """The losses of Mask R-CNN: of the RPN, of boxes and classes, and of masks."""

    def __call__(self, model: nn.Module, batch: InstanceBatch, rng: np.random.Generator) -> Tensor:
        targets = [
            {key: value.to(self.device, non_blocking=True) for key, value in target.items()}
            for target in batch.targets
        ]
        return model(self._inputs(batch), targets) * len(targets)


def balanced_class_weights(labels: Sequence[tuple[int, ...]], num_classes: int) -> Tensor:
    """[L]: inverse to each class's number of videos, 1 on average over videos, 1 without any."""
    counts = torch.bincount(
        torch.tensor([c for video in labels for c in video]), minlength=num_classes
    )
    present = int((counts > 0).sum())
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 1.0)
