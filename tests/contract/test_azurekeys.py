"""Key Vault keeps the key contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.keys.azurekeys import AzureKeys
from nagaya.testing.keys import KeyContract
from parts.azure_cloud import AzureCloud

pytest_plugins = ["parts.azure_fixtures"]


class TestAzureKeys(KeyContract):
    """The owner disables and destroys in the vault; Nagaya cannot."""

    has_control = False

    @pytest.fixture
    async def keys(self, azure: AzureCloud) -> AsyncIterator[AzureKeys]:
        keys = AzureKeys(azure.open_account(), vault=f"acme.vault.test:{azure.port}", key="tenant-key")
        yield keys
        await keys.close()
