"""Models that are used: types of their numbers, and batches of one size for the compiler."""

import copy
import logging
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from hiera_video.errors import ConfigError
from hiera_video.models.detector import ActionDetector
from hiera_video.models.inference import InferenceModel, copy_in
from hiera_video.models.layers import Linear, gelu_linear, gelu_of_product
from hiera_video.models.normalize import Normalize
from hiera_video.models.segmenter import InstanceSegmenter
from tests.models.tiny_models import IMAGE, VIDEO, hiera

CPU = torch.device("cpu")


def clips(model, number=3):
    torch.manual_seed(3)
    frames, *size = getattr(model, "encoder", model).input_size
    return torch.randint(0, 256, (number, frames, *size, 3), dtype=torch.uint8)


def inference(model, **changes):
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    return InferenceModel(model, normalize, **{"device": CPU, "batch_size": 4, **changes})


def detector():
    torch.manual_seed(4)
    return ActionDetector(hiera(VIDEO, num_classes=0), num_classes=6).eval()


def segmenter():
    encoder = hiera(IMAGE, num_classes=0)
    return InstanceSegmenter(encoder, num_classes=2, channels=8, hidden=8).eval()


@pytest.fixture
def compilations(monkeypatch):
    """Compiles with a backend that runs the graph as it is, and notes the shapes of the inputs."""
    shapes = []
    compile_ = torch.compile

    def noted(function, **how):
        def run(*inputs, **others):
            shapes.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)])
            return compiled(*inputs, **others)

        assert how["dynamic"] is False
        compiled = compile_(function, dynamic=False, backend="eager")
        return run

    monkeypatch.setattr(torch, "compile", noted)
    monkeypatch.setattr("hiera_video.models.inference.check_compiler", lambda *_: None)
    return shapes


def dtypes(model):
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda: hiera(VIDEO), ("norm.", "head.")),
        (detector, ("roi_head.",)),
        (segmenter, ("rpn.", "roi_heads.")),
    ],
)
def test_the_copy_is_in_half_precision_but_for_its_heads(make, kept):
    model = make()
    before = copy.deepcopy(model.state_dict())
    copied = inference(model, precision="bf16").model
    for name, dtype in dtypes(copied).items():
        assert dtype == (torch.float32 if name.startswith(kept) else torch.bfloat16), name
    assert set(dtypes(model).values()) == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_of_a_classifier(precision):
    model = hiera(VIDEO)
    found = inference(model, precision=precision)(clips(model))
    with torch.no_grad():
        expected = model(inference(model).normalize(clips(model)))
    assert found.dtype == torch.float32
    error = (found - expected).std() / expected.std()
    assert error == 0 if precision == "fp32" else 0 < error < 0.03


def test_outputs_of_a_detector_and_of_a_segmenter():
    boxes, clip_of_box = torch.tensor([[0.1, 0.2, 0.8, 0.9]] * 5), torch.tensor([0, 1, 1, 2, 2])
    model = detector()
    exact, rounded = (
        inference(model, precision=p)(clips(model), boxes, clip_of_box) for p in ("fp32", "bf16")
    )
    assert rounded.shape == (5, 6)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    model = segmenter()
    found = inference(model, precision="bf16")(clips(model))
    assert [picture["boxes"].dtype for picture in found] == [torch.float32] * 3


@pytest.mark.parametrize("arguments", [VIDEO, {**VIDEO, "layer_scale": True, "expand_proj": False}])
def test_a_block_without_weights_of_norms_is_the_same_function(arguments):
    """With widening blocks, whose norm is read twice."""
    model = hiera(arguments).double()
    x = torch.randn(1, 3, *model.input_size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        for block in model.blocks:
            parts = block.without_affine_norms()
            assert {"norm1.weight", "attn.qkv.bias", "mlp.fc1.weight"} <= set(parts)
            block.load_state_dict(parts, strict=False)
            assert (
                block.norm1.weight.unique().tolist() == block.norm2.weight.unique().tolist() == [1]
            )
            assert not block.norm1.bias.any()
        torch.testing.assert_close(model(x), expected, atol=1e-9, rtol=0)


def test_a_block_with_another_layer_keeps_its_norm():
    block = hiera(VIDEO).blocks[0]
    block.mlp.fc1 = torch.nn.Sequential(block.mlp.fc1)  # as adapters wrap them
    assert set(block.without_affine_norms()) == {
        "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias"
    }  # fmt: skip
    model = hiera(VIDEO)
    model.blocks[0].mlp.fc1 = torch.nn.Sequential(model.blocks[0].mlp.fc1)
    found = inference(model, precision="bf16")(clips(model))
    torch.testing.assert_close(found, inference(hiera(VIDEO))(clips(model)), atol=0.1, rtol=0.1)


def test_a_model_that_is_trained_stays_as_it_is():
    model = hiera(VIDEO).train()
    inference(model, precision="bf16")(clips(model))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_batches_are_padded_to_the_size_of_the_graph(compilations, caplog, unchecked_shapes):
    model = hiera(VIDEO)
    views = clips(model, 4)
    expected = inference(model)(views)
    run = inference(model, compile=True)
    with caplog.at_level(logging.INFO):
        for number in (4, 1, 3):
            torch.testing.assert_close(run(views[:number]), expected[:number])
    assert compilations == [[tuple(views.shape)]] * 3
    assert caplog.text.count("compiling the model for batches of 4") == 1
    assert caplog.text.count("the next start finds it in") == 1


GRAPHS = """
import torch
from hiera_video.models.inference import InferenceModel
from hiera_video.models.normalize import Normalize
from tests.models.tiny_models import VIDEO, hiera

graphs = []
compile_ = torch.compile
torch.compile = lambda f, **_: compile_(f, dynamic=False, backend=backend)

def backend(graph, inputs):
    graphs.append(graph)
    return graph

model, normalize = hiera(VIDEO), Normalize((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
run = InferenceModel(model, normalize, device=torch.device("cpu"), batch_size=4, compile=True)
frames, height, width = model.input_size
clips = torch.zeros(4, frames, height, width, 3, dtype=torch.uint8)
for number in (4, 4, 2):
    run(clips[:number])
with torch.inference_mode():
    for number in (4, 2):
        run(clips[:number] + 1)
print("graphs:", len(graphs))
"""


def test_one_graph_for_all_batches(tmp_path):
    """In a new process, in which einops has seen no tensor before the model is traced."""
    compiler = tmp_path / "c++"  # asked for its version, and not needed here
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler)}
    command = [sys.executable, "-c", GRAPHS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "graphs: 1\n"


def test_a_later_batch_does_not_write_over_an_earlier_one(monkeypatch):
    """As CUDA graphs do, which have one place for their outputs."""
    model = hiera(VIDEO)
    place = torch.zeros(4, 5)
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: place.add_(1))
    monkeypatch.setattr("hiera_video.models.inference.check_compiler", lambda *_: None)
    run = inference(model, compile=True)
    first, second = run(clips(model, 4)), run(clips(model, 4))
    assert first.unique().tolist() == [1]
    assert second.unique().tolist() == [2]


def test_of_a_detector_the_encoder_is_compiled(compilations, unchecked_shapes):
    model = detector()
    boxes = torch.tensor([[0.1, 0.2, 0.8, 0.9]] * 3)
    expected = [inference(detector())(clips(model), boxes[:n], torch.arange(n)) for n in (3, 2, 0)]
    run = inference(model, compile=True)
    for n, scores in zip((3, 2, 0), expected, strict=True):
        torch.testing.assert_close(run(clips(model), boxes[:n], torch.arange(n)), scores)
    assert compilations == [[(4, 3, 8, 64, 64)]] * 3


def test_of_a_segmenter_the_encoder_is_compiled(compilations, unchecked_shapes):
    model = segmenter()
    expected = inference(segmenter())(clips(model, 2))
    found = inference(model, compile=True)(clips(model, 2))
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])
    assert compilations == [[(4, 3, 1, 64, 64)]]


def test_the_copy_of_a_compiled_model_is_not_compiled(compilations):
    for model in (hiera(VIDEO), detector(), segmenter()):
        model.compile(dynamic=False)
        copied = copy_in(model, CPU, torch.bfloat16)
        assert all(module._compiled_call_impl is None for module in copied.modules())
        x = torch.zeros(1, 3, *getattr(model, "encoder", model).input_size, dtype=torch.bfloat16)
        parts = {"boxes": torch.zeros(0, 4), "clip_of_box": torch.zeros(0, dtype=torch.long)}
        with torch.no_grad():
            copied(x, **(parts if isinstance(model, ActionDetector) else {}))
    assert compilations == []


def test_compilation_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(ConfigError, match=r"compile is true: .* C\+\+ compiler .*; install it, or"):
        inference(hiera(VIDEO), compile=True)


def test_gelu_within_the_product():
    """The approximation that cuBLAS computes is nearer to GELU than bfloat16's rounding."""
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    error = (F.gelu(x, approximate="tanh") - F.gelu(x)).abs()
    assert error.max() < 5e-4
    spacing = torch.finfo(torch.bfloat16).eps * F.gelu(x).abs()
    assert (error < spacing)[x > 0.12].all()


def test_gelu_of_a_product_has_the_shape_of_the_layer():
    with FakeTensorMode():
        x = torch.empty(2, 49, 8, 24, device="cuda", dtype=torch.bfloat16)
        layer = Linear(24, 96, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            product = gelu_linear(x, layer)
            assert product.shape == layer(x).shape
            assert (product.dtype, product.device) == (x.dtype, x.device)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 24), torch.randn(96, 24), torch.randn(96)
    near = F.gelu(x @ weight.T + bias)
    torch.testing.assert_close(gelu_of_product(x, weight, bias), near, atol=1e-3, rtol=0)
