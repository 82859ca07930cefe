"""Key Vault keeps the secret contract, with two rooms in one vault."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.secrets.azure import AzureSecrets
from nagaya.testing.secrets import SecretContract
from parts.azure_cloud import AzureCloud, azure, azure_session  # noqa: F401 - fixtures


class TestAzureSecrets(SecretContract):
    @pytest.fixture
    async def secrets(self, azure: AzureCloud) -> AsyncIterator[AzureSecrets]:  # noqa: F811 - the fixture's name
        secrets = AzureSecrets(azure.open_account(), vault=f"acme.vault.test:{azure.port}", room="acme")
        yield secrets
        await secrets.close()

    @pytest.fixture
    async def other_secrets(self, azure: AzureCloud) -> AsyncIterator[AzureSecrets]:  # noqa: F811 - as above
        secrets = AzureSecrets(azure.open_account(), vault=f"acme.vault.test:{azure.port}", room="acme-corp")
        yield secrets
        await secrets.close()
