"""Parameter groups (layer decay, no weight decay), the optimizers, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float,
    layer_ids: dict[str, int],
    no_weight_decay: set[str],
) -> list[dict[str, object]]:
    """Groups of trainable parameters, each with its `lr_scale` and `weight_decay`.

    Layer decay as SlowFast counts it (slowfast/models/optimizer.py): the head learns at full rate,
    the last block at `layer_decay` of it, and so on down to the stem. Vectors (biases, norms) and
    the parameters named in `no_weight_decay` are not decayed.
    """
    top = max(layer_ids.values())
    groups: dict[tuple[int, bool], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in no_weight_decay
        group = groups.setdefault(
            (layer_ids[name], decayed),
            {
                "params": [],
                "lr_scale": layer_decay ** (top - layer_ids[name]),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
    return [groups[key] for key in sorted(groups)]


def build_optimizer(
    name: str, groups: Iterable[dict[str, object]], *, lr: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9; the groups bring their weight decay.

    Fused: a step over 52 M parameters took 0.04 to 0.20 s of a CPU, against 0.96 to 2.8 s.
    """
    if name == "adamw":
        return torch.optim.AdamW(list(groups), lr=lr, betas=(betas[0], betas[1]), fused=True)
    if name == "sgd":
        return torch.optim.SGD(list(groups), lr=lr, momentum=0.9, nesterov=True, fused=True)
    raise ValueError(f"optimizer is {name!r}: allowed are adamw, sgd")


def learning_rate(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, first: float, last: float
) -> float:
    """Linear warmup from `first` to `peak`, then half a cosine down to `last`."""
    if step < warmup_steps:
        return first + (peak - first) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return last + (peak - last) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets `lr` times each group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
