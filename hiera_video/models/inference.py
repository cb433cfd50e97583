"""A trained model as programs use it: bytes in, on the device, in its precision, maybe compiled."""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from hiera_video.models.blocks import HieraBlock
from hiera_video.models.hiera import Trainable
from hiera_video.models.normalize import Normalize
from hiera_video.runtime.compiler import cache_folder, check_compiler
from hiera_video.runtime.precision import DTYPES
from hiera_video.settings.training import Arithmetic

logger = logging.getLogger(__name__)


def call(model: nn.Module, clips: Tensor, *others: Tensor) -> Any:
    """The forward pass of the model itself."""
    return model(clips, *others)


@dataclass
class InferenceModel:
    """Clips of bytes to the outputs of a model, without gradients.

    In bf16 and fp16 a copy of the model has its weights in that type, so that nothing is cast from
    call to call; what the model lists as `in_float32` stays in float32, as do all inputs but clips.

    Args:
        model: takes normalised clips. Left as it is where it is copied, else put on the device and
            into evaluation mode.
        normalize: with the mean and standard deviation that the model expects.
        device: where the model runs.
        precision: "bf16", "fp16", "fp32" or "tf32". The last two are the same here: whether TF32 is
            used is a setting of the process, see `runtime.precision.set_tf32`.
        run: what to do with the model (on the device), normalised clips and further inputs.
            Without such inputs, its output has an entry for each clip.
        compile: by torch.compile, one graph for batches of `batch_size`, to which smaller ones are
            padded; on CUDA as a CUDA graph, which belongs to a thread: one thread makes all calls.
            The first call takes a minute or more. Of detectors and segmenters, whose heads have
            another number of boxes in each call, the encoder.
        batch_size: the most clips in a call.

    Raises:
        ConfigError: `compile` without a compiler.
    """

    model: nn.Module
    normalize: Normalize
    _: KW_ONLY
    device: torch.device
    batch_size: int
    precision: Arithmetic = "fp32"
    compile: bool = False
    run: Callable[..., Any] = call

    def __post_init__(self) -> None:
        if self.compile:
            check_compiler(self.device, "compile is true", "write compile=false")
        self.dtype = DTYPES[self.precision]
        if self.dtype != torch.float32:
            self.model = copy_in(self.model, self.device, self.dtype)
        self.model.to(self.device).eval()
        self.normalize.to(self.device)
        self._function, self._was_called = self._compute, False
        if self.compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else None  # CUDA graphs
            if isinstance(self.model, Trainable) and not self.model.compiles_whole:
                self.model.compile(dynamic=False, mode=mode)
            else:
                self._function = torch.compile(self._compute, dynamic=False, mode=mode)

    @torch.inference_mode()
    def __call__(self, clips: UInt8[Tensor, "B T H W C"], *others: Tensor) -> Any:
        """What `run` returns, on the device; `clips` are there, or on the host, pinned or not."""
        if not self.compile:
            return self._compute(clips.to(self.device, non_blocking=True), *others)
        count = len(clips)
        clips = self._full_batch(clips)
        with self._first_call_timed():
            if self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            outputs = self._function(clips, *others)
        if not others:
            outputs = outputs[:count]
        return outputs.clone() if isinstance(outputs, Tensor) else outputs  # graphs reuse memory

    @torch.inference_mode(False)
    def _full_batch(self, clips: Tensor) -> Tensor:
        """The clips on the device, and zeros up to `batch_size`.

        They are no tensors of inference mode, for which torch.compile would make another graph.
        """
        clips = clips.to(self.device, non_blocking=True)
        if len(clips) < self.batch_size:
            padding = clips.new_zeros(self.batch_size - len(clips), *clips.shape[1:])
            clips = torch.cat([clips, padding])
        return clips.clone() if clips.is_inference() else clips

    def _compute(self, clips: Tensor, *others: Tensor) -> Any:
        return self.run(self.model, self.normalize(clips, self.dtype), *others)

    @contextlib.contextmanager
    def _first_call_timed(self) -> Iterator[None]:
        if self._was_called:
            yield
            return
        logger.info("compiling the model for batches of %d", self.batch_size)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._was_called = True
        seconds = time.perf_counter() - start
        logger.info("compiled in %.1f s; the next start finds it in %s", seconds, cache_folder())


def copy_in(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy on the device whose numbers are in `dtype`, but those of the parts `in_float32`.

    The copy is not compiled, also if the model is.
    """
    kept = tuple(f"{part}." for part in getattr(model, "in_float32", ()))
    folded = dict[str, Tensor]()
    for name, module in model.named_modules():
        if isinstance(module, HieraBlock):
            parts = module.without_affine_norms()
            folded |= {f"{name}.{key}": value for key, value in parts.items()}
    memo: dict[int, Any] = {}  # what takes the place of a tensor in the copy
    for name, parameter in model.named_parameters():
        value = folded.get(name, parameter).detach()
        value = value.to(device, torch.float32 if name.startswith(kept) else dtype)
        memo[id(parameter)] = nn.Parameter(value, requires_grad=False)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        module._compiled_call_impl = None
        for name in ("encode", "feature_map"):
            module.__dict__.pop(name, None)
    return copied
