"""The CUDA device that is not there: what it computes, refuses and notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fake_cuda import CUDA, CudaTensor, FakeCuda, MixedDevices, Wait


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with FakeCuda() as cuda:
        yield cuda


def test_tensors_are_on_the_device_and_results_right(cuda: FakeCuda) -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    right = layer(x)
    (right**2).sum().backward()
    gradient = layer.weight.grad
    layer.zero_grad()
    layer.to("cuda")
    found = layer(x.cuda())
    (found**2).sum().backward()
    assert layer.weight.device == found.device == layer.weight.grad.device == CUDA
    assert found.is_cuda
    torch.testing.assert_close(found.detach().cpu(), right.detach())
    torch.testing.assert_close(layer.weight.grad.cpu(), gradient)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, device="cuda"),
        lambda: torch.tensor([1, 2], device=CUDA),
        lambda: torch.ones(2).to("cuda:0"),
        lambda: torch.zeros(2, device="cuda").new_tensor([1.0, 2.0]),
        lambda: torch.empty_like(torch.zeros(2), device="cuda"),
        lambda: torch.from_numpy(torch.zeros(2).numpy()).cuda(),
    ],
)
def test_ways_to_the_device(make: Callable[[], Tensor], cuda: FakeCuda) -> None:
    assert isinstance(make(), CudaTensor)


def test_the_cpu_and_the_meta_device_are_others(cuda: FakeCuda) -> None:
    assert type(torch.zeros(2) + 1) is Tensor
    with torch.device("meta"):
        parameter = nn.Linear(2, 2).weight
    assert parameter.is_meta
    assert not isinstance(parameter, CudaTensor)


def test_tensors_of_both_devices_are_refused(cuda: FakeCuda) -> None:
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    for mistake in (
        lambda: there + here,
        lambda: here.add_(there),
        lambda: there[torch.tensor([0])],
        lambda: torch.stack([there[0], torch.tensor(1.0)]),
    ):
        with pytest.raises(MixedDevices, match="tensors of both devices"):
            mistake()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert isinstance(there * torch.tensor(2.0), CudaTensor)  # as on a real device


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.ones(2).to(x.device),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.equal(x, x),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.Event().synchronize(),
    ],
)
def test_what_waits_is_noticed_with_its_line(wait: Callable[[Tensor], Any], cuda: FakeCuda) -> None:
    x = torch.ones(2, device="cuda")
    assert cuda.waits == []
    wait(x)
    (noted,) = cuda.waits
    assert isinstance(noted, Wait)
    assert noted.where == "tests/test_fake_cuda.py"
    assert noted.line.startswith("lambda x: ")


def test_what_does_not_wait(cuda: FakeCuda) -> None:
    x = torch.ones(2).pin_memory().to("cuda", non_blocking=True)
    x.to("cpu", non_blocking=True)
    x[0] = 3.0
    torch.where(x > 0, x, 1.0).sum()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda.current_stream().wait_stream(stream)
    assert cuda.waits == []


def test_autocast_has_the_types_of_cuda(cuda: FakeCuda) -> None:
    x = torch.ones(4, 4, device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        product = F.linear(x, x)
        assert product.dtype == (x @ x).dtype == torch.float16
        assert F.layer_norm(product, (4,)).dtype == product.softmax(dim=1).dtype == torch.float32
        assert F.gelu(product).dtype == torch.float16
        with torch.autocast("cuda", enabled=False):
            assert F.linear(x, x).dtype == torch.float32


def test_nothing_is_left_behind() -> None:
    before = torch.cuda.is_available(), torch.empty, torch.cuda.Event
    with FakeCuda():
        tensor = torch.ones(2, device="cuda")
    assert (torch.cuda.is_available(), torch.empty, torch.cuda.Event) == before
    with pytest.raises(RuntimeError, match="has ended"):
        tensor + 1
