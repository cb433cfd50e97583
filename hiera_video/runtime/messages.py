"""Messages between processes, with arrays passed as memory.

A message is pickled without the bytes of its arrays and CPU tensors. These are written into an
anonymous file in memory, whose descriptor accompanies the message, and the receiver maps that file.
The file has no name: it is freed with the last process or array that uses it, whoever was killed,
and the size of /dev/shm does not limit it.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import struct
import tempfile
from typing import Any

import torch
from torch import Tensor

HEADER = struct.Struct("=Q?")  # bytes of the pickled message; whether a descriptor comes with it
ALIGNMENT = 64  # of each array, bytes


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def send(connection: socket.socket, message: Any) -> None:
    """Sends a message; waits while the connection is full.

    Raises:
        OSError: the other side is closed.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(message)
    if not buffers:
        body = pickle.dumps((pickled.getvalue(), []))
        connection.sendall(HEADER.pack(len(body), False) + body)
        return
    spans: list[tuple[int, int]] = []
    with _anonymous_file() as file:
        for buffer in buffers:
            with buffer.raw() as bytes_:
                start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
                file.seek(start)
                file.write(bytes_)
                spans.append((start, len(bytes_)))
        file.truncate(max(file.tell(), 1))  # an empty file cannot be mapped
        body = pickle.dumps((pickled.getvalue(), spans))
        socket.send_fds(connection, [HEADER.pack(len(body), True)], [file.fileno()])
    connection.sendall(body)


def receive(connection: socket.socket) -> Any:
    """The next message; waits for it. Arrays and tensors may be written to.

    Raises:
        EOFError: the other side was closed, or died.
        OSError: the connection failed.
    """
    header, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 1)
    header += _receive(connection, HEADER.size - len(header)) if header else b""
    if not header:
        raise EOFError
    length, has_memory = HEADER.unpack(header)
    memory = None
    if has_memory:
        (descriptor,) = descriptors
        memory = memoryview(mmap.mmap(descriptor, 0))
        os.close(descriptor)
    pickled, spans = pickle.loads(_receive(connection, length))
    buffers = [memory[start : start + size] for start, size in spans] if memory else []
    return pickle.loads(pickled, buffers=buffers)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _anonymous_file() -> io.BufferedRandom:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("hiera_video"), "r+b")
    return tempfile.TemporaryFile()
