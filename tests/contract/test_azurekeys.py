"""Key Vault keeps the key contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.keys.azurekeys import AzureKeys
from nagaya.testing.keys import KeyContract
from parts.azure_cloud import AzureCloud, azure, azure_session  # noqa: F401 - fixtures


class TestAzureKeys(KeyContract):
    """The owner disables and destroys in the vault; Nagaya cannot."""

    has_control = False

    @pytest.fixture
    async def keys(self, azure: AzureCloud) -> AsyncIterator[AzureKeys]:  # noqa: F811 - the fixture's name
        keys = AzureKeys(azure.open_account(), vault=f"acme.vault.test:{azure.port}", key="tenant-key")
        yield keys
        await keys.close()
