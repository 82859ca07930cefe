"""A body that does not come, on a server whose patience was made short."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from support.server import running


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path):
    with running(tmp_path, NAGAYA_BODY_DEADLINE_S="0.7") as server:
        server.tenant("patience")
        key = server.key("patience")
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            head = f"POST /v1/conversations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 20\r\n\r\n{{"
            connection.sendall(head.encode())
            began_s = time.monotonic()
            received = b""
            while b"request_timeout" not in received and (piece := connection.recv(65_536)):
                received += piece
            assert received.startswith(b"HTTP/1.1 408")
            assert b"x-request-id" in received
            # The patience was kept; that it ends at all is the answer itself, however busy the machine is.
            assert time.monotonic() - began_s >= 0.5
        assert server.client(key).post("/v1/conversations", json={}).status_code == 200
