"""The AWS stand-in on a free port of loopback, for as long as a test session lasts.

Its tokens are really signed, with keys per pool. Their issuer is the real AWS address, as on AWS itself, so a binding
points to the stand-in by its key URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from parts.environments import absent, environment

READY_S = 60.0
REGION = "ap-northeast-1"


class Ministack:
    """A running stand-in."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = process

    def stop(self) -> None:
        """End it at once; what it held is gone. May be repeated."""
        self._process.kill()
        self._process.wait()

    def call(self, service: str, operation: str, **body: Any) -> dict[str, Any]:
        """One operation of an AWS service that speaks JSON, such as ``AWSCognitoIdentityProviderService``."""
        credential = f"Credential=test/20260101/{REGION}/{service}/aws4_request"
        headers = {
            "x-amz-target": f"{service}.{operation}",
            "content-type": "application/x-amz-json-1.1",
            "authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0",
        }
        answer = httpx.post(self.url, headers=headers, content=json.dumps(body), timeout=10, trust_env=False)
        assert answer.status_code == 200, f"{operation}: {answer.status_code} {answer.text[:300]}"
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="session")
def ministack() -> Iterator[Ministack]:
    """The stand-in, started for the session."""
    with running() as started:
        yield started


@contextlib.contextmanager
def running() -> Iterator[Ministack]:
    """A stand-in of one's own."""
    python = environment("ministack")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",  # its default is every interface
        "GATEWAY_PORT": str(port),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "MINISTACK_REGION": REGION,
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        [python, "-m", "ministack"], env=kept | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(process, port)
        yield Ministack(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(running: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if running.poll() is not None:
            absent("ministack", f"it ended at once with {running.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    absent("ministack", f"it did not listen within {READY_S:.0f} s")
