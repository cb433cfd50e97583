"""The estimate of a step's memory against what torch allocates, and what is advised from it."""

from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hiera_video.errors import UserError
from hiera_video.models import attention
from hiera_video.models.masking import UnitMasking
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import (
    create_autoencoder,
    create_detector,
    create_model,
    create_segmenter,
)
from hiera_video.runtime.distributed import Process
from hiera_video.runtime.precision import autocast
from hiera_video.settings.training import Augment, Loop, Optim
from hiera_video.training import memory
from hiera_video.training.losses import (
    ClassificationLoss,
    DetectionLoss,
    InstanceLoss,
    ReconstructionLoss,
)
from hiera_video.training.memory import GIB, StepMemory, activation_bytes, advice, step_memory

CPU = torch.device("cpu")
ALONE = Process(0, 1, 1, CPU)
SMALL = {"embed_dim": 16, "num_heads": 1, "stages": [1, 1, 2, 1], "image_size": 64}


def loss_of(model, device):
    normalize = Normalize([0.5] * 3, [0.2] * 3)
    kind = type(model).__name__
    if kind == "MaskedAutoencoderHiera":
        masking = UnitMasking(model.encoder.units_shape, 0.9)
        return ReconstructionLoss(model, masking, normalize=normalize, device=device)
    if kind == "ActionDetector":
        num_classes = model.num_classes
        return DetectionLoss(num_classes=num_classes, normalize=normalize, device=device)
    if kind == "InstanceSegmenter":
        return InstanceLoss(normalize=normalize, device=device)
    num_classes = model.num_classes
    return ClassificationLoss(
        Augment(), num_classes=num_classes, normalize=normalize, device=device
    )


def task_of(*, num_records=1000, grad_checkpointing=False, ema_decay=None, optim=None, **loop):
    settings = SimpleNamespace(
        train=Loop(**{"global_batch_size": 4, "num_repeats": 1} | loop),
        optim=optim or Optim(),
        model=SimpleNamespace(grad_checkpointing=grad_checkpointing),
    )
    return SimpleNamespace(
        settings=settings, loss=loss_of, num_records=num_records, ema_decay=ema_decay
    )


def allocated(task, model, num_clips, precision):
    """The peak of torch's allocator in a real step, gradients of parameters freed at once."""
    step = memory._Step(model, task.loss(model, CPU), autocast(CPU, precision))
    hooks = [
        parameter.register_post_accumulate_grad_hook(memory._drop_gradient)
        for parameter in model.parameters()
    ]
    encoder = getattr(model, "encoder", model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(torch.zeros(num_clips, *encoder.input_size, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "create",
    [
        lambda: create_model("hiera_tiny_16x224", num_classes=5, drop_path=0.1, **SMALL),
        lambda: create_autoencoder(
            "hiera_tiny_16x224", decoder_heads=2, decoder_dim=32, decoder_depth=2, **SMALL
        ),
        lambda: create_detector("hiera_tiny_16x224", num_classes=5, **SMALL),
    ],
    ids=["classifier", "autoencoder", "detector"],
)
def test_the_estimate_is_what_a_step_allocates(monkeypatch, create, precision):
    model, task, error = create().train(), task_of(), 0.04
    process = Process(0, 1, 1, CPU, precision=precision)
    # Buffers inside of kernels are not counted, such as panels of scores: 16 MiB at most.
    monkeypatch.setattr(attention, "PANEL_ELEMENTS", 1)
    plain = activation_bytes(task, model, 4, process)
    assert plain == pytest.approx(allocated(task, model, 4, precision), rel=error)
    assert activation_bytes(task, model, 8, process) == pytest.approx(2 * plain, rel=0.05)
    model.set_grad_checkpointing()
    less = activation_bytes(task, model, 4, process)
    assert less < 0.9 * plain
    assert less == pytest.approx(allocated(task, model, 4, precision), rel=error)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("create", "clips", "measured_gib"),
    [
        (lambda: create_model("hiera_base_16x224"), 8, 8.0),
        (lambda: create_autoencoder("hiera_base_16x224", decoder_heads=8), 16, 7.0),
    ],
    ids=["finetuning", "pretraining"],
)
def test_against_an_h100(create, clips, measured_gib):
    """Peaks above the loaded model in float32, with gradients that accumulate from none."""
    with torch.device("meta"):
        model = create().train()
    peak = activation_bytes(task_of(), model, clips, ALONE)
    assert peak / GIB == pytest.approx(measured_gib, rel=0.15)


def test_a_segmenter_has_its_heads():
    torch.manual_seed(0)
    create = {"num_classes": 3, "image_size": 64, "channels": 8, "hidden": 16}
    model = create_segmenter("hiera_tiny_224", **create).train()
    peak = activation_bytes(task_of(), model, 2, ALONE)
    model.num_boxes //= 2
    with_fewer = activation_bytes(task_of(), model, 2, ALONE)
    assert with_fewer < 0.95 * peak


def test_weights_gradients_and_optimizer():
    model = create_model("hiera_tiny_16x224", num_classes=5, **SMALL).train()
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    found = step_memory(task_of(), model, ALONE)
    assert (found.weights, found.gradients, found.optimizer) == (weights, weights, 2 * weights)
    assert found.total == 4 * weights + found.activations
    sgd = Optim(optimizer="sgd")
    assert step_memory(task_of(optim=sgd, ema_decay=0.9), model, ALONE).optimizer == 2 * weights
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("head" in name)
    head = 4 * sum(parameter.numel() for parameter in model.head.parameters())
    less = step_memory(task_of(), model, ALONE)
    assert (less.weights, less.gradients, less.optimizer) == (weights, head, 2 * head)
    assert less.activations < found.activations / 2


@pytest.mark.parametrize(
    ("task", "process", "clips"),
    [
        (task_of(global_batch_size=24, num_repeats=2), ALONE, 48),
        (task_of(global_batch_size=24, num_repeats=2, accumulation_steps=3), ALONE, 16),
        (task_of(global_batch_size=24, accumulation_steps=3), Process(0, 4, 4, CPU), 2),
        (task_of(global_batch_size=24, accumulation_steps=2, num_records=5), ALONE, 3),
    ],
)
def test_clips_of_a_part(task, process, clips):
    assert memory.clips_of_part(task, process, task.settings.train.accumulation_steps) == clips


def advised(monkeypatch, gib, process=ALONE, **settings):
    """For 24 clips of 1 GiB each, beside 2 GiB that clips do not change."""
    monkeypatch.setattr(memory, "memory_of", lambda device: gib and gib * GIB)
    task = task_of(**{"global_batch_size": 24} | settings)
    clips = memory.clips_of_part(task, process, task.settings.train.accumulation_steps)
    return advice(StepMemory(GIB, GIB, 0, clips * GIB, clips), task, process)


def test_the_first_number_of_parts_that_fits(monkeypatch):
    half = "train.accumulation_steps=2 (12 clips: about 14.0 GiB)"
    assert advised(monkeypatch, 20) == f"set {half} or model.grad_checkpointing=true"
    assert advised(monkeypatch, None) == f"set {half} or model.grad_checkpointing=true"
    # 5 and 7 do not divide 24.
    eighth = "train.accumulation_steps=6 (4 clips: about 6.0 GiB)"
    assert advised(monkeypatch, 7) == f"set {eighth} or model.grad_checkpointing=true"
    assert advised(monkeypatch, 20, grad_checkpointing=True) == f"set {half}"
    # Processes share the step, and on a CPU its memory.
    found = advised(monkeypatch, 20, Process(0, 2, 2, CPU))
    assert found.startswith("set train.accumulation_steps=2 (6 clips: about 8.0 GiB) or")


def test_nothing_fits(monkeypatch):
    one = "train.accumulation_steps=24 (1 clip: about 3.0 GiB)"
    assert advised(monkeypatch, 2) == f"set {one} and model.grad_checkpointing=true"
    assert advised(monkeypatch, 2, grad_checkpointing=True) == f"set {one}"
    last = {"accumulation_steps": 24, "grad_checkpointing": True}
    assert advised(monkeypatch, 2, **last) == "take a smaller model, or more memory"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_an_error_of_full_memory_says_what_fits(monkeypatch, error, compiled):
    model = create_model("hiera_tiny_16x224", num_classes=5, **SMALL).train()
    task = task_of(compile=compiled)
    if compiled:
        model.compile(backend="eager")
    with (
        pytest.raises(UserError, match=r"out of memory on cpu \(.* GiB\) with 4 clips in a") as e,
        memory.steps_that_fit(task, model, ALONE),
    ):
        raise error
    assert "train.accumulation_steps=2 (2 clips: about 0." in str(e.value)


def test_other_errors_stay(monkeypatch):
    with pytest.raises(RuntimeError, match="shape"), memory.steps_that_fit(None, None, ALONE):
        raise RuntimeError("shape")


def test_a_step_that_does_not_fit_is_a_warning(monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda device: 10 * GIB)
    found = StepMemory(GIB, GIB, GIB, 6 * GIB, 4)
    assert memory.warning(found, task_of(), ALONE) is None
    text = memory.warning(found, task_of(), Process(0, 2, 2, CPU))
    assert text.startswith("a step needs about 9.0 GiB, which does not fit on cpu (")
    assert "train.accumulation_steps=2" in text
