"""Messages between processes, and their memory."""

from __future__ import annotations

import gc
import os
import resource
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from hiera_video.errors import OutputError
from hiera_video.runtime.messages import receive, send


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "message",
    [
        None,
        ("end", {"a": [1, "ä"]}),
        "x" * 3_000_000,
        np.arange(7, dtype=np.int64),
        np.zeros((0, 3), np.float32),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        [np.ones(1, np.uint8), torch.ones(3, dtype=torch.float64), np.full(5, 2.5)],
    ],
)
def test_a_message_arrives_as_it_was_sent(pair, message):
    ours, theirs = pair
    sender = threading.Thread(target=send, args=(theirs, message))
    sender.start()
    received = receive(ours)
    sender.join()
    for value, expected in zip(
        received if isinstance(received, list) else [received],
        message if isinstance(message, list) else [message],
        strict=True,
    ):
        assert type(value) is type(expected)
        if isinstance(expected, np.ndarray | torch.Tensor):
            assert value.dtype == expected.dtype
            assert value.shape == expected.shape
            assert (value == expected).all()
            value[...] = 0  # it may be written to
        else:
            assert value == expected


def test_messages_outlive_their_sender(pair):
    ours, theirs = pair
    send(theirs, np.arange(3))
    send(theirs, "last")
    theirs.close()
    assert receive(ours).tolist() == [0, 1, 2]
    assert receive(ours) == "last"
    with pytest.raises(EOFError):
        receive(ours)


def test_a_small_array_that_is_kept_does_not_hold_the_others(pair):
    ours, theirs = pair

    def mapped():
        return Path("/proc/self/maps").read_text().count("memfd:hiera_video")

    send(theirs, (np.zeros(1_000_000), np.arange(10)))
    large, small = receive(ours)
    assert mapped() == 1
    del large
    assert mapped() == 0
    small[0] = 5  # it may be written to
    assert small.tolist() == [5, *range(1, 10)]


def test_too_many_open_files_are_no_lost_message(pair):
    ours, theirs = pair
    send(theirs, "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the next descriptor
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="too many open files"):
            receive(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_files_in_memory(pair, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    ours, theirs = pair
    send(theirs, np.arange(100_000))
    assert receive(ours).sum() == 4_999_950_000


def test_half_a_message_is_the_end(pair):
    ours, theirs = pair
    theirs.sendall(b"\x10\0\0")
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)


def test_memory_is_freed(pair):
    ours, theirs = pair

    def open_files():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(20):
        send(theirs, np.zeros(100_000))
        receive(ours)
    assert open_files() == before
    assert "memfd:hiera_video" not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_memory_that_is_full_is_named(monkeypatch):
    monkeypatch.setattr(os, "memfd_create", lambda _: os.open("/dev/full", os.O_RDWR))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OutputError, match="memory for frames cannot be written"):
        send(ours, np.zeros(100_000))
