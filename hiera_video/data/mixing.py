"""Targets of classification, and mixup and cutmix of whole clips.

All clips of a batch share one draw and are paired with the batch in reverse order, as in the
"batch" mode of timm's `Mixup`. Cutmix exchanges the same box in all frames. The recipe of the Hiera
paper (arXiv 2306.00989, Tab. 11b): mixup 0.8, cutmix 1.0, label smoothing 0.1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Clips = Float[Tensor, "B C T H W"]
Targets = Float[Tensor, "B K"]
Box = tuple[int, int, int, int]  # top, bottom, left, right


def multi_hot(
    labels: Sequence[tuple[int, ...]], num_classes: int, smoothing: float = 0.0
) -> Targets:
    """Targets with 1 for each class of a clip, of which it may have several or none.

    With label smoothing, every class has `smoothing / num_classes`, and those of the clip
    `1 - smoothing` more.
    """
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off)
    for row, classes in zip(targets, labels, strict=True):
        row[list(classes)] = 1 - smoothing + off
    return targets


def mix(
    clips: Clips,
    targets: Targets,
    *,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    generator: np.random.Generator,
) -> tuple[Clips, Targets]:
    """Mixes each clip with its partner, by mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899).

    `clips` are overwritten. If both are on, each is chosen with probability 0.5. Targets are
    weighted by the fraction that is kept of the clip: with cutmix, the area outside of the box.
    In a batch of odd size the clip in the middle is its own partner and does not change. Targets
    may be smoothed, multi-hot, or any others that can be averaged.

    Args:
        mixup: alpha of mixup's Beta(alpha, alpha); 0 turns mixup off.
        cutmix: alpha of cutmix's Beta(alpha, alpha); 0 turns cutmix off.
        generator: random generator, on the CPU; the draw does not depend on the device.

    Raises:
        ValueError: an alpha is negative.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if value < 0:
            raise ValueError(f"{name} is {value}; allowed: 0 (off) or more")
    if not mixup and not cutmix:
        return clips, targets
    if cutmix and (not mixup or generator.random() < 0.5):
        height, width = clips.shape[-2:]
        kept = float(generator.beta(cutmix, cutmix))
        top, bottom, left, right = cutmix_box(height, width, kept, generator)
        inside = clips[..., top:bottom, left:right]
        inside.copy_(inside.flip(0))
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        kept = float(generator.beta(mixup, mixup))
        partners = clips.flip(0)
        clips.mul_(kept).add_(partners, alpha=1 - kept)
    return clips, targets * kept + targets.flip(0) * (1 - kept)


def cutmix_box(height: int, width: int, kept: float, generator: np.random.Generator) -> Box:
    """A box with a uniform centre and a fraction 1 - `kept` of the area, cut off at the frame."""
    side = math.sqrt(1 - kept)  # of the box, as a fraction of the frame's
    box_height, box_width = int(height * side), int(width * side)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return (
        max(y - box_height // 2, 0),
        min(y + (box_height + 1) // 2, height),
        max(x - box_width // 2, 0),
        min(x + (box_width + 1) // 2, width),
    )
