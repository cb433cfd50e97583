"""Counting the parameters, multiply-adds and activations of a model, by module and by stage.

fvcore counts them in a trace of the forward pass, with the handlers of this file: its default
handlers silently ignore attention, 16 to 30 % of Hiera on video. Here an operator that is neither
counted nor in `NEGLIGIBLE` is an error. The model and its input may be on the meta device; then
nothing but convolutions is computed.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.mae import MaskedAutoencoderHiera

with warnings.catch_warnings():  # importing it compiles a loss by torch.jit.script, deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn.jit_analysis import JitModelAnalysis
    from fvcore.nn.jit_handles import Handle, conv_flop_jit, elementwise_flop_counter, get_shape

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
    analysis = JitModelAnalysis(model, inputs)
    analysis.set_op_handle(**HANDLERS).set_op_handle(**dict.fromkeys(NEGLIGIBLE))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), _CallsOfOwners(model):
            counts = analysis.by_module_and_operator()
    finally:
        for module in trained:
            module.training = True
    outer_first = sorted(counts, key=len)
    unknown = {name: module for module in outer_first for name in analysis.unsupported_ops(module)}
    if unknown:
        names = ", ".join(f"{name} in {unknown[name] or 'the model'}" for name in sorted(unknown))
        raise NotImplementedError(
            f"not counted: {names}: add a handler, or the name to NEGLIGIBLE, in {__name__}"
        )
    costs = {}
    for name, module in model.named_modules():
        operations = Counter(counts[name])
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
    encoder = encoder_of(model)
    prefix = "" if isinstance(model, Hiera) else "encoder."
    parts = {"patches": [f"{prefix}patch_embed"]}
    for stage, (before, last) in enumerate(pairwise((-1, *encoder.stage_ends)), start=1):
        parts[f"stage {stage}"] = [f"{prefix}blocks.{i}" for i in range(before + 1, last + 1)]
    if isinstance(model, MaskedAutoencoderHiera):
        parts["fusion"] = ["multi_scale_fusion_heads", "encoder.norm"]
        parts["decoder"] = ["decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"]
    else:
        head = "head" if isinstance(model, Hiera) else "roi_head"
        parts["head"] = [f"{prefix}norm", head]
    stages = {part: sum((costs[name] for name in names), Cost()) for part, names in parts.items()}
    stages["rest"] = costs[""] - sum(stages.values(), Cost())
    return stages


class _CallsOfOwners(TorchFunctionMode):
    """Makes products run as calls of the modules that own their weights, and convolutions on meta.

    A trace of a convolution on the meta device fails; in its place runs one of zeros on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners = {
            id(parameter): module
            for module in model.modules()
            for parameter in module.parameters(recurse=False)
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (F.linear, F.conv1d, F.conv2d, F.conv3d):
            return func(*args, **kwargs)
        weights = map(id, (*args[1:3], kwargs.get("weight"), kwargs.get("bias")))
        owner = next((self.owners[w] for w in weights if w in self.owners), nn.Identity())
        to_meta = func is not F.linear and args[0].is_meta
        if to_meta:
            args = [_zeros(value) for value in args]
            kwargs = {key: _zeros(value) for key, value in kwargs.items()}
        with patch.object(owner, "forward", func):
            result = owner(*args, **kwargs)
        return result.to("meta") if to_meta else result


def _zeros(value: Any) -> Any:
    """Zeros on the CPU, without memory of their own, in place of a tensor."""
    if not isinstance(value, Tensor):
        return value
    return torch.zeros((), dtype=value.dtype, device="cpu").expand(value.shape)


# Handlers: functions of the inputs and outputs of a node of the trace.


def _named(name: str, operations: Handle) -> Handle:
    """Names what a handler counts, and adds the activations of products."""

    def handler(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        counts = Counter({name: operations(inputs, outputs)})
        if name in PRODUCTS:
            counts["activations"] = math.prod(get_shape(outputs[0]))
        return counts

    return handler


def _macs_of_matrices(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _macs_of_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """The product q k' over the width of q, and its product with v; without the softmax."""
    q, k, v = map(get_shape, inputs[:3])  # [..., V, d], [..., U, d], [..., U, e]
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _values_of_roi_align(inputs: list[Any], outputs: list[Any]) -> int:
    """Bilinear. Sampling ratio 0 counts as for boxes that fill the feature map."""
    height, width = get_shape(inputs[0])[2:]
    rows, columns = get_shape(outputs[0])[2:]
    ratio = inputs[5].toIValue()
    samples = ratio**2 if ratio > 0 else -(-height // rows) * -(-width // columns)
    return 4 * samples * math.prod(get_shape(outputs[0]))


_convolution = _named("convolution", lambda i, o: conv_flop_jit(i, o)["conv"])
_linear = _named("linear", _macs_of_matrices)
_attention = _named("attention", _macs_of_attention)
_pooling = _named("pooling", elementwise_flop_counter(1, 0))


def _interpolation(taps: int) -> Handle:
    return _named("interpolation", elementwise_flop_counter(0, taps))


HANDLERS: dict[str, Handle] = {
    "aten::_convolution": _convolution,
    "aten::linear": _linear,
    "aten::addmm": lambda inputs, outputs: _linear(inputs[1:], outputs),
    "aten::mm": _linear,
    "aten::bmm": _linear,
    "aten::matmul": _linear,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_attention_math": _attention,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "hiera_video::panel_attention": _attention,
    "aten::layer_norm": _named("layer_norm", elementwise_flop_counter(5, 0)),
    "aten::max": _pooling,
    "aten::amax": _pooling,
    "aten::mean": _pooling,
    "aten::adaptive_avg_pool1d": _pooling,
    "aten::adaptive_avg_pool2d": _pooling,
    "aten::adaptive_avg_pool3d": _pooling,
    "aten::upsample_linear1d": _interpolation(2),
    "aten::upsample_bilinear2d": _interpolation(4),
    "aten::upsample_trilinear3d": _interpolation(8),
    "aten::upsample_bicubic2d": _interpolation(16),
    "aten::_upsample_bicubic2d_aa": _interpolation(16),  # of the kernel that enlarges
    "torchvision::roi_align": _named("interpolation", _values_of_roi_align),
}

# Elementwise sums, products and GELU, 0.1 % of the products of hiera_base_16x224 at one operation
# each, and operators on sizes and indices or without arithmetic; fvcore itself ignores more.
NEGLIGIBLE = (
    "aten::add",
    "aten::argsort",
    "aten::embedding",
    "aten::expand_as",
    "aten::gelu",
    "aten::lift_fresh",
    "aten::mul",
    "aten::mul_",
    "aten::pad",
    "aten::rsub",
    "aten::scatter",
    "aten::scatter_",
    "aten::sub",
    "aten::tile",
    "aten::unflatten",
    "aten::unfold",
)
