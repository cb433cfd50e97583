"""The linear layer: torch's results and gradients, by whichever kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.models import layers as module
from hiera_video.models.layers import Linear

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
