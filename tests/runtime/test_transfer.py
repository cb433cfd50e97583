"""Traffic between host and device; on CUDA, in which order streams and events are used."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hiera_video.runtime.transfer import CudaTransfer, Transfer, transfer_for


def test_a_device_without_streams_takes_the_batch_as_it_is():
    transfer = transfer_for(torch.device("cpu"))
    assert type(transfer) is Transfer
    batch = transfer.host_batch((3, 2))
    assert (batch.shape, batch.dtype) == ((3, 2), torch.uint8)
    seen = []

    def double(views):
        seen.append(views)
        return views.float() * 2

    fetch = transfer.launch(double, batch.fill_(4))
    assert seen[0] is batch
    results, seconds = fetch()
    assert torch.equal(results, torch.full((3, 2), 8.0))
    assert seconds > 0


class FakeStream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What happens to streams, in order; without CUDA, there are none."""
    log: list[str] = []
    model, copies = FakeStream("model", log), FakeStream("copies", log)
    current, number = [model], iter(range(100))

    class FakeEvent:
        def __init__(self, enable_timing=False):
            self.name = f"{'time' if enable_timing else 'event'} {next(number)}"

        def record(self, stream):
            log.append(f"{stream.name} records {self.name}")

        def synchronize(self):
            log.append(f"host waits for {self.name}")

        def elapsed_time(self, end):
            log.append(f"host reads {self.name} to {end.name}")
            return 250.0

    @contextlib.contextmanager
    def use(stream):
        current.append(stream)
        yield
        current.pop()

    real_to = torch.Tensor.to

    def to(self, device, *, non_blocking):
        assert non_blocking
        log.append(f"{current[-1].name} copies to {torch.device(device).type}")
        return real_to(self, device, non_blocking=True)

    @contextlib.contextmanager
    def device(chosen):
        log.append(f"the device is {chosen}")
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: model)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda self, stream: log.append(f"{self.device.type} memory is used by {stream.name}"),
    )
    return log


def test_copies_have_a_stream_of_their_own_and_results_an_event(log):
    transfer = transfer_for(torch.device("cuda:0"))
    assert isinstance(transfer, CudaTransfer)

    def model(views):
        assert views.device == torch.device("cuda:0")
        log.append("model works")
        return views.float()

    with FakeTensorMode(allow_non_fake_inputs=True):
        first = transfer.launch(model, torch.empty(2, 3, dtype=torch.uint8))
        transfer.launch(model, torch.empty(2, 3, dtype=torch.uint8))
    assert log[: len(log) // 2] == [
        "copies copies to cuda",
        "model waits for copies",
        "cuda memory is used by model",
        "model records time 0",
        "model works",
        "model records time 1",
        "model copies to cpu",
        "model records event 2",
    ]
    log.clear()
    results, seconds = first()
    assert results.device.type == "cpu"
    assert seconds == 0.25
    # Not for the second batch, which was launched meanwhile; and another thread may ask.
    assert log == ["the device is cuda:0", "host waits for event 2", "host reads time 0 to time 1"]


def test_batches_for_cuda_lie_in_pinned_memory(log, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "empty", lambda shape, **how: asked.update(how, shape=shape))
    CudaTransfer(torch.device("cuda")).host_batch((2, 3))
    assert asked == {"shape": (2, 3), "dtype": torch.uint8, "pin_memory": True}
