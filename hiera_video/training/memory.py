"""How much memory a training step needs, without taking one.

The forward and backward pass of a part of a step run on fake tensors, which have shapes, types and
a device, but no values and no memory. The operators are those of a real step, the kernels of
attention and what checkpoints compute again among them; each storage is counted while it lives.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiera_video.data.batches import ClipBatch, DetectionBatch
from hiera_video.errors import UserError, counted
from hiera_video.models.layers import autocast_off
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.segmenter import InstanceSegmenter
from hiera_video.runtime.compiler import uncompiled
from hiera_video.runtime.distributed import Process
from hiera_video.runtime.memory import GIB, is_full, memory_of, where
from hiera_video.runtime.precision import autocast
from hiera_video.training.losses import DetectionLoss, InstanceLoss, ReconstructionLoss
from hiera_video.training.task import Task

STATES = {"adamw": 2, "sgd": 1}  # tensors that an optimizer keeps for each parameter
WEIGHED = 0.9  # of the device's memory: the rest is for its libraries, and lost between tensors


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a process needs in a training step."""

    weights: int  # parameters and buffers
    gradients: int
    optimizer: int  # its state, and the moving average of the weights if there is one
    activations: int  # the most that a part of the step needs beside these
    num_clips: int  # of a part

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def of_clips(self, num_clips: int) -> int:
        """The total for parts of so many clips; activations are proportional to these."""
        others = self.total - self.activations
        return others + round(self.activations * num_clips / self.num_clips)

    def to_json(self) -> dict[str, int]:
        names = ("weights", "gradients", "optimizer", "activations", "total")
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        """In GiB."""
        weights, gradients, optimizer, activations, total = (
            f"{size / GIB:.2f}" for size in self.to_json().values()
        )
        return (
            f"memory of a process, estimated: weights {weights} + gradients {gradients} + "
            f"optimizer {optimizer} + activations {activations} "
            f"({counted(self.num_clips, 'clip')} in a forward pass) = {total} GiB"
        )


def step_memory(task: Task, model: Model, process: Process) -> StepMemory:
    """The memory of a step of a run, with `torch.compile` off, from the model on any device.

    Without the memory of CUDA's libraries, and of the targets of Mask R-CNN.
    """
    settings = task.settings
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    optimizer = STATES[settings.optim.optimizer] * gradients
    if task.ema_decay is not None:
        optimizer += weights
    num_clips = clips_of_part(task, process, settings.train.accumulation_steps)
    activations = activation_bytes(task, model, num_clips, process)
    return StepMemory(weights, gradients, optimizer, activations, num_clips)


def clips_of_part(task: Task, process: Process, num_parts: int) -> int:
    """Clips of a forward pass, with `num_parts` parts of a step in each process."""
    loop = task.settings.train
    size = min(loop.global_batch_size, task.num_records)
    return -(-size // (process.world_size * num_parts)) * loop.num_repeats


def activation_bytes(task: Task, model: Model, num_clips: int, process: Process) -> int:
    """The peak of a forward and backward pass, beside the model and its gradients."""
    device = process.device
    if device.type != "cuda":
        device = torch.device("cpu")  # also for Apple's GPUs
    loss = task.loss(model, device)
    encoder = encoder_of(model)
    # Autograd counts the devices in its first pass, and starts threads for them: with fake tensors,
    # also for devices that do not exist.
    torch.zeros((), requires_grad=True).backward()
    with (
        # Checkpoints restore the state of a generator, which is no fake tensor.
        patch("torch.cuda.set_rng_state"),
        FakeTensorMode(allow_non_fake_inputs=True),
        PeakBytes(device.type) as counter,
    ):
        tensors = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if tensor.requires_grad:
                fake.requires_grad_().register_post_accumulate_grad_hook(_drop_gradient)
            tensors[f"model.{name}"] = fake
        before = counter.live
        clips = torch.empty(num_clips, *encoder.input_size, encoder.in_chans, dtype=torch.uint8)
        step = _Step(model, loss, autocast(device, process.precision))
        functional_call(step, tensors, (clips,))
    return counter.peak - before


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators make on a type of device; `peak` is the most."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == self.device_type:
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def free(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


class _Step(nn.Module):
    """A forward and backward pass: one call, because checkpoints use weights in both."""

    def __init__(self, model: Model, loss: Any, autocast: torch.autocast) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast

    def forward(self, clips: Tensor) -> None:
        with self.autocast:
            loss = self._loss(clips)
        loss.backward()

    def _loss(self, clips: Tensor) -> Tensor:
        """Of black clips, with one box each."""
        model: Any = self.model
        loss, num_clips = self.loss, len(clips)
        names = [""] * num_clips
        if isinstance(loss, ReconstructionLoss):
            kept = torch.arange(loss.masking.num_visible, device=loss.device).expand(num_clips, -1)
            return loss.of_units(model, loss.normalize(clips.to(loss.device)), kept)
        if isinstance(loss, InstanceLoss):
            return _outputs_of_heads(model, loss.normalize(clips.to(loss.device)))
        batch: Any = ClipBatch(clips, [(0,)] * num_clips, names)
        if isinstance(loss, DetectionLoss):
            boxes, clip_of_box = torch.rand(num_clips, 4), torch.arange(num_clips)
            batch = DetectionBatch(clips, boxes, clip_of_box, [(1,)] * num_clips, names)
        return loss(model, batch, np.random.default_rng(0))


def _outputs_of_heads(model: InstanceSegmenter, x: Tensor) -> Tensor:
    """The sum of what the heads of Mask R-CNN compute, of as many boxes as a step has at most.

    Which boxes these are depends on values, which fake tensors do not have.
    """
    maps, heads = model.feature_maps(x), model.roi_heads
    first = maps["0"]
    with autocast_off(x):
        objectness, deltas = model.rpn.head(list(maps.values()))
        num_boxes = len(x) * model.num_boxes
        boxes = first.new_empty(num_boxes, model.channels, 7, 7).requires_grad_()
        num_masks = round(num_boxes * heads.fg_bg_sampler.positive_fraction)
        side = heads.mask_roi_pool.output_size
        masks = first.new_empty(num_masks, model.channels, *side).requires_grad_()
        outputs = [
            *objectness,
            *deltas,
            *heads.box_predictor(heads.box_head(boxes)),
            heads.mask_predictor(heads.mask_head(masks)),
        ]
        return torch.stack([output.sum() for output in outputs]).sum()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None  # gradients are counted apart


def warning(memory: StepMemory, task: Task, process: Process) -> str | None:
    """What to change if a step does not fit into the memory of the device; None if it does."""
    size = _memory_of_process(process)
    if size is None or memory.total <= WEIGHED * size:
        return None
    return (
        f"a step needs about {memory.total / GIB:.1f} GiB, which does not fit on "
        f"{where(process.device)}: {advice(memory, task, process)}"
    )


@contextmanager
def steps_that_fit(task: Task, model: Model, process: Process) -> Iterator[None]:
    """Turns an error of full memory into a UserError that names settings with which a step fits."""
    try:
        yield
    except RuntimeError as error:
        if not is_full(error):
            raise
        with uncompiled(task.settings.train.compile):
            memory = step_memory(task, model, process)
        raise UserError(
            f"out of memory on {where(process.device)} with {counted(memory.num_clips, 'clip')} in "
            f"a forward pass: {advice(memory, task, process)}"
        ) from error


def advice(memory: StepMemory, task: Task, process: Process) -> str:
    """Settings with which a step needs less memory, the first that fit by the estimate."""
    loop, processes = task.settings.train, process.world_size
    size, changes = _memory_of_process(process), []
    parts = [
        number
        for number in range(loop.accumulation_steps + 1, loop.global_batch_size + 1)
        if loop.global_batch_size % (processes * number) == 0
        and clips_of_part(task, process, number) < memory.num_clips
    ]
    needed = {n: memory.of_clips(clips_of_part(task, process, n)) for n in parts}
    fitting = [n for n in parts if size is None or needed[n] <= WEIGHED * size]
    if parts:
        number = fitting[0] if fitting else parts[-1]
        clips = counted(clips_of_part(task, process, number), "clip")
        changes.append(
            f"train.accumulation_steps={number} ({clips}: about {needed[number] / GIB:.1f} GiB)"
        )
    if not task.settings.model.grad_checkpointing:
        changes.append("model.grad_checkpointing=true")
    if not changes:
        return "take a smaller model, or more memory"
    joined = " or ".join(changes) if fitting else " and ".join(changes)
    return f"set {joined}"


def _memory_of_process(process: Process) -> int | None:
    """Bytes; processes of a machine share what its CPUs have."""
    size = memory_of(process.device)
    if size is None or process.device.type != "cpu":
        return size
    return size // process.local_world_size
