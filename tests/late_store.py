"""A store for the processes of a run, as torchrun has one."""

import socket

from torch.distributed import TCPStore


class LateStore:
    """torch's store on a port that is known before the store exists.

    Processes are forked first and wait for its answer. Forked later, they would hold copies of its
    connections and of the descriptor that it waits on, and sometimes hang.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("localhost", 0))
        self.port = self._socket.getsockname()[1]

    def start(self) -> None:
        fd = self._socket.detach()
        self._store = TCPStore(
            "localhost", self.port, is_master=True, wait_for_workers=False, master_listen_fd=fd
        )

    def give_up_port(self) -> None:
        """For a process that has the store itself."""
        self._socket.close()
