"""Servers that tests share: one for the whole run, with two planted tenants, and one of a module's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Before anything of theirs is imported, so that files may be run in any selection and order.
pytest.register_assert_rewrite("parts", "support", "docs_support")

from support.model_server import ModelServer, running_model  # noqa: E402 - the registration must come first
from support.planted import Planted  # noqa: E402 - the registration must come first
from support.server import RunningServer, running  # noqa: E402 - the registration must come first
from support.two_tenants import nagaya, tenant  # noqa: E402, F401 - fixtures for every test

# How long an example takes says how busy the machine is, not whether it holds.
settings.register_profile("nagaya", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nagaya")


@pytest.fixture(scope="session")
def model_server() -> Iterator[ModelServer]:
    """A slow, scripted model server on loopback."""
    with running_model() as server:
        yield server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model_server: ModelServer) -> Iterator[RunningServer]:
    """A server for tests that leave it as they found it."""
    # Any port of the loopback: tests of foreign issuers publish their keys there.
    with running(tmp_path_factory.mktemp("server"), NAGAYA_ALLOWED_HOSTS="127.0.0.1") as started:
        yield started


@pytest.fixture(scope="session")
def acme(server: RunningServer) -> Planted:
    return Planted(server, "acme")


@pytest.fixture(scope="session")
def globex(server: RunningServer) -> Planted:
    return Planted(server, "globex")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory, model_server: ModelServer) -> Iterator[RunningServer]:
    """A server of this module's own, to be revoked, damaged and filled."""
    with running(tmp_path_factory.mktemp("own"), NAGAYA_ALLOWED_HOSTS="127.0.0.1", NAGAYA_CLOCK_SKEW_S="1") as started:
        yield started
