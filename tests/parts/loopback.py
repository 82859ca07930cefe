"""Servers of the tests' own on the loopback, each in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn


@contextmanager
def on_loopback(app: Any, *, lifespan: Literal["auto", "off"] = "off") -> Iterator[int]:
    """Serve an ASGI application on a free port, which it gives, until the block ends."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, loop="asyncio", lifespan=lifespan, timeout_graceful_shutdown=1)
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not runner.started:
        threading.Event().wait(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        runner.should_exit = True
        runner.force_exit = True
        thread.join(10)
        listener.close()
