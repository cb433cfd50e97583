"""Batches to the device and results back, while the model works on other batches."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

T = TypeVar("T")

Fetch = Callable[[], tuple[Tensor, float]]
"""Waits for the results of a batch. Returns them, on the host, and the seconds that they took."""


class Transfer:
    """Runs functions on batches that lie on the host, and returns their results to the host.

    This class is for devices without streams.
    """

    num_ahead = 0  # batches that are launched before the results of one are awaited

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host_batch(self, shape: Sequence[int]) -> UInt8[Tensor, "..."]:
        """Memory on the host for a batch, from which it is copied to the device."""
        return torch.empty(shape, dtype=torch.uint8)

    def to_device(self, values: Tensor) -> Tensor:
        """Values for the functions that are launched after this."""
        return values.to(self.device)

    def launch(self, function: Callable[..., Tensor], *batch: Shaped[Tensor, "B ..."]) -> Fetch:
        """Starts the work on a batch; any thread may fetch the results."""
        start = time.perf_counter()
        results = function(*map(self.to_device, batch))
        launch_sec = time.perf_counter() - start

        def fetch() -> tuple[Tensor, float]:
            start = time.perf_counter()
            on_host = results.cpu()
            return on_host, launch_sec + time.perf_counter() - start

        return fetch

    def results(self, launched: Iterable[tuple[T, Fetch]]) -> Iterator[tuple[T, Tensor]]:
        """The results in place of how to fetch them, in order, `num_ahead` behind `launched`."""
        waiting = deque[tuple[T, Fetch]]()
        for pair in launched:
            waiting.append(pair)
            if len(waiting) > self.num_ahead:
                item, fetch = waiting.popleft()
                yield item, fetch()[0]
        for item, fetch in waiting:
            yield item, fetch()[0]


class CudaTransfer(Transfer):
    """Copies a batch in its own stream, so that the model works on the one before meanwhile.

    Results are copied in the model's stream behind its work, and awaited by an event: not until the
    work on later batches, which is launched meanwhile, has ended.

    Memory on the host is pinned. torch keeps it when a batch is freed, and gives it to a later one
    once the copy to the device has ended: after the first batches none is allocated.
    """

    num_ahead = 1

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._model = torch.cuda.current_stream(device)
        self._copies = torch.cuda.Stream(device)

    def host_batch(self, shape: Sequence[int]) -> UInt8[Tensor, "..."]:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def to_device(self, values: Tensor) -> Tensor:
        with torch.cuda.stream(self._copies):
            on_device = values.to(self.device, non_blocking=True)
        self._model.wait_stream(self._copies)
        on_device.record_stream(self._model)  # else its memory were free for the next copy
        return on_device

    def launch(self, function: Callable[..., Tensor], *batch: Shaped[Tensor, "B ..."]) -> Fetch:
        on_device = [self.to_device(values) for values in batch]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(self._model)
        results = function(*on_device)
        end.record(self._model)
        on_host = results.to("cpu", non_blocking=True)  # into pinned memory
        arrived = torch.cuda.Event()
        arrived.record(self._model)

        def fetch() -> tuple[Tensor, float]:
            # The current device belongs to a thread: another would open a context on GPU 0.
            with torch.cuda.device(self.device):
                arrived.synchronize()
            return on_host, begin.elapsed_time(end) / 1000  # of milliseconds

        return fetch


def transfer_for(device: torch.device) -> Transfer:
    """The transfer between the host and a device."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)
