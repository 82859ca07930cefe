"""Key Vault keeps the secret contract, with two rooms in one vault."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.secrets.azure import AzureSecrets
from nagaya.testing.secrets import SecretContract
from parts.azure_cloud import AzureCloud

pytest_plugins = ["parts.azure_fixtures"]


class TestAzureSecrets(SecretContract):
    @pytest.fixture
    async def secrets(self, azure: AzureCloud) -> AsyncIterator[AzureSecrets]:
        secrets = AzureSecrets(azure.open_account(), vault=f"acme.vault.test:{azure.port}", room="acme")
        yield secrets
        await secrets.close()

    @pytest.fixture
    async def other_secrets(self, azure: AzureCloud) -> AsyncIterator[AzureSecrets]:
        secrets = AzureSecrets(azure.open_account(), vault=f"acme.vault.test:{azure.port}", room="acme-corp")
        yield secrets
        await secrets.close()
