"""Ranks and reductions, from the variables that torchrun sets; without them, one process."""

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from hiera_video.errors import ConfigError, UserError
from hiera_video.runtime.compiler import check_compiler
from hiera_video.runtime.precision import arithmetic, set_tf32
from hiera_video.runtime.watch import LIMIT_SEC, Watch
from hiera_video.settings.training import Arithmetic, Precision

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(days=14)  # of collectives, which Watch ends long before

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    watch: Watch | None = None  # None where there are no others
    precision: Arithmetic = "fp32"  # of models

    @property
    def is_main(self) -> bool:
        return self.rank == 0


ALONE = Process(0, 1, 1, torch.device("cpu"))


@contextmanager
def process_group(
    device: str, precision: Precision = "fp32", compile: bool = False, section: str = ""
) -> Iterator[Process]:
    """Joins the other processes that torchrun started, if any, and leaves them at the end.

    The processes wait for one another as long as all of them live, see `Watch`.

    Args:
        device: "auto", or a torch device; each process of a machine gets a GPU of its own.
        precision: of models, see `runtime.precision.arithmetic`.
        compile: whether models are compiled.
        section: of the settings, for messages: "train." in train.precision.

    Raises:
        ConfigError: there is no such device, it has no such precision, torch.compile has no
            compiler, or "auto" is not the same on all of them.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else device
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        chosen = torch.device(device)
        is_known = chosen.type in ("cpu", "cuda", "mps")
    except RuntimeError:
        is_known = False
    if not is_known:
        raise ConfigError(f"device is {device!r}: take auto, cpu, cuda, cuda:N or mps")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device is {device!r}: torch finds no Apple GPU; take auto or cpu")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}: torch finds no CUDA device; take auto or cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device is {device!r}: torch finds {count} CUDA devices, from cuda:0")
    if chosen.type == "cuda":
        if chosen.index is None and local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"each process needs a CUDA device of its own: torchrun started {local_world_size} "
                f"on this machine, where torch finds {torch.cuda.device_count()}; take as many, by "
                "--nproc_per_node"
            )
        if chosen.index is None:
            chosen = torch.device("cuda", local_rank)
        elif local_world_size > 1:
            raise ConfigError(f"device={device}: several processes cannot share it, say cuda")
        torch.cuda.set_device(chosen)
    key = f"{section}precision"
    known = arithmetic(precision, chosen, key)
    if compile:
        check_compiler(chosen, f"{section}compile is true", f"write {section}compile=false")
    if chosen.type == "cuda":
        set_tf32(known)
    if precision == "auto" and os.environ.get("RANK", "0") == "0":
        name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen
        logger.info("%s=auto: %s on %s", key, known, name)
    if "WORLD_SIZE" not in os.environ:
        yield Process(0, 1, 1, chosen, precision=known)
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    store = store_of_this_start(store, rank, world_size)
    with Watch(PrefixStore("watch", store.clone()), rank, world_size) as watch:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
        )
        try:
            kinds = union_over_processes({known})
            if len(kinds) > 1:
                raise ConfigError(
                    f"{key}={precision} is {' and '.join(sorted(kinds))} on the devices of the "
                    "processes: choose one that all of them have"
                )
            yield Process(rank, world_size, local_world_size, chosen, watch, known)
        finally:
            dist.destroy_process_group()


def store_of_this_start(store: Store, rank: int, world_size: int) -> Store:
    """The part of a store that only the processes that are started now use.

    torchrun keeps its store when it starts processes again: without this, they would take the
    addresses of processes that died, and fail. Each process has a new name, and gets the name of
    the first under it.

    Raises:
        UserError: a process does not come within `LIMIT_SEC`.
    """
    name = uuid.uuid4().hex

    def without_answer() -> list[int]:
        if rank:
            return [] if store.check([name]) else [0]
        missing = [r for r in range(1, world_size) if not store.check([f"{name}/{r}"])]
        for key in (f"name/{r}" for r in missing):
            if store.check([key]):  # it may be a name of an earlier start, until the process comes
                store.set(store.get(key).decode(), name)
        return missing

    store.set(f"name/{rank}", name)
    deadline = time.monotonic() + LIMIT_SEC
    while missing := without_answer():
        if time.monotonic() > deadline:
            ranks = " and ".join(f"rank {other}" for other in missing)
            raise UserError(f"{ranks} did not start within {LIMIT_SEC / 60:g} minutes")
        time.sleep(0.05)
    first = store.get(name).decode() if rank else name
    store.set(f"{first}/{rank}", "")
    return PrefixStore(first, store)


@contextmanager
def first_process_first(process: Process) -> Iterator[None]:
    """The first process of each machine runs the block before the others: it fetches."""
    is_first = process.rank % process.local_world_size == 0
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def sum_over_processes(values: Tensor) -> Tensor:
    """Elementwise sum, in place; the same values without other processes."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def any_process(condition: bool) -> bool:
    """Whether the condition holds on any process.

    Exit codes depend on it: torchrun ends all processes when one has left with another code than 0.
    """
    return bool(sum_over_processes(torch.tensor(float(condition))))


def gather_on_main(value: T) -> list[T] | None:
    """The values of all processes, in the order of ranks, on the main one; None on the others."""
    if not is_distributed():
        return [value]
    gathered: Any = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def union_over_processes(values: set[T]) -> set[T]:
    """The values of all processes, on each."""
    gathered = gather_on_main(values)
    return from_main(set[T]().union(*gathered) if gathered else values)


def from_main(value: T) -> T:
    """The main process's `value`, on every process."""
    if not is_distributed():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values)
    return values[0]


def on_main(function: Callable[[], T]) -> T:
    """What `function` returns on the main process, which alone calls it, on every process.

    A UserError or OSError of it is raised on every process: none is left waiting for the main one.
    """
    result: Any = None
    error: Exception | None = None
    if not is_distributed() or dist.get_rank() == 0:
        try:
            result = function()
        except (UserError, OSError) as raised:
            error = raised
    result, error = from_main((result, error))
    if error is not None:
        raise error
    return result


def barrier() -> None:
    if is_distributed():
        dist.barrier()
