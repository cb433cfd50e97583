"""`hiera-video pretrain`: masked-autoencoder pretraining on videos or images, labels unused."""

from functools import partial
from pathlib import Path

import torch

from hiera_video.data.datasets import TrainingClips
from hiera_video.data.transforms import PretrainTransform
from hiera_video.data.videos.records import VideoList, read_video_list
from hiera_video.errors import configured, counted
from hiera_video.models.card import ModelCard
from hiera_video.models.loading import card_of
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.masking import UnitMasking
from hiera_video.models.pretrained import create_autoencoder
from hiera_video.settings.training import PretrainSettings
from hiera_video.training.losses import ReconstructionLoss
from hiera_video.training.run import train
from hiera_video.training.task import Task
from hiera_video.video.open import opener


class PretrainTask(Task):
    """Pretraining of a masked autoencoder."""

    settings: PretrainSettings
    train: VideoList

    def __init__(self, settings: PretrainSettings) -> None:
        data = settings.data
        train = read_video_list(
            data.train,
            root=data.root,
            labelled=False,
            split=data.split,
            frames_fps=data.frames_fps,
        )
        super().__init__(settings, train)

    def create(self, checkpoint: str | Path | None) -> MaskedAutoencoderHiera:
        model = self.settings.model
        arguments = model.arguments(checkpoint)
        if checkpoint is None and model.decoder_heads is None:
            arguments["decoder_heads"] = 1  # to check the sizes; `init` states the number
        return create_autoencoder(checkpoint=checkpoint, **arguments)

    def prepare(self, model: MaskedAutoencoderHiera, checkpoint: str | Path | None) -> None:
        self.masking(model)  # do the settings fit?

    def masking(self, model: MaskedAutoencoderHiera) -> UnitMasking:
        """What draws the visible units."""
        with configured():
            return UnitMasking.of(model.encoder, self.settings.masking)

    def describe(self, model: MaskedAutoencoderHiera) -> list[str]:
        decoder, masking = model.decoder_architecture, self.masking(model)
        return [
            *super().describe(model),
            f"{masking.num_visible} of {masking.num_units} mask units of {model.encoder.mask_unit} "
            f"tokens are visible ({masking.kind} masking); decoder of "
            f"{counted(decoder['decoder_depth'], 'block')}, width {decoder['decoder_dim']}, "
            f"{counted(decoder['decoder_heads'], 'head')}",
        ]

    def dataset(self, model: MaskedAutoencoderHiera) -> TrainingClips:
        transform = PretrainTransform(model.encoder.input_size[1:], self.settings.augment)
        return TrainingClips(
            self.train.records,
            self.sampler(model),
            transform,
            num_repeats=self.settings.train.num_repeats,
            seed=self.settings.train.seed,
            short_side=transform.short_side,
            masking=self.masking(model),
            open_video=opener(self.settings.data, self.sampler(model).num_frames),
        )

    def loss(self, model: MaskedAutoencoderHiera, device: torch.device) -> ReconstructionLoss:
        masking, normalize = self.masking(model), self.normalize(model)
        return ReconstructionLoss(model, masking, normalize=normalize, device=device)

    def card(self, model: MaskedAutoencoderHiera) -> ModelCard:
        masking = self.masking(model)
        return card_of(
            model,
            masking={"kind": masking.kind, "mask_ratio": masking.mask_ratio},
            clips=self.settings.clips,
        )


run = partial(train, PretrainTask)
