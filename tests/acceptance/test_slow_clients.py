"""Clients that take their time hold nothing: raw sockets against the server's own protocol."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from acceptance.processes import Server, furnish, serving
from nagaya.server import protocol

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("slow") / "data"
    furnish(data)
    with serving(data) as running:
        yield running


def dial(server: Server, first: bytes) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(first)
    return connection


def read_to_the_end(connection: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


def test_whoever_dawdles_over_a_request_is_disconnected_after_ten_seconds(server: Server) -> None:
    began_s = time.monotonic()
    connections = {
        "nothing sent": dial(server, b""),
        "half a head, dripping": dial(server, HEAD),
        "blank lines, dripping": dial(server, b"\r\n"),
        "second head unfinished": dial(server, HEAD + b"\r\n"),
        "body nobody reads": dial(server, b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\na"),
    }
    time.sleep(0.3)
    connections["second head unfinished"].sendall(HEAD)
    connections["body nobody reads"].sendall(b"b")
    ended = threading.Event()

    def drip() -> None:
        # A byte now and then must not put the deadline off.
        while not ended.wait(0.4):
            for name, drop in (("half a head, dripping", b"X"), ("blank lines, dripping", b"\r\n")):
                with contextlib.suppress(OSError):
                    connections[name].sendall(drop)

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        for name, connection in connections.items():
            with connection:
                read_to_the_end(connection)
            # Not cut off before its time. That it ends although a byte drips every 0.4 s shows that no byte puts it off.
            assert time.monotonic() - began_s > protocol.HEAD_S - 2, name
    finally:
        ended.set()
        dripping.join()


def test_a_head_without_end_is_refused_by_its_size(server: Server) -> None:
    with dial(server, b"GET /healthz HTTP/1.1\r\n") as connection:
        answer = b""
        with contextlib.suppress(OSError):
            for _ in range(64):
                connection.sendall(b"X-Filler: " + b"a" * 4096 + b"\r\n")
                time.sleep(0.002)
        answer = read_to_the_end(connection)
    assert answer == b"" or b" 431 " in answer


@pytest.mark.parametrize(
    "words",
    [
        b"HELO mail.example\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_refused_in_the_error_shape(server: Server, words: bytes) -> None:
    with dial(server, words) as connection:
        head, _, body = read_to_the_end(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"x-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_an_ordinary_client_may_keep_its_connection_and_send_a_head_in_pieces(server: Server) -> None:
    with dial(server, b"") as connection:
        for _ in range(3):
            for piece in (b"GET /heal", b"thz HTTP/1.1\r\nHo", b"st: x\r\n", b"\r\n"):
                connection.sendall(piece)
                time.sleep(0.01)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
