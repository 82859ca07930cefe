"""What an AWS adapter is given in tests, and an environment that leads to a stand-in and nowhere else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping

import pytest

from nagaya.adapters import Surroundings
from nagaya.kernel.clock import Clock, SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings
from nagaya.testing.clock import ManualClock

REGION = "ap-northeast-1"
_numbers = itertools.count(1)


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, **services: str) -> None:
    """Let botocore speak to ``url``, and for some services to another address, with credentials that mean nothing."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for service, address in services.items():
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service.upper()}", address)


def clock_of_today() -> ManualClock:
    """A clock that begins at the present: the stand-in deletes by its own clock what has expired, now and then."""
    return ManualClock(now_us=time.time_ns() // 1000)


def surroundings(
    room: str = "acme",
    *,
    secrets: Mapping[str, bytes] | None = None,
    regions: tuple[str, ...] = (),
    settings: Settings | None = None,
    clock: Clock | None = None,
) -> Surroundings:
    """A room's surroundings with these secrets."""
    held = dict(secrets or {})

    async def secret(name: str) -> bytes | None:
        return held.get(name)

    return Surroundings(
        settings=settings or Settings(),
        clock=clock or SystemClock(),
        egress=EgressPolicy(("127.0.0.1",)),
        room=room,
        regions=regions,
        secret=secret,
    )


def new_table() -> str:
    """A table's name that no other test of this process has."""
    return f"tbl{next(_numbers)}"
