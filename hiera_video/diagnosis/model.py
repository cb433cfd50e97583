"""A tiny model with known weights, and what it makes of a known clip."""

import math

import numpy as np
import torch
from torch import Tensor

from hiera_video.diagnosis.clip import picture
from hiera_video.models.hiera import Hiera
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_model
from hiera_video.models.variants import input_statistics

NUM_FRAMES, SIDE, NUM_CLASSES = 4, 32, 4
LOGITS = (-1.0591126, 0.0167195, -1.0855326, -0.4002927)  # of the known clip, in float64


def tiny_model() -> Hiera:
    """A Hiera of four blocks in evaluation mode, whose weights are values of the sine."""
    model = create_model(
        "hiera_tiny_16x224",
        num_frames=NUM_FRAMES,
        image_size=SIDE,
        num_classes=NUM_CLASSES,
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 1, 1),
        drop_path=0.0,
    )
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            places = torch.arange(parameter.numel())
            waves = torch.sin((number + places * places % 9973).double())  # without any structure
            values = 0.1 * waves
            if parameter.ndim > 1:
                values = waves * math.sqrt(2 / parameter[0].numel())
            elif name.endswith("weight"):  # of a norm
                values += 1
            parameter.copy_(values.view_as(parameter))
    return model.eval()


def normalize(model: Hiera) -> Normalize:
    return Normalize(*input_statistics(model.architecture))


def known_clip() -> Tensor:
    """Uint8 [1, T, H, W, C]: the first frames of the clip of the package, as they were drawn."""
    frames = np.stack([picture(number) for number in range(NUM_FRAMES)])
    return torch.from_numpy(frames[None, :, :SIDE, :SIDE].copy())


def relative_error(logits: Tensor) -> float:
    """Largest error of logits [1, L] of the known clip, over the deviation of the right ones."""
    right = torch.tensor(LOGITS, dtype=torch.float64)
    return float((logits[0].double().cpu() - right).abs().max() / right.std())
