"""Models on a GPU: numbers, graphs, memory, and a step that never waits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiera_video.data.batches import ClipBatch
from hiera_video.models.inference import InferenceModel
from hiera_video.models.mae import reconstruction_losses
from hiera_video.models.masking import UnitMasking, kept_units
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_autoencoder, create_detector, create_model
from hiera_video.runtime.distributed import Process
from hiera_video.runtime.precision import autocast
from hiera_video.settings.training import Arithmetic, Augment, Loop, Optim
from hiera_video.training.loop import train_steps
from hiera_video.training.losses import ClassificationLoss, ReconstructionLoss
from hiera_video.training.optim import build_optimizer

TINY: dict[str, Any] = {"num_frames": 4, "image_size": 64, "embed_dim": 16}
NORMALIZE = {"mean": (0.45,) * 3, "std": (0.225,) * 3}
GIB = 2**30
# Error against float32 on the CPU, in standard deviations: 1.5 times what an H100 gave (1.6e-7,
# 1.7e-2, 1.6e-3; for float32 rounded up to what another order of the sums may give).
LIMITS: dict[Arithmetic, float] = {"fp32": 1e-5, "bf16": 2.6e-2, "fp16": 2.4e-3}
MODELS = ["classifier", "pixels", "hog", "detector"]


class Reconstruction(nn.Module):
    """The losses of an autoencoder."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        targets = self.autoencoder.targets(x, kept)
        return reconstruction_losses(self.autoencoder(x, kept), targets)


def visible_units(model: Any, batch: int, ratio: float) -> Tensor:
    masking, rng = UnitMasking(model.encoder.units_shape, ratio), np.random.default_rng(0)
    return torch.from_numpy(np.stack([masking(rng) for _ in range(batch)]))


def case(name: str, size: str, batch: int = 2) -> tuple[Any, list[Tensor]]:
    """A model in evaluation mode with values in all parameters, and its inputs."""
    torch.manual_seed(0)
    changes = {"base": {}, "short": {"stages": (1, 1, 1, 1)}, "tiny": TINY}[size]
    variant = f"hiera_{'tiny' if size == 'tiny' else 'base'}_16x224"
    others: list[Tensor] = []
    model: Any
    if name == "classifier":
        model = encoder = create_model(variant, num_classes=400, **changes)
    elif name == "detector":
        model = create_detector(variant, num_classes=80, **changes)
        encoder = model.encoder
        boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0], [0.5, 0.4, 0.6, 0.5]])
        others = [boxes, torch.tensor([0, 1, 1])]
    else:
        autoencoder = create_autoencoder(variant, decoder_heads=8, target=name, **changes)
        model, encoder = Reconstruction(autoencoder), autoencoder.encoder
        others = [kept_units(visible_units(autoencoder, batch, 0.5))]
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.02 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return model.eval(), [torch.randn(batch, 3, *encoder.input_size), *others]


def results(
    model: nn.Module, inputs: list[Tensor], device: torch.device, precision: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradients of all parameters in a row; float64 on the CPU."""
    model = copy.deepcopy(model).to(device)
    with autocast(device, precision):
        outputs = model(*(value.to(device) for value in inputs))
    outputs.float().square().sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return outputs.detach().double().cpu(), torch.cat(gradients).double().cpu()


def error(found: Tensor, right: Tensor) -> float:
    """Root of the mean square, in those of the right values."""
    return float((found - right).square().mean().sqrt() / right.square().mean().sqrt())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_the_cpu(
    name: str, device: torch.device, size: str, unchecked_shapes: None
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, inputs = case(name, size)
    right = results(model, inputs, torch.device("cpu"), "fp32")
    for precision in ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16"):
        outputs, gradients = results(model, inputs, device, precision)
        assert error(outputs, right[0]) <= LIMITS[precision], precision
        # Of HOG a pixel may count for the next bin; gradients add up the roundings of all tokens.
        assert error(gradients, right[1]) <= 5 * LIMITS[precision], precision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_inference(
    precision: Arithmetic, device: torch.device, compiled_size: str, unchecked_shapes: None
) -> None:
    """Also of a smaller batch, to which nothing is compiled again."""
    model, _ = case("classifier", compiled_size)
    clips = torch.randint(0, 256, (4, *model.input_size, 3), dtype=torch.uint8)
    how = {"device": device, "batch_size": 4, "precision": precision}
    plain, compiled = (
        InferenceModel(copy.deepcopy(model), Normalize(**NORMALIZE), compile=compile, **how)
        for compile in (False, True)
    )
    for count in (4, 1, 3):
        right = plain(clips[:count]).double().cpu()
        assert error(compiled(clips[:count]).double().cpu(), right) <= LIMITS[precision]


@pytest.mark.parametrize("name", MODELS)
def test_one_graph(
    name: str, device: torch.device, compiled_size: str, unchecked_shapes: None
) -> None:
    torch._dynamo.reset()
    model, inputs = case(name, compiled_size)
    if name == "detector":  # of boxes, whose number changes, the head is not compiled
        model, inputs = model.feature_map, inputs[:1]
    else:
        model = model.to(device)
    module = getattr(model, "__self__", model).to(device)
    found = torch._dynamo.explain(model)(*(value.to(device) for value in inputs))
    assert isinstance(module, nn.Module)
    assert found.graph_break_count == 0, found.break_reasons


def training(
    name: str, device: torch.device, size: str, batch: int, *, compile: bool = False
) -> Any:
    """Reports of training steps in bf16, without an end."""
    torch.manual_seed(0)
    model, inputs = case(name, size, batch)
    clips = torch.randint(0, 256, (batch, *inputs[0].shape[2:], 3), dtype=torch.uint8)
    sample = ClipBatch(clips, [(n,) for n in range(batch)], [str(n) for n in range(batch)])
    how: dict[str, Any] = {"normalize": Normalize(**NORMALIZE), "device": device}
    loss: Any
    if name == "classifier":
        loss = ClassificationLoss(Augment(), num_classes=400, **how)
    else:
        model = model.autoencoder
        ratio = 0.5 if size == "tiny" else 0.9
        sample.visible = visible_units(model, batch, ratio)
        masking = UnitMasking(model.encoder.units_shape, ratio)
        loss = ReconstructionLoss(model, masking, **how)
    model.to(device).train()
    optimizer = build_optimizer(model, Optim(lr=1e-4))
    if compile:
        model.compile()
    return train_steps(
        model,
        loss,
        optimizer,
        iter(lambda: copy.copy(sample), None),
        start_step=0,
        end_step=1000,
        loop=Loop(),
        lr_at=lambda step: 1e-4,
        clip_grad=1.0,
        process=Process(0, 1, 1, device, precision="bf16"),
    )


@pytest.mark.parametrize("name", ["classifier", "hog"])
def test_a_step_never_waits(name: str, device: torch.device, size: str) -> None:
    """But for the report of the step before, which an event waits for."""
    steps = training(name, device, size, 2)
    assert not [next(steps) for _ in range(3)][-1].skipped
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        assert not [next(steps) for _ in range(3)][-1].skipped
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("name", "batch", "most_gib"), [("classifier", 16, 9.8), ("pixels", 32, 8.5)]
)
def test_memory_of_a_training_step(
    name: str, batch: int, most_gib: float, device: torch.device, size: str
) -> None:
    """At most what an H100 needed: weights, gradients, moments of AdamW and activations."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    steps = training(name, device, size, batch if size == "base" else 2)
    for _ in range(2):
        next(steps)
    steps.close()
    if device.type == "cuda":
        assert torch.cuda.max_memory_allocated() - before <= most_gib * GIB


def test_a_compiled_training_step(
    device: torch.device, compiled_size: str, unchecked_shapes: None
) -> None:
    plain, compiled = (
        [next(steps).loss for _ in range(2)]
        for steps in (
            training("classifier", device, compiled_size, 2),
            training("classifier", device, compiled_size, 2, compile=True),
        )
    )
    assert compiled == pytest.approx(plain, rel=2e-2)
