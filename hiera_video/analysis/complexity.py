"""Counting the parameters, multiply-adds and activations of a model, by module and by stage.

fvcore counts them in a trace of the forward pass, with the handlers of this file: its default
handlers silently ignore attention, 16 to 30 % of Hiera on video. Here an operator that is neither
counted nor in `NEGLIGIBLE` is an error. The model and its input may be on the meta device, on which
nothing is computed.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import Model
from hiera_video.models.mae import MaskedAutoencoderHiera

with warnings.catch_warnings():  # importing it compiles a loss by torch.jit.script, deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn.jit_analysis import JitModelAnalysis

Handler = Callable[[Sequence[Any], Sequence[Any]], "Counter[str]"]  # of inputs and outputs

LIBRARY = torch.library.Library("hiera_video", "FRAGMENT")
LIBRARY.define(
    "convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding,"
    " int[] dilation) -> Tensor"
)
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
    trained = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad(), _ScopesOfWeights(model):
            counts = analysis.by_module_and_operator()
    finally:
        for name, module in model.named_modules():
            module.training = trained[name]
    unknown = analysis.unsupported_ops()
    if unknown:
        where = {
            name: min((m for m in counts if analysis.unsupported_ops(m)[name]), key=_deepest_first)
            for name in sorted(unknown)
        }
        names = ", ".join(f"{name} in {module or 'the model'}" for name, module in where.items())
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
    encoder = model if isinstance(model, Hiera) else model.encoder
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
    encoder = model if isinstance(model, Hiera) else model.encoder
    prefix = "" if isinstance(model, Hiera) else "encoder."
    parts = {"patches": [f"{prefix}patch_embed"]}
    first = 0
    for stage, last in enumerate(encoder.stage_ends, start=1):
        parts[f"stage {stage}"] = [f"{prefix}blocks.{i}" for i in range(first, last + 1)]
        first = last + 1
    if isinstance(model, MaskedAutoencoderHiera):
        parts["fusion"] = ["multi_scale_fusion_heads", "encoder.norm"]
        names = ("decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred")
        parts["decoder"] = list(names)
    else:
        head = "head" if isinstance(model, Hiera) else "roi_head"
        parts["head"] = [f"{prefix}norm", head]
    stages = {part: sum((costs[name] for name in names), Cost()) for part, names in parts.items()}
    stages["rest"] = costs[""] - sum(stages.values(), Cost())
    return stages


class _ScopesOfWeights(TorchFunctionMode):
    """Makes a trace record convolutions on the meta device, and the modules that own weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners = {
            id(parameter): name
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (F.linear, F.conv1d, F.conv2d, F.conv3d):
            return func(*args, **kwargs)
        if func is not F.linear and args[0].is_meta:
            func = _convolution
        weights = [*args[1:3], kwargs.get("weight"), kwargs.get("bias")]
        owners = [self.owners[id(weight)] for weight in weights if id(weight) in self.owners]
        trace = torch._C._get_tracing_state()
        if not owners or trace is None:
            return func(*args, **kwargs)
        trace.push_scope(owners[0])
        try:
            return func(*args, **kwargs)
        finally:
            trace.pop_scope()


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution on the meta device as an operator that a trace records.

    torch's own, whose shape is computed in Python there, fails in a trace.
    """
    axes = weight.dim() - 2
    stride, padding, dilation = (
        [n] * axes if isinstance(n, int) else list(n) for n in (stride, padding, dilation)
    )
    return torch.ops.hiera_video.convolution(input, weight, bias, stride, padding, dilation)


@torch.library.impl(LIBRARY, "convolution", "Meta")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    sizes = []
    for axis, (step, added, spread) in enumerate(zip(stride, padding, dilation, strict=True)):
        size, kernel = int(input.shape[axis + 2]), int(weight.shape[axis + 2])
        sizes.append((size + 2 * added - spread * (kernel - 1) - 1) // step + 1)
    return input.new_empty(int(input.shape[0]), int(weight.shape[0]), *sizes)


def _deepest_first(name: str) -> tuple[int, str]:
    return -len(name.split(".")) if name else 0, name


# Handlers: functions of the inputs and outputs of a node of the trace.


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _elements(value: Any) -> int:
    return math.prod(_shape(value))


def _product(name: str, macs: int, output: Any) -> Counter[str]:
    return Counter({name: macs, "activations": _elements(output)})


def _convolutions(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Each output, or of a transposed one each input, meets the weights of one channel."""
    transposed = len(inputs) > 6 and inputs[6].toIValue()
    weight = _shape(inputs[1])  # [out, in / groups, *kernel]
    places = _elements(inputs[0] if transposed else outputs[0])
    return _product("convolution", places * math.prod(weight[1:]), outputs[0])


def _linear(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    return _product("linear", _elements(outputs[0]) * _shape(inputs[0])[-1], outputs[0])


def _addmm(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    return _linear(inputs[1:], outputs)


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """The product q k' over the width of q, and its product with v; without the softmax."""
    q, k, v = map(_shape, inputs[:3])  # [..., V, d], [..., U, d], [..., U, e]
    return _product("attention", math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]), outputs[0])


def _layer_norm(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    return Counter({"layer_norm": 5 * _elements(inputs[0])})


def _pooling(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    return Counter({"pooling": _elements(inputs[0])})


def _interpolation(taps: int) -> Handler:
    def handler(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        return Counter({"interpolation": taps * _elements(outputs[0])})

    return handler


def _roi_align(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Bilinear. Sampling ratio 0 counts as for boxes that fill the feature map."""
    height, width = _shape(inputs[0])[2:]
    rows, columns = _shape(outputs[0])[2:]
    ratio = inputs[5].toIValue()
    samples = ratio**2 if ratio > 0 else -(-height // rows) * -(-width // columns)
    return Counter({"interpolation": 4 * samples * _elements(outputs[0])})


HANDLERS: dict[str, Handler] = {
    "aten::_convolution": _convolutions,
    "hiera_video::convolution": _convolutions,
    "aten::linear": _linear,
    "aten::addmm": _addmm,
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
    "aten::layer_norm": _layer_norm,
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
    "torchvision::roi_align": _roi_align,
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
    "aten::unflatten",
    "aten::unfold",
)
