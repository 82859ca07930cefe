"""The key port: a service that wraps and unwraps a tenant's data keys and never gives its own root away."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol, runtime_checkable

KEY_BYTES: Final = 32


class KeyContext(NamedTuple):
    """What a wrapped key is bound to. Unwrapping with any other context fails."""

    tenant: str
    key: str
    version: int
    purpose: str
    app: str = "nagaya"

    def encryption_context(self) -> dict[str, str]:
        """The same as the string pairs that AWS KMS calls an encryption context."""
        return {
            "app": self.app, "tenant": self.tenant, "key": self.key, "version": str(self.version),
            "purpose": self.purpose,
        }  # fmt: skip


class KeyDriver(Protocol):
    """A key service. Raises ``KeyDisabled``, ``KeyDestroyed`` or ``KeyUnreachable``, and ``SealBroken`` for a
    wrapped key that does not open under the given context."""

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        """A fresh 256-bit data key: (plain, wrapped)."""
        ...

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        """The plain 256-bit data key."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class KeyControl(Protocol):
    """An optional power: a key service whose keys Nagaya itself may disable, enable and destroy by tenant key name.

    Where the key lives in the customer's own account this is absent, and the customer does it there.
    """

    async def disable(self, key: str) -> None: ...
    async def enable(self, key: str) -> None: ...
    async def destroy(self, key: str) -> None: ...
    async def status(self, key: str) -> str:
        """``enabled``, ``disabled`` or ``destroyed``."""
        ...


@runtime_checkable
class KeyRetraction(Protocol):
    """An optional power: to forget a key that was made for nothing, so that its name is free again."""

    async def retract(self, key: str) -> None:
        """Forget a key under which nothing was kept. One that is destroyed stays so; repeating it is harmless."""
        ...
