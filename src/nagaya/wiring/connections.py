"""Connection secrets: what opens a tenant's own accounts. They are checked when they are set and shown to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nagaya.errors import InvalidValue, MissingExtra
from nagaya.secrets.vault import AWS_CONNECTION, AZURE_CONNECTION, ENTRAID_CONFIG, Vault

EXTERNAL_ID: Final = "aws-external-id"
POSTGRESQL_CONNECTION: Final = "postgresql-connection"
NAMES: Final = (AWS_CONNECTION, AZURE_CONNECTION, ENTRAID_CONFIG, POSTGRESQL_CONNECTION)


async def external_id(vault: Vault) -> str:
    """The ExternalId for the trust policy of this tenant's role: made by us, once, and the same ever after."""
    held = await vault.get(EXTERNAL_ID)
    if held is None:
        from nagaya.clouds.aws_role import new_external_id

        held = new_external_id().encode()
        await vault.put(EXTERNAL_ID, held)
    return held.decode()


async def set_connection(vault: Vault, name: str, value: bytes) -> None:
    """Check and keep a connection secret. Raises ``InvalidValue``, ``ConnectionSecretInvalid`` or, for AWS with an
    ExternalId that is not ours, ``ExternalIdRefused``."""
    if name not in NAMES:
        raise InvalidValue(param="name", at="name", detail=f"expected one of {', '.join(NAMES)}")
    extra = "azure" if name == AZURE_CONNECTION else "aws"
    try:
        if name == AWS_CONNECTION:
            from nagaya.clouds.aws_role import with_external_id

            value = with_external_id(value, await external_id(vault))
        elif name == AZURE_CONNECTION:
            from nagaya.clouds.azure import read_connection

            read_connection(value)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("nagaya"):
            raise
        raise MissingExtra(feature=name, extra=extra) from missing
    await vault.put(name, value)


async def connection_names(vault: Vault) -> Sequence[str]:
    """Which connection secrets are set."""
    return [name for name in await vault.names() if name in NAMES]


async def forget_connections(vault: Vault) -> None:
    """Delete all of them, the ExternalId included."""
    for name in await vault.names():
        await vault.delete(name)
