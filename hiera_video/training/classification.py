"""What fine-tuning trains: the loss of a classifier, and which parameters take part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.batches import ClipBatch
from hiera_video.data.mixing import mix, soft_targets
from hiera_video.data.transforms import normalize
from hiera_video.models.hiera import Hiera


class ClassificationLoss:
    """Normalises, mixes and classifies a batch of clips; the sum of their losses, in float32.

    Softmax cross entropy with soft targets for one label a video; for several, binary cross entropy
    averaged over the classes. Label smoothing s takes targets y to
    (1 - s) y + s / L.

    Args:
        class_weights: [L], factor on the loss of each class; None for none.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        mixup: float,
        cutmix: float,
        label_smoothing: float,
        multi_label: bool = False,
        class_weights: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_classes, self.multi_label = num_classes, multi_label
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.mixup, self.cutmix, self.label_smoothing = mixup, cutmix, label_smoothing
        self.class_weights = None if class_weights is None else class_weights.to(device)

    def __call__(self, model: nn.Module, batch: ClipBatch, rng: np.random.Generator) -> Tensor:
        device = self.mean.device
        clips = normalize(batch.clips.to(device, non_blocking=True), self.mean, self.std)
        targets = self._targets(batch).to(device, non_blocking=True)
        clips, targets = mix(clips, targets, mixup=self.mixup, cutmix=self.cutmix, generator=rng)
        logits = model(clips).float()
        if self.multi_label:
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            losses = losses / self.num_classes
        else:
            losses = -targets * logits.log_softmax(dim=1)
        if self.class_weights is not None:
            losses = losses * self.class_weights
        return losses.sum()

    def _targets(self, batch: ClipBatch) -> Tensor:
        """Float [B, L]."""
        if not len(batch):  # nothing could be read: the one black clip has no label
            return torch.zeros(len(batch.clips), self.num_classes)
        if not self.multi_label:
            labels = torch.tensor([label for (label,) in batch.labels])
            return soft_targets(labels, self.num_classes, self.label_smoothing)
        targets = torch.zeros(len(batch), self.num_classes)
        for row, classes in zip(targets, batch.labels, strict=True):
            row[list(classes)] = 1.0
        return targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes


def balanced_class_weights(labels: Sequence[tuple[int, ...]], num_classes: int) -> Tensor:
    """[L]: inverse to each class's number of videos, 1 on average over videos, 1 without any."""
    counts = torch.bincount(
        torch.tensor([c for video in labels for c in video]), minlength=num_classes
    )
    present = int((counts > 0).sum())
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), 1.0)


def freeze(model: Hiera, *, train_only: str, freeze_stages: int) -> None:
    """Leaves only the head and the last norm trainable ("head"), or freezes the first stages.

    With a frozen stage the patch and position embeddings are frozen too.
    """
    last_frozen = len(model.blocks) if train_only == "head" else -1
    if freeze_stages:
        if freeze_stages > len(model.stage_ends):
            raise ValueError(
                f"train.freeze_stages={freeze_stages}: the model has {len(model.stage_ends)} stages"
            )
        last_frozen = model.stage_ends[freeze_stages - 1] + 1
    for name, depth in model.layer_ids().items():
        model.get_parameter(name).requires_grad_(depth > last_frozen)
