"""Connection secrets: what opens a tenant's own accounts. They are checked when they are set and shown to nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from nagaya.errors import ConnectionSecretInvalid, InvalidValue, MissingExtra
from nagaya.secrets.vault import AWS_CONNECTION, AZURE_CONNECTION, ENTRAID_CONFIG, Vault

EXTERNAL_ID: Final = "aws-external-id"
POSTGRESQL_CONNECTION: Final = "postgresql-connection"
S3_CONNECTION: Final = "s3-connection"
NAMES: Final = (AWS_CONNECTION, AZURE_CONNECTION, ENTRAID_CONFIG, POSTGRESQL_CONNECTION, S3_CONNECTION)

_TEXTS: Final = {
    POSTGRESQL_CONNECTION: (("user", "password"), ("ca",)),
    S3_CONNECTION: (("access_key_id", "secret_access_key"), ()),
}
"""What a secret of ours must hold, and what it may."""


def check_name(name: str) -> None:
    """Raise ``InvalidValue`` for what is no connection secret: the ExternalId is not set, nor deleted, by its name."""
    if name not in NAMES:
        raise InvalidValue(param="name", at="name", detail=f"expected one of {', '.join(NAMES)}")


async def external_id(vault: Vault) -> str:
    """The ExternalId for the trust policy of this tenant's role: made by us, once, and the same ever after.

    Raises ``MissingExtra`` where nothing here could enter that role.
    """
    held = await vault.get(EXTERNAL_ID)
    if held is None:
        with _named_extra(AWS_CONNECTION, "aws"):
            from nagaya.clouds.aws_role import new_external_id

        fresh = new_external_id().encode()
        # Somebody else may have asked meanwhile, and have written it into his role already.
        held = await vault.change(EXTERNAL_ID, lambda held: fresh if held is None else held)
    return held.decode()


async def set_connection(vault: Vault, name: str, value: bytes) -> None:
    """Check and keep a connection secret. Raises ``InvalidValue``, ``ConnectionSecretInvalid``, ``MissingExtra`` or,
    for AWS with an ExternalId that is not ours, ``ExternalIdRefused``."""
    check_name(name)
    _check_texts(name, value)
    if name == AWS_CONNECTION:
        with _named_extra(name, "aws"):
            from nagaya.clouds.aws_role import with_external_id

        value = with_external_id(value, await external_id(vault))
    elif name == AZURE_CONNECTION:
        with _named_extra(name, "azure"):
            from nagaya.clouds.azure import read_connection

        read_connection(value)
    await vault.put(name, value)


async def connection_names(vault: Vault) -> Sequence[str]:
    """Which connection secrets are set."""
    return [name for name in await vault.names() if name in NAMES]


async def forget_connections(vault: Vault) -> None:
    """Delete all of them, the ExternalId included."""
    for name in await vault.names():
        await vault.delete(name)


@contextlib.contextmanager
def _named_extra(feature: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("nagaya"):
            raise
        raise MissingExtra(feature=feature, extra=extra) from missing


def _check_texts(name: str, value: bytes) -> None:
    """A problem names the field, never what is in it."""
    try:
        found = msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConnectionSecretInvalid(name=name, problem="it is not a JSON object") from None
    needed, more = _TEXTS.get(name, ((), ()))
    for field in needed:
        if not found.get(field):
            raise ConnectionSecretInvalid(name=name, problem=f"{field} is missing")
    for field in (*needed, *more):
        if not isinstance(found.get(field, ""), str):
            raise ConnectionSecretInvalid(name=name, problem=f"{field} is not a text")
