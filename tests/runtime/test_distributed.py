import pytest
import torch

from hiera_video.runtime.distributed import (
    barrier,
    gather_on_main,
    is_distributed,
    process_group,
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


def test_a_group_of_one(monkeypatch, tmp_path):
    """What torchrun sets, for one process; the group is left again, after an error too."""
    import socket

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
    with pytest.raises(KeyError), process_group("cpu") as process:  # noqa: PT012
        assert is_distributed()
        assert process.world_size == 1
        assert sum_over_processes(torch.tensor(3.0)).item() == 3.0
        assert gather_on_main({"a": 1}) == [{"a": 1}]
        raise KeyError
    assert not is_distributed()


@pytest.mark.parametrize("device", ["cudo", "cuda:x", ""])
def test_an_unknown_device_is_named(device):
    with pytest.raises(ValueError, match=r"device is .* take auto, cpu"), process_group(device):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="torch finds no CUDA device"), process_group("cuda"):
        pass
