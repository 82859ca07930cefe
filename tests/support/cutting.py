"""A relay before a server that breaks off answers after as many bytes as it is told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator


class Cutting:
    """``limits``: after how many bytes of the answer the next connections end; none left: they do not.

    ``asked`` counts connections. What is sent arrives: a reset would also take from the client what it has not read yet.
    A connection of no byte is reset.
    """

    def __init__(self, port: int, limits: list[int]) -> None:
        self.limits = limits
        self.asked = 0
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                limit = self.limits[self.asked] if self.asked < len(self.limits) else -1
                self.asked += 1
                server = socket.create_connection(("127.0.0.1", self._to))
                for work in ((client, server, -1), (server, client, limit)):
                    thread = threading.Thread(target=_pass, args=work, daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)


def _pass(source: socket.socket, target: socket.socket, limit: int) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            if limit >= 0 and passed + len(piece) > limit:
                target.sendall(piece[: limit - passed])
                for end in (source, target) if limit == 0 else (source,):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
            target.sendall(piece)
            passed += len(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextlib.contextmanager
def cutting(port: int, *limits: int) -> Iterator[Cutting]:
    """A relay to the server on ``port`` of the loopback."""
    relay = Cutting(port, list(limits))
    thread = threading.Thread(target=relay.run, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.close()
        thread.join(10)
