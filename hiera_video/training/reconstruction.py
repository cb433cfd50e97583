"""What pretraining trains: the loss of a masked autoencoder on a batch of clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.data.batches import ClipBatch
from hiera_video.data.transforms import normalize
from hiera_video.models.mae import MaskedAutoencoderHiera, reconstruction_losses
from hiera_video.models.masking import UnitMasking, kept_units


class ReconstructionLoss:
    """Normalises a batch, predicts its hidden units; the sum over clips of the mean squared errors.

    Args:
        autoencoder: the model without wrappers, which knows its targets.
        masking: what drew the batches' `visible`.
    """

    def __init__(
        self,
        autoencoder: MaskedAutoencoderHiera,
        masking: UnitMasking,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.autoencoder, self.masking = autoencoder, masking
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, model: nn.Module, batch: ClipBatch, rng: np.random.Generator) -> Tensor:
        device = self.mean.device
        visible = batch.visible
        if visible is None:  # nothing could be read: any units of the one black clip
            visible = torch.from_numpy(self.masking(np.random.default_rng(0)))[None]
        kept = kept_units(visible).to(device, non_blocking=True)
        clips = normalize(batch.clips.to(device, non_blocking=True), self.mean, self.std)
        prediction = model(clips, kept)
        return reconstruction_losses(prediction, self.autoencoder.targets(clips, kept)).sum()
