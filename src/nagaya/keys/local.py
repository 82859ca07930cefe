"""The local key service: tenants' keys wrapped under one root key, in a folder, for one server or several processes.

In the folder: ``root.*`` (see :mod:`nagaya.keys.root`) and, per tenant key, ``keys/NAME.key`` (256 random bits that
its wrapping key is made from, together with the root), ``keys/NAME.disabled`` while it is disabled, and
``keys/NAME.destroyed`` for ever once it is destroyed. Destroying removes ``NAME.key``: then nobody can wrap or unwrap
any more, the holder of the root key included.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nagaya.errors import KeyDestroyed, KeyDisabled, NotFound, SealBroken
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.keys.driver import KEY_BYTES, KeyContext
from nagaya.keys.root import RootKey, open_root_key
from nagaya.keys.small_files import make_folder, remove, wipe, write_new

_NAME: Final = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_MAGIC: Final = b"Nk\x01"
_NONCE_BYTES: Final = 12
_WRAPPED_BYTES: Final = len(_MAGIC) + _NONCE_BYTES + KEY_BYTES + 16
_T = TypeVar("_T")


class LocalKeyService:
    """A key service in a folder. It implements ``KeyDriver``, ``KeyControl`` and ``KeyRetraction``.

    A key's state is read from the folder at every use, so a change by one process holds in all at once. File work
    is done in two threads of its own, so that a slow disk delays no request but the one that needs a key.
    """

    def __init__(self, folder: Path, root: RootKey) -> None:
        self._keys = folder / "keys"
        self._root = root
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="nagaya-keys")
        make_folder(self._keys)

    @classmethod
    async def open(
        cls,
        folder: Path,
        root_key: str | None = None,
        *,
        create: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> LocalKeyService:
        """The service of a folder; ``root_key`` as in the settings. ``create`` makes root key and folder where there
        is nothing yet. Raises ``RootKeyRefused`` or ``SettingsInvalid``."""
        root = await asyncio.to_thread(open_root_key, folder, root_key, create=create, environment=environment)
        return cls(folder, root)

    # --- KeyDriver --------------------------------------------------------------------------------------------

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        """A fresh data key, plain and wrapped. The first one under a name makes that name's key."""
        return await self._in_thread(self._generate, context)

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        return await self._in_thread(self._unwrap, wrapped, context)

    async def close(self) -> None:
        """Let the threads end. May be called again."""
        self._threads.shutdown(wait=False)

    # --- KeyControl -------------------------------------------------------------------------------------------

    async def disable(self, key: str) -> None:
        """Refuse every use of the key until it is enabled. Durable; repeating it is harmless."""
        await self._in_thread(self._disable, key)

    async def enable(self, key: str) -> None:
        """Allow a disabled key again. Raises ``KeyDestroyed`` where it is too late."""
        await self._in_thread(self._enable, key)

    async def destroy(self, key: str) -> None:
        """Make everything wrapped under the key unreadable for ever. Its name is never given to another key."""
        await self._in_thread(self._destroy, key)

    async def retract(self, key: str) -> None:
        """Forget a key under which nothing was kept, so that its name may be given again. No tombstone is left."""
        await self._in_thread(self._retract, key)

    async def status(self, key: str) -> str:
        """``enabled``, ``disabled`` or ``destroyed``. Raises ``NotFound`` where there never was such a key."""
        return await self._in_thread(self._status, key)

    # --- in the threads ---------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _path(self, key: str, kind: str) -> Path:
        # The only place where a name becomes a path: no dot, no slash, nothing that leaves the folder.
        if not _NAME.fullmatch(key):
            raise NotFound("key")
        return self._keys / f"{key}.{kind}"

    def _secret(self, key: str) -> bytes | None:
        """The key's own secret, after the key's state was looked at. None where the key was never made."""
        try:
            secret = self._path(key, "key").read_bytes()
        except FileNotFoundError:
            secret = None
        # Read before the state, so that a key destroyed at this moment is reported as destroyed, not as broken.
        if os.path.lexists(self._path(key, "destroyed")):
            raise KeyDestroyed
        if os.path.lexists(self._path(key, "disabled")):
            raise KeyDisabled
        return secret

    def _cipher(self, secret: bytes, context: KeyContext) -> AESGCM:
        if len(secret) != KEY_BYTES:
            raise SealBroken
        # Either alone tells nothing: the root without the key's own secret, or the secret without the root.
        return AESGCM(expand(extract(secret, self._root.derive("wrap", context.key)), b"nagaya-wrap", KEY_BYTES))

    def _generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        secret = self._secret(context.key)
        if secret is None:
            write_new(self._path(context.key, "key"), os.urandom(KEY_BYTES))
            # Read back: another process may have been first, and only one secret counts.
            secret = self._secret(context.key) or b""
        plain = os.urandom(KEY_BYTES)
        nonce = os.urandom(_NONCE_BYTES)
        return plain, _MAGIC + nonce + self._cipher(secret, context).encrypt(nonce, plain, _bound_to(context))

    def _unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        secret = self._secret(context.key)
        if secret is None or len(wrapped) != _WRAPPED_BYTES or not wrapped.startswith(_MAGIC):
            raise SealBroken
        nonce, sealed = wrapped[len(_MAGIC) :][:_NONCE_BYTES], wrapped[len(_MAGIC) + _NONCE_BYTES :]
        try:
            return self._cipher(secret, context).decrypt(nonce, sealed, _bound_to(context))
        except InvalidTag:
            raise SealBroken from None

    def _status(self, key: str) -> str:
        try:
            if self._secret(key) is None:
                raise NotFound("key")
        except KeyDisabled:
            return "disabled"
        except KeyDestroyed:
            return "destroyed"
        return "enabled"

    def _disable(self, key: str) -> None:
        if self._status(key) == "destroyed":
            raise KeyDestroyed
        write_new(self._path(key, "disabled"), b"")

    def _enable(self, key: str) -> None:
        if self._status(key) == "destroyed":
            raise KeyDestroyed
        remove(self._path(key, "disabled"))

    def _destroy(self, key: str) -> None:
        # The tombstone first: a crash in between leaves a key that is refused, never one that works half.
        write_new(self._path(key, "destroyed"), b"")
        wipe(self._path(key, "key"))
        remove(self._path(key, "disabled"))

    def _retract(self, key: str) -> None:
        if not os.path.lexists(self._path(key, "destroyed")):
            wipe(self._path(key, "key"))
            remove(self._path(key, "disabled"))


def _bound_to(context: KeyContext) -> bytes:
    return length_prefixed(
        "nagaya-wrap", context.app, context.tenant, context.key, str(context.version), context.purpose
    )
