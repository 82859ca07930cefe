"""The Azure of :mod:`parts.azure_cloud` as fixtures, one for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parts.azure_cloud import AzureCloud, running


@pytest.fixture(scope="session")
def azure_session() -> Iterator[AzureCloud]:
    """The cloud, started for the session."""
    with running() as cloud:
        yield cloud


@pytest.fixture
def azure(azure_session: AzureCloud) -> Iterator[AzureCloud]:
    """The cloud as it was at first."""
    azure_session.restore()
    yield azure_session
    azure_session.restore()
