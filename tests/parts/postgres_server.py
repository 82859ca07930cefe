"""Fixtures over the tests' PostgreSQL: ``pytest_plugins = ["parts.postgres_server"]``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from parts.postgres import Postgres, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server, started for the session."""
    # Its files lie outside pytest's folder, which only root can enter.
    home = Path(tempfile.mkdtemp(prefix="nagaya-pg-"))
    try:
        with running(home) as server:
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[str]:
    """An empty database, dropped afterwards."""
    name = await postgres.new_database()
    yield name
    await postgres.drop_database(name)
