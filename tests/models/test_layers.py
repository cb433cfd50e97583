"""Layers: torch's results and gradients, by whichever kernel, and the types of numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.models import layers as module
from hiera_video.models.layers import LayerNorm, Linear
from hiera_video.models.patches import product_of_patches
from hiera_video.models.units import size3

CONVOLVED = [(256, 24), (2, 64, 8, 24), (1, 49, 8, 24)]
MULTIPLIED = [(255, 24), (2, 49, 3, 24), (16, 24), (0, 24), (24,)]


@pytest.fixture(autouse=True)
def _amd(monkeypatch):
    """A processor on which MKL is slow."""
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: True)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    ours = Linear(24, 18)
    theirs = nn.Linear(24, 18)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture
def convolutions(monkeypatch):
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(args) or convolve(*args))
    return calls


def gradients(layer, x):
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(0)))
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


@pytest.mark.parametrize("shape", CONVOLVED + MULTIPLIED)
def test_outputs_and_gradients_are_torchs(shape, layers, convolutions):
    ours, theirs = layers
    x = torch.randn(shape)
    found, expected = gradients(ours, x), gradients(theirs, x)
    assert len(convolutions) == (shape in CONVOLVED)
    for a, b in zip(found, expected, strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # sums of 784 products


def test_where_mkl_is_fast_it_multiplies(layers, convolutions, monkeypatch):
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: False)
    ours, theirs = layers
    x = torch.randn(CONVOLVED[0])
    assert torch.equal(ours(x), theirs(x))
    assert not convolutions


def test_views_that_are_not_contiguous(layers, convolutions):
    ours, theirs = layers
    x = torch.randn(16, 24, 32).transpose(1, 2)
    for a, b in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # sums of 784 products
    assert convolutions


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_has_no_gradient(frozen, layers):
    ours, _ = layers
    getattr(ours, frozen).requires_grad_(False)
    gradients(ours, torch.randn(256, 24))
    assert {name for name, p in ours.named_parameters() if p.grad is None} == {frozen}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_torchs(dtype, layers, convolutions):
    ours, theirs = layers
    x = torch.randn(256, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        if dtype == torch.float64:
            ours, theirs, x = ours.double(), theirs.double(), x.double()
        assert ours(x).dtype == dtype
        assert torch.equal(ours(x), theirs(x))
    assert not convolutions


def test_counters_and_exported_programs_see_a_plain_product(layers):
    ours, _ = layers
    x = torch.randn(256, 24)
    with FlopCounterMode(display=False) as counter:
        ours(x)
    assert counter.get_total_flops() == 2 * 256 * 24 * 18
    program = torch.export.export(ours, (x,))
    assert {str(n.target) for n in program.graph.nodes if n.op == "call_function"} == {
        "aten.linear.default"
    }


def test_layer_norm_keeps_the_type_of_autocast():
    torch.manual_seed(0)
    layer = LayerNorm(32)
    nn.init.normal_(layer.weight, 1.0, 0.3)
    x = torch.randn(5, 32, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = F.layer_norm(x.float(), (32,), layer.weight, layer.bias, layer.eps)
    torch.testing.assert_close(y.float(), exact, atol=0.02, rtol=0.02)
    y.float().square().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    expected = torch.autograd.grad(exact.square().sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected, atol=0.2, rtol=0.05)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((3, 7, 7), (2, 4, 4), (1, 3, 3), (8, 32, 24)),  # of video
        ((1, 7, 7), (1, 4, 4), (0, 3, 3), (1, 32, 32)),  # of images
        ((3, 7, 7), (2, 4, 4), (0, 0, 0), (3, 35, 35)),  # of a window of one mask unit
        ((2, 8, 8), (2, 8, 8), (0, 0, 0), (4, 16, 16)),
    ],
)
def test_the_product_of_patches_is_the_convolution(kernel, stride, padding, size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    weight = torch.randn(12, 3, *kernel, requires_grad=True)
    bias = torch.randn(12, requires_grad=True)
    how = size3(stride), size3(padding)
    found, expected = product_of_patches(x, weight, bias, *how), F.conv3d(x, weight, bias, *how)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), (weight, bias)) for y in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = product_of_patches(x, weight, bias, *how)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, atol=0.5, rtol=0.05)
