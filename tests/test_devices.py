"""Tensors on the wrong device, and waits for the device, found by a CUDA device that is not there.

Every part that puts tensors on a device runs on `FakeCuda` here: what is left on the CPU raises,
what waits is listed, and results are those of the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from hiera_video.data.batches import (
    ClipBatch,
    DetectionBatch,
    InstanceBatch,
    ViewSample,
)
from hiera_video.evaluation import people
from hiera_video.evaluation.views import Scorer, score_views
from hiera_video.extraction import ray
from hiera_video.extraction.features import FeatureExtractor
from hiera_video.models import attention
from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MaskedAutoencoderHiera
from hiera_video.models.masking import UnitMasking, kept_units
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import create_detector, create_segmenter
from hiera_video.models.pyramid import Pyramid
from hiera_video.runtime.distributed import Process
from hiera_video.settings.training import Augment, Loop, Optim
from hiera_video.training.loop import train_steps
from hiera_video.training.losses import (
    ClassificationLoss,
    DetectionLoss,
    InstanceLoss,
    ReconstructionLoss,
)
from hiera_video.training.optim import MovingAverage, build_optimizer
from tests.fake_cuda import CUDA, CudaTensor, FakeCuda
from tests.models.tiny_models import IMAGE, VIDEO, hiera

CPU = torch.device("cpu")
ABSOLUTE = {**IMAGE, "global_pos_size": (3, 5), "layer_scale": True, "expand_proj": False}
WINDOWS = {**ABSOLUTE, "input_size": (1, 128, 128), "window_units": (1, 2, 2)}
REGULAR = {**VIDEO, "drop_path": 0.3, "head_dropout": 0.5}
UNITS = {"input_size": (8, 64, 64), "num_classes": 0, "q_pool": 2, "mask_unit": (1, 4, 4)}
ENCODER: dict[str, Any] = {**VIDEO, **UNITS}
BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0], [0.5, 0.4, 0.55, 0.5]])


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with FakeCuda() as cuda:
        yield cuda


def on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return [on_device(part, device) for part in value]
    return {k: on_device(v, device) for k, v in value.items()} if isinstance(value, dict) else value


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.02 * noise)
    return model


# ---- models: forward and backward pass


def classifier(arguments: dict[str, Any], **changes: Any) -> tuple[nn.Module, list[Any]]:
    model = hiera(arguments, **changes)
    return model, [torch.randn(2, 3, *model.input_size)]


def recomputing() -> tuple[nn.Module, list[Any]]:
    model, inputs = classifier(REGULAR)
    model.set_grad_checkpointing(True)
    return model, inputs


class Stages(nn.Module):
    """All stages of a model, in space-time order."""

    def __init__(self, encoder: Hiera) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.encoder.forward_intermediates(x)


class Reconstruction(nn.Module):
    """Predictions and targets."""

    def __init__(self, model: MaskedAutoencoderHiera) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, kept: Tensor) -> list[Tensor]:
        return [self.model(x, kept), self.model.targets(x, kept)]


def reconstruction(masking: Any, target: Any) -> tuple[nn.Module, list[Any]]:
    encoder = hiera(ENCODER)
    model = MaskedAutoencoderHiera(
        encoder, decoder_heads=2, decoder_dim=16, decoder_depth=1, target=target
    )
    draw, rng = UnitMasking(encoder.units_shape, 0.6, masking), np.random.default_rng(0)
    kept = kept_units(torch.from_numpy(np.stack([draw(rng) for _ in range(2)])))
    return Reconstruction(model), [torch.randn(2, 3, *encoder.input_size), kept]


def detector(num_boxes: int) -> tuple[nn.Module, list[Any]]:
    sizes = {"num_frames": 4, "image_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1)}
    model = create_detector("hiera_tiny_16x224", num_classes=5, **sizes)
    clip_of_box = torch.tensor([0, 1, 1])[:num_boxes]
    return model, [torch.randn(2, 3, 4, 64, 64), BOXES[:num_boxes], clip_of_box]


def segmenter() -> tuple[nn.Module, list[Any]]:
    sizes = {"image_size": 64, "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
    heads = {"channels": 8, "hidden": 16, "num_boxes": 16}
    model = create_segmenter(name="hiera_tiny_224", num_classes=3, **sizes, **heads)
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 4:30], masks[1, 20:60, 20:60] = 1, 1
    boxes = torch.tensor([[4.0, 8, 30, 40], [20, 20, 60, 60]])
    objects = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}
    nothing = {key: value[:0] for key, value in objects.items()}
    return model, [torch.randn(2, 3, 1, 64, 64), [objects, nothing]]


def pyramid() -> tuple[nn.Module, list[Any]]:
    return Pyramid(hiera({**IMAGE, "num_classes": 0})), [torch.randn(1, 3, 70, 90)]


MODELS: dict[str, Callable[[], tuple[nn.Module, list[Any]]]] = {
    "video": lambda: classifier(REGULAR),
    "image": lambda: classifier(IMAGE),
    "absolute": lambda: classifier(ABSOLUTE),
    "windows": lambda: classifier(WINDOWS),
    "recomputing": recomputing,
    "stages": lambda: (Stages(hiera(VIDEO)), [torch.randn(2, 3, 8, 64, 64)]),
    "boxes": lambda: detector(3),
    "no boxes": lambda: detector(0),
    "pyramid": pyramid,
    "random-pixels": lambda: reconstruction("random", "pixels"),
    "tube-hog": lambda: reconstruction("tube", "hog"),
    "frame-pixels": lambda: reconstruction("frame", "pixels"),
    "block-hog": lambda: reconstruction("block", "hog"),
}


def results(model: nn.Module, inputs: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients."""
    torch.manual_seed(1)
    outputs = model(*inputs)
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum(output.float().square().sum() for output in outputs).backward()
    return outputs, [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, right in zip(found, expected, strict=True):
        assert isinstance(ours, CudaTensor)
        scale = float(right.detach().square().mean().sqrt()) if right.numel() else 0.0
        torch.testing.assert_close(
            ours.values.detach(), right.detach(), rtol=0, atol=1e-4 * scale + 1e-7
        )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_the_device(name: str, training: bool, unchecked_shapes: None) -> None:
    """Outputs and gradients are those of the CPU, and nothing waits."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.train(training)
    expected, gradients = results(copy.deepcopy(model), inputs)
    with FakeCuda() as cuda:
        model.to("cuda")
        model.zero_grad()
        there = on_device(inputs, CUDA)
        cuda.waits.clear()
        found, found_gradients = results(model, there)
        assert cuda.waits == []
        assert_same(found, expected)
        assert_same(found_gradients, gradients)


@pytest.mark.parametrize("kind", ["classifier", "detector", "segmenter"])
def test_another_classifier_is_where_the_model_is(kind: str, cuda: FakeCuda) -> None:
    models = {"detector": lambda: detector(1)[0], "segmenter": lambda: segmenter()[0]}
    model: Any = models.get(kind, lambda: hiera(VIDEO))().to("cuda")
    if kind == "segmenter":
        model.reset_heads(6)
    model.reset_classifier(7)
    assert {parameter.device for parameter in model.parameters()} == {CUDA}


def test_more_windows_than_a_kernel_takes(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hiera(VIDEO)
    clips = torch.randn(3, 3, *VIDEO["input_size"])
    with torch.no_grad():
        expected = model(clips)
        sizes = list[int]()
        attend = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(attention, "MAX_WINDOWS", 5)
        monkeypatch.setattr(
            attention.F,
            "scaled_dot_product_attention",
            lambda *qkv: sizes.append(len(qkv[0])) or attend(*qkv),
        )
        found = model.to(CUDA)(clips.to(CUDA))
    assert max(sizes) == 5
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_under_autocast(name: str, dtype: torch.dtype, cuda: FakeCuda) -> None:
    model, inputs = MODELS[name]()
    model.to("cuda").train()
    there = on_device(inputs, CUDA)
    cuda.waits.clear()
    with torch.autocast("cuda", dtype=dtype):
        outputs = model(*there)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum(output.float().square().mean() for output in outputs).backward()
    assert cuda.waits == []
    assert all(bool(output.isfinite().all()) for output in outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_segmenter_on_the_device(dtype: torch.dtype, cuda: FakeCuda) -> None:
    """torchvision chooses boxes by their values, for which it waits."""
    model, (pictures, targets) = segmenter()
    model.to("cuda").train()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(*on_device([pictures, targets], CUDA))
        loss.backward()
        assert bool(loss.isfinite())
        found = model.eval()(on_device(pictures, CUDA))
    assert {value.device for picture in found for value in picture.values()} == {CUDA}


# ---- losses: batches come from the host


NORMALIZE = {"mean": (0.45,) * 3, "std": (0.225,) * 3}


def pixels(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def clip_batch(model: Any) -> ClipBatch:
    size = model.input_size
    clips = pixels(2, *size, 3)
    return ClipBatch(clips, [(0,), (3,)], ["a", "b"])


def classification(device: torch.device, **changes: Any) -> tuple[Any, nn.Module, Any]:
    model = hiera(VIDEO)
    augment = Augment(
        mixup=changes.pop("mixup", 0), cutmix=changes.pop("cutmix", 0), label_smoothing=0.1
    )
    loss = ClassificationLoss(
        augment, num_classes=5, normalize=Normalize(**NORMALIZE), device=device, **changes
    )
    return loss, model, clip_batch(model)


def pretraining(device: torch.device, target: Any, drawn: bool) -> tuple[Any, nn.Module, Any]:
    encoder = hiera(ENCODER)
    model = MaskedAutoencoderHiera(
        encoder, decoder_heads=2, decoder_dim=16, decoder_depth=1, target=target
    )
    masking = UnitMasking(encoder.units_shape, 0.6)
    batch = clip_batch(encoder)
    if drawn:
        rng = np.random.default_rng(0)
        batch.visible = torch.from_numpy(np.stack([masking(rng) for _ in range(2)]))
    else:
        batch.clips = batch.clips[:1]
    loss = ReconstructionLoss(model, masking, normalize=Normalize(**NORMALIZE), device=device)
    return loss, model, batch


def detection(device: torch.device, num_boxes: int) -> tuple[Any, nn.Module, Any]:
    model, (_, boxes, clip_of_box) = detector(num_boxes)
    actions = [(1, 3), (), (2,)][:num_boxes]
    batch = DetectionBatch(pixels(2, 4, 64, 64, 3), boxes, clip_of_box, actions, ["a", "b"])
    loss = DetectionLoss(num_classes=5, normalize=Normalize(**NORMALIZE), device=device)
    return loss, model, batch


def instances(device: torch.device) -> tuple[Any, nn.Module, Any]:
    model, (_, targets) = segmenter()
    loss = InstanceLoss(normalize=Normalize(**NORMALIZE), device=device)
    return loss, model, InstanceBatch(pixels(2, 1, 64, 64, 3), targets, ["a", "b"])


LOSSES: dict[str, Callable[[torch.device], tuple[Any, nn.Module, Any]]] = {
    "plain": classification,
    "mixup": lambda d: classification(d, mixup=0.8),
    "cutmix": lambda d: classification(d, cutmix=1.0),
    "weights": lambda d: classification(d, class_weights=torch.arange(1.0, 6)),
    "labels": lambda d: classification(d, multi_label=True, mixup=0.8, cutmix=1.0),
    "pixels": lambda d: pretraining(d, "pixels", True),
    "hog": lambda d: pretraining(d, "hog", True),
    "nothing drawn": lambda d: pretraining(d, "pixels", False),
    "boxes": lambda d: detection(d, 3),
    "no boxes": lambda d: detection(d, 0),
    "instances": instances,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_takes_batches_from_the_host(name: str) -> None:
    """Its value is that of the CPU, and nothing waits, torchvision's choice of boxes aside."""

    def value(device: torch.device, cuda: FakeCuda | None = None) -> Tensor:
        torch.manual_seed(0)
        loss, model, batch = LOSSES[name](device)
        model.to(device).train()
        if cuda is not None:
            cuda.waits.clear()
        result = loss(model, batch, np.random.default_rng(0))
        result.backward()
        return result

    expected = value(CPU)
    with FakeCuda() as cuda:
        found = value(CUDA, cuda)
        if name == "instances":
            assert not [wait for wait in cuda.waits if "hiera_video" in wait.where]
        else:
            assert cuda.waits == []
            assert_same([found[None]], [expected[None]])


# ---- the training step


class Reported:
    """The waits of each step, as it is reported."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.waits: list[list[Any]] = []

    def __call__(self) -> None:
        self.waits.append(list(self.cuda.waits))
        self.cuda.waits.clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["mixup", "hog", "boxes"])
def test_a_training_step_waits_once(name: str, optimizer: Any, precision: Any) -> None:
    """For loss and norm, in the loop; the losses are those of the CPU."""
    num_steps = 3

    def losses(device: torch.device, waits_of: Callable[[], None]) -> list[float]:
        torch.manual_seed(0)
        loss, model, batch = LOSSES[name](device)
        model.to(device).train()
        settings = Optim(optimizer=optimizer, lr=0.01, layer_decay=0.9, weight_decay=0.05)
        steps = train_steps(
            model,
            loss,
            build_optimizer(model, settings),
            iter([copy.deepcopy(batch) for _ in range(2 * num_steps)]),
            start_step=0,
            end_step=num_steps,
            loop=Loop(accumulation_steps=2),
            lr_at=lambda step: 0.01,
            clip_grad=1.0,
            process=Process(0, 1, 1, device, precision=precision),
            average=MovingAverage(model, 0.9),
        )
        waits_of()
        found = []
        for done in steps:
            assert not done.skipped
            found.append(done.loss)
            waits_of()
        return found

    expected = losses(CPU, lambda: None)
    with FakeCuda() as cuda:
        noted = Reported(cuda)
        found = losses(CUDA, noted)
        waits = [wait for of_step in noted.waits[1:] for wait in of_step]
        assert len(waits) == num_steps
        assert {wait.where for wait in waits} == {"hiera_video/training/loop.py"}
    assert found == pytest.approx(expected, rel=1e-2 if precision == "fp32" else 0.1)


# ---- evaluation, extraction and people


def scorer(model: nn.Module, device: torch.device, **changes: Any) -> Scorer:
    return Scorer(model, Normalize(**NORMALIZE), device=device, batch_size=2, **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_views_are_cut_and_scored_on_the_device(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host waits for no operation, only for the events behind scores."""
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7, 8, 9]])
    video = ViewSample(0, pixels(10, 64, 80, 3), positions, [(0, 0), (0, 16)], "pyav")
    ((_, expected),) = score_views(scorer(hiera(VIDEO), CPU), [video], (64, 64))
    with FakeCuda() as cuda:
        there = scorer(hiera(VIDEO), CUDA, precision=precision)
        cut = ViewSample.view
        devices = list[torch.device]()
        monkeypatch.setattr(
            ViewSample, "view", lambda *args: devices.append(args[1].device) or cut(*args)
        )
        cuda.waits.clear()
        ((_, found),) = score_views(there, [video], (64, 64))
        assert [wait.line for wait in cuda.waits] == ["arrived.synchronize()"] * 2
        assert devices == [CUDA] * 4  # of each frame once, and not of each view, bytes are copied
    tolerance = 1e-5 if precision == "fp32" else 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("layer", "pooling"),
    [("logits", "mean"), ("pre_logits", "mean"), ("stage2", "none"), ("stage4", "spatial")],
)
def test_features_on_the_device(layer: Any, pooling: Any, dtype: Any) -> None:
    """They stay there, and nothing waits."""

    def extractor(device: torch.device) -> FeatureExtractor:
        how = {"layer": layer, "pooling": pooling, "dtype": dtype}
        return FeatureExtractor(
            hiera(VIDEO), normalize=Normalize(**NORMALIZE), device=device, **how
        )

    views = pixels(2, 8, 64, 64, 3)
    expected = extractor(CPU)(views)
    with FakeCuda() as cuda:
        there = extractor(CUDA)
        there(views)  # puts the model on the device
        cuda.waits.clear()
        found = there(views)
        assert cuda.waits == []
        tolerance = 1e-4 if dtype == "float32" else 1e-2
        torch.testing.assert_close(found.values, expected, atol=tolerance, rtol=tolerance)


def test_an_actor_of_ray_has_its_model_on_the_device(cuda: FakeCuda) -> None:
    made_by_the_driver = FeatureExtractor(
        hiera(VIDEO), normalize=Normalize(**NORMALIZE), device=CPU, layer="pre_logits"
    )
    assert ray.Model(made_by_the_driver).extractor(pixels(2, 8, 64, 64, 3)).device == CUDA


def test_people_are_found_on_the_device(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = pixels(2, 40, 60, 3).numpy()
    model, _ = segmenter()
    segmented = people.SegmentedPeople(scorer(model, CUDA), (64, 64), 1, "runs/x")
    assert len(segmented(frames, min_score=0.0)) == 2
    published = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=91, min_size=32, box_score_thresh=0.0
    )
    monkeypatch.setattr(people, "load_person_detector", lambda source: published.eval())
    found = people.person_detector(None, CUDA)(frames[:1], min_score=0.0)
    assert len(found) == 1
    assert published.roi_heads.box_predictor.cls_score.weight.device == CUDA
