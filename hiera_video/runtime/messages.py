"""Messages between processes, passed as memory.

A message and its arrays are written into an anonymous file in memory, whose descriptor is sent, and
the receiver maps that file. It has no name: it is freed with the last process or array that uses
it, whichever process was killed, and the size of /dev/shm does not limit it.
"""

import errno
import io
import mmap
import os
import pickle
import socket
import struct
from collections import deque
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from hiera_video.files import reported

HEADER = struct.Struct("=Q")  # where the index of the file begins
ALIGNMENT = 64  # of each array, bytes
SMALL_BYTES = 1 << 14  # smaller arrays are copied: one that is kept must not hold all the memory

# Where files in memory do not exist (macOS), a descriptor that is closed early may not arrive.
_sent: deque[io.BufferedRandom] = deque(maxlen=64)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def send(connection: socket.socket, message: Any) -> None:
    """Sends a message of arrays, CPU tensors and anything else that can be pickled.

    Raises:
        ConnectionError: the other side is closed.
        OutputError: there is no memory for the arrays.
        OSError: too many files are open.
    """
    pickled, arrays = io.BytesIO(), list[memoryview]()

    def stays(buffer: pickle.PickleBuffer) -> bool:
        """Whether the array is part of the pickled message."""
        if buffer.raw().nbytes > SMALL_BYTES:
            arrays.append(buffer.raw())
        return buffer.raw().nbytes <= SMALL_BYTES

    _Pickler(pickled, protocol=5, buffer_callback=stays).dump(message)
    in_memory, spans = hasattr(os, "memfd_create"), []
    file = open(os.memfd_create("hiera_video"), "r+b") if in_memory else TemporaryFile()  # noqa: SIM115
    with reported("memory for frames"):
        for part in (pickled.getbuffer(), *arrays):
            file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
            spans.append((file.tell(), file.write(part)))
        header = HEADER.pack(file.tell())
        pickle.dump(spans, file)
        file.flush()
    socket.send_fds(connection, [header], [file.fileno()])
    if in_memory:
        file.close()
    else:
        _sent.append(file)


def receive(connection: socket.socket) -> Any:
    """The next message; waits for it. Arrays and tensors may be written to.

    Raises:
        EOFError: the other side was closed, or died.
        ConnectionError: the connection failed.
        OSError: too many files are open, or memory is short.
    """
    header, descriptors, _, _ = socket.recv_fds(connection, HEADER.size, 1)
    if len(header) < HEADER.size:
        raise EOFError
    if not descriptors:
        raise OSError(
            errno.EMFILE,
            "too many open files: each batch that is kept holds one; copy what is kept, or raise "
            "`ulimit -n`",
        )
    try:
        memory = memoryview(mmap.mmap(descriptors[0], 0))
    finally:
        os.close(descriptors[0])
    (index,) = HEADER.unpack(header)
    pickled, *arrays = [
        memory[start : start + size] for start, size in pickle.loads(memory[index:])
    ]
    return pickle.loads(pickled, buffers=arrays)
