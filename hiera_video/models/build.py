"""Models from keyword arguments, and what the model that a card describes looks like."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hiera_video.errors import ModelError
from hiera_video.models.card import ModelCard
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.variants import check_known
from hiera_video.settings.base import checked
from hiera_video.settings.model import Decoder

if TYPE_CHECKING:
    from hiera_video.models.loading import Model

# What other libraries call things, and what to write here.
HABITS = {
    "pretrained": "name the weights, create_model('hiera_base_16x224.mae_k400_ft_k400') or "
    "checkpoint=...; list_models(pretrained=True) has their names",
    "features_only": "model.forward_intermediates(x, indices=...) gives the outputs of the stages",
    "global_pool": "num_classes=0 leaves the pooled features, and "
    "model.forward_head(x, pre_logits=True) gives them of a classifier; "
    "model.forward_features(x) gives the tokens",
    "freeze": "model.requires_grad_(False) freezes all, model.head.requires_grad_(True) then frees "
    "the classifier; `hiera-video finetune` has train.train_only and train.freeze_stages",
    "checkpoint_path": "checkpoint=... takes a file, a folder or published weights",
    "weights": "checkpoint=... takes a file, a folder or published weights",
    "img_size": "image_size=... and num_frames=... give the size of a clip",
    "num_labels": "num_classes=... gives the outputs of the classifier",
    "drop_rate": "head_dropout=... is the dropout before the classifier",
    "drop_path_rate": "drop_path=... is the rate of stochastic depth",
    "patch_size": "patch_kernel=..., patch_stride=... and patch_padding=... describe the patches",
    "depths": "stages=... are the blocks of each stage",
    "out_indices": "model.forward_intermediates(x, indices=...) gives the outputs of the stages",
    "class_names": "save_model(folder, model, class_names=...) writes them",
    "device": "model.to(device) moves the model",
    "dtype": "model.to(dtype) converts the model",
    "map_location": "weights are read to the CPU, and model.to(device) moves the model",
    "strict": "a load is whole or an error; a classifier of other outputs alone starts afresh",
}
OTHERS = ("num_frames", "image_size")  # in place of input_size, in create_model and its like


def build(
    encoder: Mapping[str, Any],
    autoencoder: Mapping[str, Any] | None = None,
    detector: Mapping[str, Any] | None = None,
    segmenter: Mapping[str, Any] | None = None,
) -> "Model":
    """A `Hiera` of these keyword arguments, or what else is named around it.

    Raises:
        ModelError: an unknown argument of `Hiera`, or a value that it does not take.
    """
    for key in encoder:
        if key in HABITS:
            raise ModelError(f"{key} is no argument: {HABITS[key]}")
        check_known(key, [*inspect.signature(Hiera).parameters, *OTHERS], "Arguments")
    if autoencoder is not None:
        return MaskedAutoencoderHiera(Hiera(**encoder), **checked(Decoder, autoencoder))
    if detector is not None:
        from hiera_video.models.detector import ActionDetector  # torchvision takes its time

        return ActionDetector(Hiera(**encoder), **detector)
    if segmenter is not None:
        from hiera_video.models.segmenter import InstanceSegmenter

        return InstanceSegmenter(Hiera(**encoder), **segmenter)
    return Hiera(**encoder)


def described_tensors(card: ModelCard) -> dict[str, Tensor]:
    """The tensors of the model that a card describes, under its own names and without values.

    Raises:
        ModelError: sizes that do not fit together.
    """
    encoder = {**card.architecture, "num_classes": card.num_classes or 0}
    autoencoder = card.autoencoder
    if autoencoder is not None:
        autoencoder = {"decoder_heads": 1, **autoencoder}  # which no tensor's shape shows
    with torch.device("meta"):
        return build(encoder, autoencoder, card.detector, card.segmenter).state_dict()
