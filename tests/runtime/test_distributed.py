import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from hiera_video.errors import ConfigError, UserError
from hiera_video.runtime import distributed
from hiera_video.runtime.distributed import (
    barrier,
    gather_on_main,
    is_distributed,
    process_group,
    store_of_this_start,
    sum_over_processes,
)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as process:
        assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
        assert process.device == torch.device("cpu")
        assert not is_distributed()
        assert sum_over_processes(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
        assert gather_on_main("x") == ["x"]
        barrier()


@pytest.fixture
def group_of_one(monkeypatch):
    """What torchrun sets, for one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))


def test_a_group_of_one(group_of_one):
    """The group is left again, after an error too."""
    with pytest.raises(KeyError), process_group("cpu") as process:  # noqa: PT012
        assert is_distributed()
        assert process.world_size == 1
        assert sum_over_processes(torch.tensor(3.0)).item() == 3.0
        assert gather_on_main({"a": 1}) == [{"a": 1}]
        raise KeyError
    assert not is_distributed()


def test_processes_whose_devices_differ_have_one_precision(group_of_one, monkeypatch):
    """Gradients of a scaled loss and of others must not be added up."""
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: "bf16")
    monkeypatch.setattr(distributed, "union_over_processes", lambda kinds: kinds | {"fp16"})
    message = "precision=auto is bf16 and fp16 on the devices of the processes: choose one"
    with pytest.raises(ConfigError, match=message), process_group("cpu", "auto"):
        pass
    assert not is_distributed()


def test_processes_that_are_started_again_do_not_meet_those_that_died():
    """In torchrun's store there is still what the earlier ones wrote."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0)):
        with ThreadPoolExecutor() as pool:
            joined = []
            for rank in order:
                store = TCPStore("localhost", server.port, is_master=False)
                joined.append(pool.submit(store_of_this_start, store, rank, 3))
                time.sleep(0.1)  # what the first finds is of the earlier ones
            stores = [future.result(timeout=10) for future in joined]
        assert not stores[0].check(["mine"])
        stores[0].set("mine", "")
        assert all(store.check(["mine"]) for store in stores)


def test_a_process_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "LIMIT_SEC", 0.2)
    with pytest.raises(UserError, match="rank 1 and rank 2 did not start within"):
        store_of_this_start(HashStore(), 0, 3)


@pytest.mark.parametrize("device", ["cudo", "cuda:x", "", "meta", "xpu"])
def test_an_unknown_device_is_named(device):
    with pytest.raises(ValueError, match=r"device is .* take auto, cpu"), process_group(device):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="torch finds no CUDA device"), process_group("cuda"):
        pass


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has an Apple GPU")
def test_mps_where_there_is_none():
    message = "device is 'mps': torch finds no Apple GPU; take auto or cpu"
    with pytest.raises(ConfigError, match=message), process_group("mps"):
        pass


def test_the_number_of_a_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "device is 'cuda:2': torch finds 2 CUDA devices, from cuda:0"
    with pytest.raises(ConfigError, match=message), process_group("cuda:2"):
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_a_machine_has_a_device_of_its_own(monkeypatch, rank):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed, "arithmetic", lambda precision, *_: precision)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with process_group("auto") as process:
        assert process.device == torch.device("cuda", rank)
    assert chosen == [process.device]


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    message = "torchrun started 4 on this machine, where torch finds 2; take as many, by --nproc"
    with pytest.raises(ConfigError, match=message), process_group("cuda"):
        pass
