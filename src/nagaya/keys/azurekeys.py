"""Keys in Azure Key Vault or Managed HSM: ``azurekeys://vault/key``, usually a tenant's own key in its own vault.

A wrapped key is made in two layers. Key Vault wraps 32 fresh random bytes, the seed, by RSA-OAEP-256, which knows no
associated data; the data key is sealed by AES-256-GCM under a key derived from the seed and the :class:`KeyContext`,
with header, context and RSA text as associated data. So a wrapped key opens only where the vault lets the seed be
unwrapped, and only in its own context; and neither the vault's owner nor its log ever sees a data key.

The client wraps with the public key by itself, which proves nothing: every new key is unwrapped once by the vault
before it is used, so a key that is disabled, or that Nagaya may not unwrap with, is refused before anything is sealed
under it. A short digest at the end tells damage without a call; it is no protection, the layers above are.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import Awaitable, Callable
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError
from azure.keyvault.keys.aio import KeyClient
from azure.keyvault.keys.crypto import KeyWrapAlgorithm
from azure.keyvault.keys.crypto.aio import CryptographyClient
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nagaya.adapters import Surroundings
from nagaya.clouds.azure import AzureAccount, is_away, sign_in_refused, status_of
from nagaya.errors import (
    InvalidValue,
    KeyAccessRefused,
    KeyDestroyed,
    KeyDisabled,
    KeyUnreachable,
    NagayaError,
    SealBroken,
)
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.keys.driver import KEY_BYTES, KeyContext

ROLE: Final = "role 'Key Vault Crypto Service Encryption User' on the key"
_ALGORITHM: Final = KeyWrapAlgorithm.rsa_oaep_256
_MAGIC: Final = b"Na\x01"
_HEAD: Final = Struct(">3s16sH")
_NONCE_BYTES: Final = 12
_SEALED_BYTES: Final = KEY_BYTES + 16
_DIGEST_BYTES: Final = 8
_VERSION: Final = re.compile(r"[0-9a-f]{32}")
_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,127}")
_DISABLED: Final = frozenset({"KeyDisabled", "KeyNotYetValid", "KeyExpired"})
_CLIENTS: Final = 8
T = TypeVar("T")


async def open_keys(url: str, surroundings: Surroundings) -> AzureKeys:
    """The key service at ``url``. Asks Azure nothing yet. Raises ``InvalidValue``, ``AddressRefused``,
    ``ConnectionSecretInvalid``."""
    parts = urlsplit(url)
    account = await AzureAccount.open(surroundings)
    try:
        if parts.query or parts.fragment:
            raise InvalidValue(at="key_service", detail="azurekeys://vault/key takes no options")
        return AzureKeys(account, vault=parts.netloc, key=parts.path.strip("/"))
    except BaseException:
        await account.close()
        raise


class AzureKeys:
    """It implements :class:`nagaya.keys.driver.KeyDriver`. Disabling and destroying is the owner's, in the vault.

    ``account`` becomes its own and is closed with it. Every call has ``deadline_s`` seconds.
    """

    def __init__(self, account: AzureAccount, *, vault: str, key: str, deadline_s: float = 10.0) -> None:
        if not _NAME.fullmatch(key):
            raise InvalidValue(at="key_service", detail="a key's name has 1 to 127 letters, digits and hyphens")
        self._account = account
        self._url = account.endpoint(vault, ".vault.azure.net")
        self._key = key
        self._deadline_s = deadline_s
        self._keys: KeyClient | None = None
        self._cryptography: dict[str, CryptographyClient] = {}

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        return await self._within(self._generate(context))

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        parts = _read(wrapped)
        return await self._within(self._unwrap(parts, context))

    async def close(self) -> None:
        """Close what is open. May be called again."""
        for client in self._cryptography.values():
            await client.close()
        self._cryptography.clear()
        if self._keys is not None:
            await self._keys.close()
            self._keys = None
        await self._account.close()

    # --- the layers -------------------------------------------------------------------------------------------

    async def _generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        if self._keys is None:
            self._keys = KeyClient(self._url, await self._account.credential(), **self._settings())
        keys = self._keys
        key = await self._ask(lambda: keys.get_key(self._key))
        version = key.properties.version or ""
        if not _VERSION.fullmatch(version):
            raise KeyUnreachable
        seed, plain, nonce = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES), os.urandom(_NONCE_BYTES)
        async with CryptographyClient(key, await self._account.credential(), **self._settings()) as local:
            wrapped_seed = (await self._ask(lambda: local.wrap_key(_ALGORITHM, seed))).encrypted_key
        head = _HEAD.pack(_MAGIC, bytes.fromhex(version), len(wrapped_seed)) + wrapped_seed
        sealed = _cipher(seed, context).encrypt(nonce, plain, _bound_to(head, context))
        body = head + nonce + sealed
        wrapped = body + _digest(body)
        if not hmac.compare_digest(await self._unwrap(_read(wrapped), context), plain):
            raise KeyUnreachable
        return plain, wrapped

    async def _unwrap(self, parts: _Wrapped, context: KeyContext) -> bytes:
        client = await self._client(parts.version)
        try:
            seed: bytes = (await self._ask(lambda: client.unwrap_key(_ALGORITHM, parts.seed))).key
            return _cipher(seed, context).decrypt(parts.nonce, parts.sealed, _bound_to(parts.head, context))
        except InvalidTag:
            raise SealBroken from None

    async def _client(self, version: str) -> CryptographyClient:
        client = self._cryptography.get(version)
        if client is None:
            credential = await self._account.credential()
            client = CryptographyClient(f"{self._url}keys/{self._key}/{version}", credential, **self._settings())
            # The public key is of no use for unwrapping, and fetching it would be a second call and permission.
            client._keys_get_forbidden = True
            if len(self._cryptography) >= _CLIENTS:
                self._cryptography.pop(next(iter(self._cryptography)))
            self._cryptography[version] = client
        return client

    # --- calls ------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "transport": self._account.transport,
            "retry_total": 2,
            "retry_backoff_factor": 0.1,
            "retry_backoff_max": 1,
            "raw_response_hook": self._check_region,
        }

    def _check_region(self, answer: Any) -> None:
        # The vault says with every answer where it lies; one that does not say so is not known to be inside.
        if answer.http_response.status_code == 401:
            return  # only asks for a sign-in
        self._account.check_region(answer.http_response.headers.get("x-ms-keyvault-region", ""))

    async def _within(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work
        except TimeoutError as late:
            raise KeyUnreachable from late

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except AzureError as error:
            raise await self._meaning(error) from error
        except ValueError as nonsense:
            # What the client makes of an answer, or of a challenge to sign in, that no vault would give.
            raise KeyUnreachable from nonsense

    async def _meaning(self, error: AzureError) -> NagayaError:
        status = status_of(error)
        if is_away(error) or status == 429:
            return KeyUnreachable()
        if sign_in_refused(error, self._account.room) is not None:
            # Who takes the principal or its secret away has revoked the key; nobody else can give it back.
            return KeyAccessRefused(needs="a valid sign-in in the secret azure-connection")
        if status == 403:
            return KeyDisabled() if _inner_code(error) in _DISABLED else KeyAccessRefused(needs=ROLE)
        if status == 404:
            return await self._absence()
        return SealBroken() if status == 400 else KeyUnreachable()

    async def _absence(self) -> NagayaError:
        """Destroyed, or deleted and for a while recoverable: only the first is for ever."""
        if self._keys is None:
            self._keys = KeyClient(self._url, await self._account.credential(), **self._settings())
        try:
            await self._keys.get_deleted_key(self._key)
        except (AzureError, ValueError) as error:
            return KeyDestroyed() if status_of(error) == 404 else KeyDisabled()
        return KeyDisabled()


class _Wrapped(NamedTuple):
    version: str
    seed: bytes
    nonce: bytes
    sealed: bytes
    head: bytes


def _read(wrapped: bytes) -> _Wrapped:
    """The parts of a wrapped key. Raises ``SealBroken`` for what is none, or damaged."""
    try:
        magic, version, size = _HEAD.unpack_from(wrapped)
    except StructError:
        raise SealBroken from None
    end = _HEAD.size + size
    whole = end + _NONCE_BYTES + _SEALED_BYTES + _DIGEST_BYTES
    if magic != _MAGIC or len(wrapped) != whole or wrapped[-_DIGEST_BYTES:] != _digest(wrapped[:-_DIGEST_BYTES]):
        raise SealBroken
    nonce_end = end + _NONCE_BYTES
    return _Wrapped(
        version.hex(),
        wrapped[_HEAD.size : end],
        wrapped[end:nonce_end],
        wrapped[nonce_end : nonce_end + _SEALED_BYTES],
        wrapped[:end],
    )


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_DIGEST_BYTES]


def _bound_to(head: bytes, context: KeyContext) -> bytes:
    return length_prefixed(head, *_words(context))


def _cipher(seed: bytes, context: KeyContext) -> AESGCM:
    return AESGCM(expand(extract(seed), length_prefixed("nagaya-azurekeys", *_words(context)), KEY_BYTES))


def _words(context: KeyContext) -> tuple[str, ...]:
    return (context.app, context.tenant, context.key, str(context.version), context.purpose)


def _inner_code(error: AzureError) -> str:
    """Key Vault's own reason for a 403, such as ``KeyDisabled`` or ``ForbiddenByRbac``; empty where it gives none."""
    inner = getattr(getattr(error, "error", None), "innererror", None)
    return str(inner.get("code", "")) if isinstance(inner, dict) else ""
