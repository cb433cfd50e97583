"""Linear layers: torch's results and gradients, whatever kernel computes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.models.hiera import Mlp
from hiera_video.models.linear import GeluLinear, Linear, gelu_of_linear

SHAPES = [(7, 24), (2, 3, 5, 24), (0, 24), (24,)]


def layers():
    torch.manual_seed(0)
    ours = Linear(24, 18)
    theirs = nn.Linear(24, 18)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(layer, x, function):
    x = x.clone().requires_grad_()
    out = function(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    found = [out.detach(), x.grad, layer.weight.grad, layer.bias.grad]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_torchs(shape):
    ours, theirs = layers()
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    for a, b in zip(gradients(ours, x, ours), gradients(theirs, x, theirs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gelu_before_and_after(shape):
    ours, theirs = layers()
    x = torch.randn(shape)
    before = gradients(ours, x, lambda y: GeluLinear.apply(y, ours.weight, ours.bias))
    expected = gradients(theirs, x, lambda y: theirs(F.gelu(y)))
    for a, b in zip(before, expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(gelu_of_linear(x, ours), F.gelu(theirs(x)))


def test_views_that_are_not_contiguous():
    ours, theirs = layers()
    x = torch.randn(4, 24, 6).transpose(1, 2)
    for a, b in zip(gradients(ours, x, ours), gradients(theirs, x, theirs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
def test_what_is_frozen_has_no_gradient(frozen):
    ours, _ = layers()
    x = torch.randn(3, 24, requires_grad=frozen != "x")
    if frozen != "x":
        getattr(ours, frozen).requires_grad_(False)
    ours(x).sum().backward()
    grads = {"x": x.grad, "weight": ours.weight.grad, "bias": ours.bias.grad}
    assert {name for name, grad in grads.items() if grad is None} == {frozen}


@pytest.mark.parametrize("train", [False, True])
def test_autocast_gives_its_precision(train):
    ours, theirs = layers()
    x = torch.randn(40, 24)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(train):
        a, b = ours(x), theirs(x)
        assert a.dtype == b.dtype == torch.bfloat16
        assert torch.equal(a, b)
        if not train:
            gelu = gelu_of_linear(x, ours)
            assert gelu.dtype == torch.bfloat16
            torch.testing.assert_close(gelu, F.gelu(b), atol=0.01, rtol=0.02)


def test_other_precisions_are_torchs():
    ours, theirs = layers()
    x = torch.randn(5, 24, dtype=torch.float64)
    ours.double(), theirs.double()
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad():
        assert torch.equal(gelu_of_linear(x, ours), F.gelu(theirs(x)))


def test_counters_and_compilers_see_a_plain_product():
    ours, _ = layers()
    x = torch.randn(5, 24)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            ours(x)
        assert counter.get_total_flops() == 2 * 5 * 24 * 18
    program = torch.export.export(ours, (x,))
    assert {str(n.target) for n in program.graph.nodes if n.op == "call_function"} == {
        "aten.linear.default"
    }


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_adapters_and_hooks_of_an_mlp_are_not_passed_by(name, grad):
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias

        def forward(self, x):
            return self.base(x) + 1

    torch.manual_seed(0)
    mlp, x = Mlp(6, 8), torch.randn(3, 6)
    seen = []
    handle = getattr(mlp, name).register_forward_hook(lambda *_: seen.append(name))
    with torch.set_grad_enabled(grad):
        before = mlp(x)
        assert seen == [name]
        handle.remove()
        setattr(mlp, name, Adapter(getattr(mlp, name)))
        hidden = F.gelu(mlp.fc1(x))
        torch.testing.assert_close(mlp(x), mlp.fc2(hidden))
        assert not torch.allclose(mlp(x), before)


def test_bfloat16_without_its_units(monkeypatch):
    """oneDNN refuses it there; torch has other kernels."""
    ours, theirs = layers()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_linear_pointwise", raising=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(3, 24)
        assert torch.equal(gelu_of_linear(x, ours), F.gelu(theirs(x)))
