"""Counting the parameters, multiply-adds and activations of a model, by module and by stage.

torch reports each operator that the model calls, and `HANDLERS` has a rule for each kind. Counters
that skip operators without a rule miss attention, 16 to 30 % of Hiera on video; here an operator
that has no rule and is not negligible is an error. The model and its input may be on the meta
device, on which nothing is computed.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.mae import MaskedAutoencoderHiera

PRODUCTS = ("convolution", "linear", "attention")


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass through a model or a part of it.

    `operations` are multiply-adds for "convolution", "linear" and "attention"; 5 per element for
    "layer_norm"; 1 per value read for "pooling"; 1 multiply-add per value read for "interpolation".
    """

    parameters: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    activations: int = 0
    """Elements that convolutions, linear layers and attention write."""

    @property
    def macs(self) -> int:
        """Multiply-adds of products."""
        return sum(self.operations[name] for name in PRODUCTS)

    @property
    def flops(self) -> int:
        """Floating-point operations of products."""
        return 2 * self.macs

    @property
    def paper_flops(self) -> int:
        """FLOPs in the tables of Hiera's paper: `macs` and 5 per element of LayerNorm."""
        return self.macs + self.operations["layer_norm"]

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(operator.add, vars(self).values(), vars(other).values()))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*map(operator.sub, vars(self).values(), vars(other).values()))


def count(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Cost]:
    """Counts the cost of `model(*inputs)`, without gradients, by name of module; "" is the model.

    A product belongs to the module whose weight or bias it uses, any other operator to the module
    whose `forward` runs.

    Raises:
        NotImplementedError: the model runs an operator without handler.
    """
    counter = _Counter(model)
    trained = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with (
            torch.inference_mode(),  # in which torch reports attention before it is decomposed
            register_module_forward_pre_hook(counter.enter),
            register_module_forward_hook(counter.leave),
            counter,
        ):
            model(*inputs)
    finally:
        for module, training in trained.items():
            module.training = training
    if counter.unknown:
        where = (f"{name} in {module or 'the model'}" for name, module in counter.unknown.items())
        raise NotImplementedError(
            f"not counted: {', '.join(where)}: add a handler, or the name to NEGLIGIBLE, in "
            f"{__name__}"
        )
    costs = {}
    for name, module in model.named_modules():
        operations = counter.counts[name]
        activations = operations.pop("activations", 0)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        costs[name] = Cost(parameters, operations, activations)
    return costs


def count_model(model: Model, *, num_kept: int | None = None) -> dict[str, Cost]:
    """Counts the cost of one clip by `count`; a detector classifies one box.

    Args:
        num_kept: number of visible mask units, of a masked autoencoder.
    """
    encoder = encoder_of(model)
    device = encoder.norm.weight.device
    clip = torch.empty(1, encoder.in_chans, *encoder.input_size, device=device)
    if isinstance(model, MaskedAutoencoderHiera):
        if num_kept is None:
            raise ValueError("num_kept is None: the cost of a masked autoencoder depends on it")
        return count(model, (clip, torch.arange(num_kept, device=device)[None]))
    if isinstance(model, ActionDetector):
        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
        return count(model, (clip, box, torch.zeros(1, dtype=torch.long, device=device)))
    return count(model, (clip,))


def by_stage(model: Model, costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """Sums `costs` by stage, in the order of the forward pass.

    "rest" is the remainder of the whole model, which no module owns: position embeddings, the mask
    token, means over tokens, RoIAlign.
    """
    prefix = "" if isinstance(model, Hiera) else "encoder."
    parts = {"patches": [f"{prefix}patch_embed"]}
    first = 0
    for stage, last in enumerate(encoder_of(model).stage_ends, start=1):
        parts[f"stage {stage}"] = [f"{prefix}blocks.{i}" for i in range(first, last + 1)]
        first = last + 1
    if isinstance(model, MaskedAutoencoderHiera):
        parts["fusion"] = ["multi_scale_fusion_heads", "encoder.norm"]
        parts["decoder"] = ["decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"]
    else:
        head = "head" if isinstance(model, Hiera) else "roi_head"
        parts["head"] = [f"{prefix}norm", head]
    stages = {part: sum((costs[name] for name in names), Cost()) for part, names in parts.items()}
    stages["rest"] = costs[""] - sum(stages.values(), Cost())
    return stages


class _Counter(TorchDispatchMode):
    """Counts operators while entered, for the module of each and all modules that contain it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.owners = {id(p): m for m in self.names for p in m.parameters(recurse=False)}
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in self.names.values()}
        self.unknown: dict[str, str] = {}  # operators without rule, and a module that runs each
        self.running = [model]  # the modules whose `forward` runs, the innermost last

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.running.append(module if module in self.names else self.running[-1])

    def leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        if name not in HANDLERS:
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
            if not (func.is_view or torch.Tag.pointwise in func.tags or name in NEGLIGIBLE):
                self.unknown.setdefault(name, self.names[self.running[-1]])
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        module = next((self.owners[id(x)] for x in args if id(x) in self.owners), self.running[-1])
        kind, factor, rule = HANDLERS[name]
        if isinstance(module, nn.Linear):
            kind = "linear"  # also where `hiera_video.models.linear` convolves
        counted = Counter({kind: factor * rule(output, *args)})
        if kind in PRODUCTS:
            counted["activations"] = output.numel()
        name = self.names[module]
        self.counts[""].update(counted)
        while name:
            self.counts[name].update(counted)
            name = name.rpartition(".")[0]
        return output


# Rules: functions of the output and the inputs of an operator.


def _convolution(output: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> int:
    """Each output, or of a transposed one each input, meets the weights of one channel."""
    transposed = settings[4]
    places = (x if transposed else output).numel()
    return places * math.prod(weight.shape[1:])  # [out, in / groups, *kernel]


def _linear(output: Tensor, x: Tensor, *_: Any) -> int:
    return output.numel() * x.shape[-1]


def _attention(output: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    """The product q k' over the width of q, and its product with v; without the softmax."""
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _read(output: Any, x: Tensor, *_: Any) -> int:
    return x.numel()


def _written(output: Tensor, *_: Any) -> int:
    return output.numel()


def _roi_align(output: Tensor, x: Tensor, *settings: Any) -> int:
    """Samples. Sampling ratio 0 counts as for boxes that fill the feature map."""
    ratio = settings[4]
    (height, width), (rows, columns) = x.shape[2:], output.shape[2:]
    samples = ratio**2 if ratio > 0 else -(-height // rows) * -(-width // columns)
    return samples * output.numel()


# The kind of operation, how many of them for what the function counts, and the function.
HANDLERS: dict[str, tuple[str, int, Callable[..., int]]] = {
    "aten::convolution": ("convolution", 1, _convolution),
    "aten::linear": ("linear", 1, _linear),
    "aten::addmm": ("linear", 1, lambda output, bias, x, *_: _linear(output, x)),
    "aten::mm": ("linear", 1, _linear),
    "aten::bmm": ("linear", 1, _linear),
    "aten::scaled_dot_product_attention": ("attention", 1, _attention),
    "hiera_video::panel_attention": ("attention", 1, _attention),
    "aten::layer_norm": ("layer_norm", 5, _read),
    "aten::max": ("pooling", 1, _read),
    "aten::amax": ("pooling", 1, _read),
    "aten::mean": ("pooling", 1, _read),
    "aten::_adaptive_avg_pool2d": ("pooling", 1, _read),
    "aten::_adaptive_avg_pool3d": ("pooling", 1, _read),
    "aten::upsample_linear1d": ("interpolation", 2, _written),
    "aten::upsample_bilinear2d": ("interpolation", 4, _written),
    "aten::upsample_trilinear3d": ("interpolation", 8, _written),
    "aten::upsample_bicubic2d": ("interpolation", 16, _written),
    "torchvision::roi_align": ("interpolation", 4, _roi_align),
}

# Operators without arithmetic. Negligible are also views, and elementwise operators: 0.1 % of the
# products of hiera_base_16x224 at one operation each.
NEGLIGIBLE = {
    *("aten::arange", "aten::empty", "aten::full", "aten::full_like", "aten::lift_fresh"),
    *("aten::new_empty", "aten::new_full", "aten::new_zeros", "aten::ones", "aten::zeros"),
    *("aten::zeros_like", "aten::_to_copy", "aten::_unsafe_view", "aten::copy_"),
    *("aten::unsqueeze_", "aten::cat", "aten::constant_pad_nd", "aten::roll", "aten::stack"),
    *("aten::embedding", "aten::gather", "aten::index", "aten::index_put_", "aten::masked_fill"),
    *("aten::nonzero", "aten::scatter", "aten::scatter_", "aten::sort"),
    *("aten::floor_divide", "aten::rsub"),  # elementwise, not marked so by torch
}
