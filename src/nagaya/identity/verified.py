"""A bounded memory of tokens that were verified lately, so that a client's thousandth request costs no signature."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from nagaya.tenancy.principal import Principal

TABLE_LIMIT: Final = 8192
SERVE_S: Final = 5.0
"""How long an entry is served without asking the registry for its tenant again."""
LIFE_S: Final = 60.0
"""How long an entry lives before the token is verified anew: a key its issuer withdrew opens nothing after that."""


class Verified:
    """One verified token: whom it speaks for, and when that was last looked at (monotonic seconds)."""

    __slots__ = ("checked_at_s", "epoch", "principal", "verified_at_s")

    def __init__(self, principal: Principal, epoch: int | None, now_s: float) -> None:
        self.principal = principal
        self.epoch = epoch
        self.verified_at_s = now_s
        self.checked_at_s = now_s


def fingerprint(raw: str) -> bytes:
    """What stands for a token in memory, so that a dump of the table opens nothing."""
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).digest()


class VerifiedTable:
    """The last ``limit`` verified tokens by fingerprint, and which of them are whose."""

    def __init__(self, limit: int = TABLE_LIMIT) -> None:
        self._limit = limit
        self._entries: OrderedDict[bytes, Verified] = OrderedDict()
        self._of_tenant: dict[str | None, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Verified | None:
        return self._entries.get(key)

    def put(self, key: bytes, entry: Verified) -> None:
        """Keep the entry; the one put earliest makes room."""
        self.drop(key)
        self._entries[key] = entry
        self._of_tenant.setdefault(entry.principal.tenant_id, set()).add(key)
        if len(self._entries) > self._limit:
            self.drop(next(iter(self._entries)))

    def drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            mine = self._of_tenant[entry.principal.tenant_id]
            mine.discard(key)
            if not mine:
                del self._of_tenant[entry.principal.tenant_id]

    def drop_tenant(self, tenant_id: str | None) -> None:
        """Forget everything of one tenant (None: of the operators), and of no other."""
        for key in self._of_tenant.pop(tenant_id, ()):
            del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()
        self._of_tenant.clear()
