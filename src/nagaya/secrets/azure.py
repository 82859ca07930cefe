"""Secrets in Azure Key Vault: ``azuresecrets://vault``, the guide's ``tenant/{id}/{name}`` under names that it allows.

Key Vault's names are 1–127 letters, digits and hyphens, and it does not tell upper from lower case. The place
``tenant/acme/llm-connection`` is ``tenant--acme--llm-connection``; a room of the platform's own (``_platform``) is
``room--platform--…``. Where that could be read in two ways, or is too long, the name is a digest and the tags say what
it stands for.

A value of up to 25,000 bytes of text is kept as it is, so that people can set one by hand; others are base64, and those
too long for one secret lie in several. Replacing and deleting leave Key Vault's soft-deleted copies behind: purging is
not a permission to give a server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError
from azure.keyvault.secrets import KeyVaultSecret, SecretProperties
from azure.keyvault.secrets.aio import SecretClient

from nagaya.adapters import Surroundings
from nagaya.clouds.azure import AzureAccount, is_away, sign_in_refused, status_of
from nagaya.errors import InvalidValue, NagayaError, PermissionMissing, StoreUnreachable

ROLE: Final = "role 'Key Vault Secrets Officer' on the vault"
MAX_TEXT_BYTES: Final = 25_000
_TEXT: Final = "text/plain"
_BASE64: Final = "application/octet-stream; encoding=base64"
_PARTS: Final = "application/octet-stream; encoding=parts"
_MAX_NAME: Final = 127
_PLAIN: Final = re.compile(r"(tenant|room)--([a-z0-9]+(?:-[a-z0-9]+)*)--([a-z0-9]+(?:-[a-z0-9]+)*)")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PART: Final = "nagaya-part-"
_POLL_S: Final = 0.25
_RECOVERIES: Final = 20
_READ_AGAIN: Final = 3
T = TypeVar("T")


async def open_secrets(url: str, surroundings: Surroundings) -> AzureSecrets:
    """The room's secrets in the vault at ``url``. Asks Azure nothing yet. Raises ``InvalidValue``,
    ``AddressRefused``, ``ConnectionSecretInvalid``."""
    parts = urlsplit(url)
    account = await AzureAccount.open(surroundings)
    try:
        if parts.query or parts.fragment or parts.path.strip("/"):
            raise InvalidValue(at="secrets", detail="azuresecrets://vault takes no path and no options")
        return AzureSecrets(account, vault=parts.netloc, room=surroundings.room)
    except BaseException:
        await account.close()
        raise


def vault_name(room: str, name: str) -> str:
    """What a room's secret is called in the vault. No two places share a name."""
    kind, plain = ("room", room[1:]) if room.startswith("_") else ("tenant", room)
    made = f"{kind}--{plain}--{name}"
    found = _PLAIN.fullmatch(made)
    if found is not None and (found[2], found[3]) == (plain, name) and len(made) <= _MAX_NAME:
        return made
    return f"nagaya-{hashlib.sha256(f'{room}/{name}'.encode()).hexdigest()}"


def place_of(vault_name: str, tags: dict[str, str] | None) -> tuple[str, str] | None:
    """The room and name that a secret in the vault stands for, or None where it is not one of ours."""
    found = _PLAIN.fullmatch(vault_name)
    if found is not None:
        return ("_" if found[1] == "room" else "") + found[2], found[3]
    if tags and vault_name.startswith("nagaya-") and not vault_name.startswith(_PART):
        return tags.get("nagaya-room", ""), tags.get("nagaya-name", "")
    return None


class AzureSecrets:
    """One room's secrets. It implements :class:`nagaya.secrets.driver.SecretDriver`.

    ``account`` becomes its own: :meth:`close` closes it.
    """

    def __init__(self, account: AzureAccount, *, vault: str, room: str) -> None:
        self._account = account
        self._url = account.endpoint(vault, ".vault.azure.net")
        self._room = room
        self._client: SecretClient | None = None

    async def get(self, name: str) -> bytes | None:
        place = vault_name(self._room, name)
        for _ in range(_READ_AGAIN):
            found = await self._read(place)
            if found is None:
                return None
            value = await self._opened(found)
            if value is not None:
                return value
            # It was replaced while its parts were read.
        raise StoreUnreachable

    async def put(self, name: str, value: bytes) -> None:
        place = vault_name(self._room, name)
        text, kind = _encoded(value)
        parts: list[str] = []
        if len(text) > MAX_TEXT_BYTES:
            mark = os.urandom(16).hex()
            pieces = [text[start : start + MAX_TEXT_BYTES] for start in range(0, len(text), MAX_TEXT_BYTES)]
            parts = [f"{_PART}{mark}-{number}" for number in range(len(pieces))]
            # Before the secret that names them: a value is there whole or not at all.
            for part, piece in zip(parts, pieces, strict=True):
                await self._set(part, piece, _BASE64, "")
            text, kind = " ".join(parts), _PARTS
        before = await self._read(place)
        await self._set(place, text, kind, name)
        await self._remove_parts(before)

    async def delete(self, name: str) -> None:
        place = vault_name(self._room, name)
        before = await self._read(place)
        if before is not None:
            await self._delete(place)
            await self._remove_parts(before)

    async def names(self) -> Sequence[str]:
        client = await self._secrets()

        async def listed() -> list[SecretProperties]:
            return [each async for each in client.list_properties_of_secrets()]

        found = (place_of(each.name or "", each.tags) for each in await self._ask(listed))
        return sorted(place[1] for place in found if place is not None and place[0] == self._room)

    async def close(self) -> None:
        """Close what is open. May be called again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        await self._account.close()

    # --- values -----------------------------------------------------------------------------------------------

    async def _opened(self, found: KeyVaultSecret) -> bytes | None:
        text, kind = found.value or "", found.properties.content_type
        if kind == _PARTS:
            read = [await self._read(part) for part in text.split()]
            if any(part is None for part in read):
                return None
            text, kind = "".join(part.value or "" for part in read if part is not None), _BASE64
        return base64.b64decode(text.removeprefix("=")) if kind == _BASE64 else text.encode()

    async def _remove_parts(self, former: KeyVaultSecret | None) -> None:
        if former is not None and former.properties.content_type == _PARTS:
            for part in (former.value or "").split():
                await self._delete(part)

    # --- calls ------------------------------------------------------------------------------------------------

    async def _secrets(self) -> SecretClient:
        if self._client is None:
            self._client = SecretClient(
                self._url,
                await self._account.credential(),
                transport=self._account.transport,
                retry_total=3,
                retry_backoff_factor=0.1,
                retry_backoff_max=2,
                raw_response_hook=self._check_region,
            )
        return self._client

    def _check_region(self, answer: Any) -> None:
        if answer.http_response.status_code != 401:
            self._account.check_region(answer.http_response.headers.get("x-ms-keyvault-region", ""))

    async def _read(self, place: str) -> KeyVaultSecret | None:
        client = await self._secrets()
        try:
            return await self._ask(lambda: client.get_secret(place))
        except _Absent:
            return None

    async def _set(self, place: str, text: str, kind: str, name: str) -> None:
        client = await self._secrets()
        tags = {"nagaya-room": self._room, "nagaya-name": name} if name else {"nagaya-room": self._room}
        for _ in range(_RECOVERIES):
            try:
                await self._ask(lambda: client.set_secret(place, text, content_type=kind, tags=tags))
            except _SoftDeleted:
                # A name that was deleted cannot be set for as long as the vault keeps it, but it can be taken back.
                await self._recover(place)
                continue
            return
        raise StoreUnreachable

    async def _recover(self, place: str) -> None:
        client = await self._secrets()
        try:
            await self._ask(lambda: client.recover_deleted_secret(place, _polling_interval=_POLL_S))
        except (_Absent, _SoftDeleted):
            # Being deleted or taken back at this moment.
            await asyncio.sleep(_POLL_S)

    async def _delete(self, place: str) -> None:
        client = await self._secrets()
        try:
            await self._ask(lambda: client.delete_secret(place, _polling_interval=_POLL_S))
        except (_Absent, _SoftDeleted):
            return

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except AzureError as error:
            raise self._meaning(error) from error
        except ValueError as nonsense:
            # What the client makes of an answer, or of a challenge to sign in, that no vault would give.
            raise StoreUnreachable from nonsense

    def _meaning(self, error: AzureError) -> Exception:
        status = status_of(error)
        if status == 404:
            return _Absent()
        if status == 409:
            return _SoftDeleted()
        if is_away(error) or status == 429:
            return StoreUnreachable()
        refused: NagayaError | None = sign_in_refused(error, self._account.room)
        if status == 403:
            refused = PermissionMissing(room=self._account.room, action=f"reading and setting secrets ({ROLE})")
        return refused or StoreUnreachable()


class _Absent(Exception):
    """There is no such secret."""


class _SoftDeleted(Exception):
    """The name belongs to a secret that was deleted and is kept for a while."""


def _encoded(value: bytes) -> tuple[str, str]:
    """A value as text, and what kind of text it is: as it is where people could have written it, else base64."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and len(value) <= MAX_TEXT_BYTES and not _CONTROL.search(text):
        return text, _TEXT
    # An empty value is refused by the vault, so there is always something before it.
    return "=" + base64.b64encode(value).decode("ascii"), _BASE64
