"""What detection trains: the loss of an action detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.batches import DetectionBatch
from hiera_video.data.transforms import normalize


class DetectionLoss:
    """Binary cross entropy of each box, averaged over the actions, summed over boxes, in float32.

    SlowFast's on AVA: an action that is not annotated counts as absent.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_classes = num_classes
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, model: nn.Module, batch: DetectionBatch, rng: np.random.Generator) -> Tensor:
        device = self.mean.device
        clips = normalize(batch.clips.to(device, non_blocking=True), self.mean, self.std)
        boxes, clip_of_box = batch.boxes.to(device), batch.clip_of_box.to(device)
        logits = model(clips, boxes, clip_of_box).float()
        targets = multi_hot(batch.actions, self.num_classes).to(device, non_blocking=True)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.sum() / self.num_classes


def multi_hot(actions: Sequence[tuple[int, ...]], num_classes: int) -> Tensor:
    """Float [R, L]: 1 in column c where action c + 1 is among those of the box."""
    targets = torch.zeros(len(actions), num_classes)
    for row, ids in zip(targets, actions, strict=True):
        row[[action - 1 for action in ids]] = 1.0
    return targets
