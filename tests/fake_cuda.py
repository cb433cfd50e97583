"""A CUDA device for tests on machines without one: its tensors hold their values on the CPU.

Code that runs `with FakeCuda() as cuda:` meets a device "cuda". Operations on its tensors compute
on the CPU, so that results are right and can be compared with those of the CPU. What a real device
would refuse, or wait for, is found:

* an operation on tensors of both devices raises `MixedDevices` (a CPU tensor without axes may meet
  those of the device, except in `cat`);
* `cuda.waits` lists what would stop the host until the device has caught up, with the line that
  asked for it.

torch's FakeTensorMode has no values, so that losses cannot be read, boxes not be suppressed and
scores not become arrays; and its backward pass fails where torch is built with CUDA and finds no
driver. Towards C++ the tensors here are on the device "meta", which every build can handle. That
is why autocast is done here, for the operations that are listed below.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT, SITE_PACKAGES = Path(__file__).parents[1], Path(torch.__file__).parents[1]
OWN = (__file__, contextlib.__file__, f"{SITE_PACKAGES / 'torch'}{os.sep}")
CUDA, META = torch.device("cuda", 0), torch.device("meta")  # for Python, towards C++
aten = torch.ops.aten

# Their result's shape depends on values, or is a value.
READS = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_}


# What autocast does on CUDA, of the lists in torch's documentation ("Autocast Op Reference").
LOWER = {"__matmul__", "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose2d"}
LOWER |= {"linear", "matmul", "mm", "scaled_dot_product_attention"}
UPPER = {"binary_cross_entropy_with_logits", "cross_entropy", "cumsum", "exp", "layer_norm", "log"}
UPPER |= {"log_softmax", "mse_loss", "norm", "normalize", "pow", "prod", "smooth_l1_loss"}
UPPER |= {"softmax", "sum"}


class MixedDevices(RuntimeError):
    """A CUDA device would refuse the tensors of an operation."""


@dataclass(frozen=True)
class Wait:
    """What the host would wait for."""

    what: str  # the operation
    where: str  # "hiera_video/training/loop.py", the file, outside of torch, that asked for it
    line: str  # the text of the line


class CudaTensor(Tensor):
    """A tensor of the device; its values are in `values`, on the CPU."""

    values: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda, is_meta, is_cpu = True, False, False  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> CudaTensor:
        size, stride, offset = values.size(), values.stride(), values.storage_offset()
        needed = offset + 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        with torch.inference_mode(False):  # torch refuses a subclass of an inference tensor
            memory = torch.empty(max(needed, 0), dtype=values.dtype, device=META)
            place = memory.as_strided(size, stride, offset)
            tensor = Tensor._make_subclass(cls, place, device_for_backend_keys=CUDA)
        tensor.values = values
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.values})"

    def get_device(self) -> int:
        return 0

    def record_stream(self, _: Any) -> None:
        """There is no memory that could be used too early."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} on a tensor of a FakeCuda that has ended")


class FakeCuda:
    """The device, while the block runs."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.operations = 0  # on the device
        self.is_meta = False  # whether the device "meta" is meant, and not this one
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with torch.device("cpu"):  # notes which functions take devices: the real `torch.empty`
            torch.empty(0)
        enter = self._exits.enter_context
        for module, name, value in _REPLACED:
            enter(mock.patch.object(module, name, value))
        for owner in (torch.cuda, _Event, _Stream):
            enter(mock.patch.object(owner, "synchronize", self._synchronize))
        enter(mock.patch.object(torch, "empty", _without_pinning(torch.empty)))
        enter(mock.patch.object(Tensor, "pin_memory", lambda tensor, *_: tensor))
        enter(_new_parameters())
        enter(_Dispatch(self))
        enter(_Functions(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    def _synchronize(self, *_: Any) -> None:
        self.wait("synchronize")

    def wait(self, what: str) -> None:
        """Notes that the host waits."""
        frame: FrameType | None = sys._getframe(1)
        while frame and frame.f_code.co_filename.startswith(OWN):
            frame = frame.f_back
        assert frame is not None
        path = Path(frame.f_code.co_filename)
        root = ROOT if path.is_relative_to(ROOT) else SITE_PACKAGES
        line = linecache.getline(str(path), frame.f_lineno).strip()
        self.waits.append(Wait(what, path.relative_to(root).as_posix(), line))

    def compute(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation on tensors of both kinds."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [leaf for leaf in leaves if isinstance(leaf, CudaTensor)]
        device = kwargs.get("device")
        to_device = bool(on_device) if device is None else torch.device(device) in (CUDA, META)
        operation = func.overloadpacket
        self.operations += bool(on_device)
        if operation not in COPIES:
            _check_devices(func, leaves)
        elif operation is aten.copy_:
            is_copy = isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor)
            blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            if is_copy and blocks and args[1].dim():
                self.wait("copy")
        elif bool(on_device) != to_device and not kwargs.get("non_blocking"):
            self.wait("copy to the device" if to_device else "copy to the host")
        if on_device and _reads(func, args, kwargs):
            self.wait(str(func))

        known = {id(leaf.values if isinstance(leaf, CudaTensor) else leaf): leaf for leaf in leaves}
        plain = {**kwargs, "device": torch.device("cpu")} if to_device and device else kwargs
        plain = {key: value for key, value in plain.items() if key != "pin_memory"}

        def result(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in known:
                return known[id(value)]
            return CudaTensor(value) if to_device else value

        values = _kernel(func)(*tree_map(_values, args), **tree_map(_values, plain))
        for tensor in on_device:
            if tensor.shape != tensor.values.shape:
                raise NotImplementedError(f"{func} changes the shape of a tensor in place")
        if bool(on_device) and not to_device:  # never the memory of the device itself
            values = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, values)
        return tree_map(result, values)


class _Dispatch(TorchDispatchMode):
    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.cuda.is_meta:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():  # what autograd would have taken apart before
            key = torch._C.DispatchKey.CompositeImplicitAutograd
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                with self:
                    return func._op_dk(key, *args, **kwargs)
        return self.cuda.compute(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """What does not reach the dispatcher, or would look for a driver on the way."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            with mock.patch.object(self.cuda, "is_meta", True):
                return func(*args, **kwargs)
        if func is Tensor.cuda:
            return args[0].to(META, non_blocking=kwargs.get("non_blocking", False))
        if func is Tensor.backward:
            # With this mode, which torch's own function leaves, for what is computed again.
            (loss,) = args
            engine: Any = torch.autograd.Variable._execution_engine
            with self:
                gradient = (torch.ones_like(loss),)
                engine.run_backward((loss,), gradient, False, False, (), True, accumulate_grad=True)
            return None
        if func is Tensor.tolist:
            return func(args[0].cpu())
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_device, args), tree_map(_device, kwargs)
        if func is Tensor.new_tensor:
            like, *args = args
            kwargs = {"dtype": like.dtype, "device": _device(like.device)} | kwargs
            func = torch.tensor
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") == META:
            del kwargs["device"]
            return func(*args, **kwargs).to(META)
        if torch.is_autocast_enabled("cuda") and func.__name__ in LOWER | UPPER:
            dtype = torch.float32 if func.__name__ in UPPER else torch.get_autocast_dtype("cuda")
            args, kwargs = tree_map(lambda a: _cast(a, dtype), (args, kwargs))
        return func(*args, **kwargs)


class _Stream:
    """Everything is done at once, in the order of the calls."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = CUDA

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def wait_stream(self, _: Any) -> None: ...
    def wait_event(self, _: Any) -> None: ...
    def synchronize(self) -> None: ...
    def is_capturing(self) -> bool:
        return False

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, _: Any = None) -> None: ...
    def wait(self, _: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, _: _Event) -> float:
        return 0.0

    def query(self) -> bool:
        return True


_REPLACED: list[tuple[Any, str, Any]] = [
    (torch.cuda, "is_available", lambda: True),
    (torch.cuda, "is_initialized", lambda: False),
    (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
    (torch.cuda, "is_current_stream_capturing", lambda: False),
    (torch.cuda, "device_count", lambda: 1),
    (torch.cuda, "current_device", lambda: 0),
    (torch.cuda, "set_device", lambda _: None),
    (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
    (torch.cuda, "get_device_name", lambda *_: "a fake GPU"),
    (torch.cuda, "manual_seed_all", lambda _: None),
    (torch.cuda, "Stream", _Stream),
    (torch.cuda, "Event", _Event),
    (torch.cuda, "current_stream", _Stream),
    (torch.cuda, "default_stream", _Stream),
    (torch.cuda, "stream", lambda stream: stream),
    (torch.cuda, "device", lambda _: _Stream()),
    (torch.accelerator, "current_stream", _Stream),
]


def _without_pinning(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Threads may ask for pinned memory, where no mode is active."""
    return lambda *size, pin_memory=False, **kwargs: empty(*size, **kwargs)


@contextmanager
def _new_parameters() -> Iterator[None]:
    """`module.to(device)` makes new parameters: these are no memory for those that are there."""
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        future.set_overwrite_module_params_on_conversion(before)


def _kernel(func: Any) -> Callable[..., Any]:
    """What computes it on CPU tensors; of this package's operators, what they do on CUDA."""
    key = torch._C.DispatchKey.CUDA
    is_ours = func.namespace == "hiera_video"
    if is_ours and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
        return partial(func._op_dk, key)
    return func


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_cast = isinstance(value, CudaTensor) and value.is_floating_point()
    return value.to(dtype) if is_cast and value.dtype != torch.float64 else value


def _values(value: Any) -> Any:
    return value.values if isinstance(value, CudaTensor) else value


def _device(value: Any) -> Any:
    """The device towards C++, for an argument that names CUDA."""
    if isinstance(value, torch.device):
        return META if value.type == "cuda" else value
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return META
    return value


def _check_devices(func: Any, tensors: Sequence[Tensor]) -> None:
    """Raises MixedDevices if a real device would refuse these tensors."""
    may_be_scalar = func.overloadpacket not in (aten.cat, aten.stack)
    found = {t.device.type: t for t in tensors if t.dim() or not may_be_scalar}
    if len(found) > 1 and any(isinstance(t, CudaTensor) for t in tensors):
        listed = ", ".join(f"{list(t.shape)} on {device}" for device, t in found.items())
        raise MixedDevices(f"{func} takes tensors of both devices: {listed}")


def _reads(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the device must be waited for to know the result, or its shape."""
    operation = func.overloadpacket
    if operation in INDEXING:
        indices = tree_leaves(args[1])
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
    if operation is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return operation in READS or (func.namespace == "torchvision" and "nms" in func.name())
