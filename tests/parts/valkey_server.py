"""Fixtures over the tests' Valkey: ``pytest_plugins = ["parts.valkey_server"]``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parts.valkey import Valkey, running


@pytest.fixture(scope="session")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """The server, started for the session; to be left running."""
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """The session's server, empty."""
    shared_valkey.ask("FLUSHALL")
    return shared_valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own, to be stopped and started."""
    with running(tmp_path) as server:
        yield server
