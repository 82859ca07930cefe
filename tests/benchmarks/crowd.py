"""A thousand people who read streamed answers, and the model that gives them, in one process that does next to nothing
per word: what it takes from the machine must not be what is measured.

The model is OpenAI-compatible: its first word comes at once, then one a second to each it speaks to, spread evenly over
the second. Readers count what comes and parse nothing. Commands come as lines of JSON on standard input, each is
answered by one: ``{"open": [request, …], "port": N}`` (requests in base64; ``N`` null: readers ask the model itself),
``{"speak": "direct"}`` (to those who asked the model named ``direct``; the others hear nothing until it is their turn),
``{"count": "direct"}``. Run by ``streams.py``.
"""

from __future__ import annotations

import base64
import collections
import json
import select
import socket
import sys
import time
from typing import Any

PERIOD_S = 1.0
AT_ONCE = 20
"""Streams that are being opened at the same time."""
LATE_S = 0.05
"""A model that is later than this with its words lets them go: a heap of them at once would be no even pace."""

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "slow", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(body).encode()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WORD = _framed(_chunk({"role": "assistant", "content": "another word "}))


class Reader:
    """One who reads an answer."""

    __slots__ = ("begun", "bytes", "is_direct", "socket", "words")

    def __init__(self, made: socket.socket, *, is_direct: bool) -> None:
        self.socket = made
        self.is_direct = is_direct
        self.begun = False
        self.words = 0
        self.bytes = 0


class Crowd:
    """The model, its readers, and the one loop that they all live in."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.epoll()
        self._poll.register(listener.fileno(), select.EPOLLIN)
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._asked: dict[int, tuple[socket.socket, bytearray]] = {}
        """Connections to the model, and what has come of a request."""
        self._direct: collections.deque[socket.socket] = collections.deque()
        self._others: collections.deque[socket.socket] = collections.deque()
        self._speaking = self._others
        self._readers: dict[int, Reader] = {}
        self._to_open: list[bytes] = []
        self._port: int = 0
        self._is_direct = False
        self._opening = 0
        self._due_s = time.monotonic()
        self._space = bytearray(65536)

    def run(self) -> None:
        """Until standard input ends."""
        own, commands = self._listener.fileno(), sys.stdin.fileno()
        while True:
            wait_s = max(0.0, self._due_s - time.monotonic()) if self._speaking else -1
            for number, _ in self._poll.poll(wait_s):
                reader = self._readers.get(number)
                if reader is not None:
                    self._read(reader)
                elif number == own:
                    made, _ = self._listener.accept()
                    made.setblocking(False)
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._asked[made.fileno()] = made, bytearray()
                    self._poll.register(made.fileno(), select.EPOLLIN)
                elif number == commands:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    self._obey(json.loads(line))
                elif number in self._asked:
                    self._hear(number)
            self._speak()

    def _speak(self) -> None:
        """The words that are due."""
        now_s = time.monotonic()
        if now_s - self._due_s > LATE_S:
            self._due_s = now_s
        while self._speaking and self._due_s <= now_s:
            self._due_s += PERIOD_S / len(self._speaking)
            made = self._speaking.popleft()
            try:
                made.send(WORD)
            except OSError:
                continue
            self._speaking.append(made)

    def _hear(self, number: int) -> None:
        """More of a request to the model."""
        made, got = self._asked[number]
        try:
            data = made.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(number)
            del self._asked[number]
            for those in (self._direct, self._others):
                if made in those:
                    those.remove(made)
            made.close()
            return
        got += data
        head, found, body = bytes(got).partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            made.send(_HELLO)
            return
        at = head.lower().find(b"content-length:")
        if len(body) >= int(head[at + 15 :].split(b"\r\n")[0]):
            got.clear()
            made.send(_HEAD + WORD)
            (self._direct if b'"direct"' in body else self._others).append(made)

    def _read(self, reader: Reader) -> None:
        """More of an answer."""
        try:
            size = reader.socket.recv_into(self._space)
        except OSError:
            size = 0
        reader.bytes += size
        data = self._space[:size]
        reader.words += data.count(b"another word")
        if reader.words and not reader.begun:
            reader.begun = True
            self._opening -= 1
            self._open_more()
        if not size:
            self._poll.unregister(reader.socket.fileno())
            _say({"failed": "a stream broke off"})

    def _open_more(self) -> None:
        while self._to_open and self._opening < AT_ONCE:
            made = socket.create_connection(("127.0.0.1", self._port))
            made.sendall(self._to_open.pop())
            made.setblocking(False)
            self._readers[made.fileno()] = Reader(made, is_direct=self._is_direct)
            self._poll.register(made.fileno(), select.EPOLLIN)
            self._opening += 1
        if not self._to_open and not self._opening:
            _say({"open": len(self._readers)})

    def _obey(self, command: dict[str, Any]) -> None:
        if "open" in command:
            self._is_direct = command["port"] is None
            self._port = command["port"] or self._listener.getsockname()[1]
            self._to_open = [base64.b64decode(one) for one in command["open"]]
            self._open_more()
        elif "speak" in command:
            self._speaking = self._direct if command["speak"] == "direct" else self._others
            _say({})
        else:
            those = [one for one in self._readers.values() if one.is_direct == (command["count"] == "direct")]
            came = sum(reader.bytes for reader in those)
            _say({"words": [reader.words for reader in those], "bytes": came, "cpu_s": time.process_time()})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048) as listener:
        Crowd(listener).run()


if __name__ == "__main__":
    main()
