"""A registry in memory, as far as sign-in asks for one."""

from __future__ import annotations

import msgspec

from nagaya.errors import NotFound
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding
from nagaya.tenancy.directory import Pulse
from nagaya.tenancy.tenant import Tenant, TenantState


def tenant(tenant_id: str, **fields) -> Tenant:
    return Tenant(
        **{
            "id": tenant_id,
            "name": tenant_id.title(),
            "state": TenantState.ACTIVE,
            "created_at_us": 1,
            "store": "memory://",
            **fields,
        }
    )


class RestlessPulse(Pulse):
    """A number of its own for every question, so that whoever asks never takes things for unchanged; but where it is
    ``still``."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh_until_s = float("inf")
        self.still = False
        self._asked = 0

    @property
    def changes(self) -> int:
        if not self.still:
            self._asked += 1
        return self._asked

    @changes.setter
    def changes(self, changes: int) -> None:
        self._asked = changes


class MemoryDirectory:
    """Tenants, bindings, keys and revocations that a test sets as it likes. Counts what is asked."""

    def __init__(self, *tenants: Tenant) -> None:
        self.held = {each.id: each for each in tenants}
        self.bindings: list[IssuerBinding] = []
        self.keys: dict[str, ApiKeyRecord] = {}
        self.refused: dict[tuple[str, str, str], int] = {}
        self.pulse = RestlessPulse()
        self.asked: list[str] = []

    def change(self, tenant_id: str, **fields) -> None:
        old = self.held[tenant_id]
        self.held[tenant_id] = msgspec.structs.replace(old, **{"epoch": old.epoch + 1, **fields})

    async def tenant(self, tenant_id: str) -> Tenant:
        self.asked.append(f"tenant {tenant_id}")
        if tenant_id not in self.held:
            raise NotFound("tenant")
        return self.held[tenant_id]

    async def issuers(self, issuer: str) -> list[IssuerBinding]:
        self.asked.append(f"issuers {issuer}")
        return [binding for binding in self.bindings if binding.issuer == issuer]

    async def api_key(self, key_id: str) -> ApiKeyRecord | None:
        self.asked.append(f"api_key {key_id}")
        return self.keys.get(key_id)

    async def is_ending(self, tenant_id: str) -> bool:
        return tenant_id not in self.held

    def refused_before_us(self, tenant_id: str, *, user_id: str, session_id: str | None, token_id: str | None) -> int:
        subjects = (("user", user_id), ("session", session_id or ""), ("token", token_id or ""))
        return max(self.refused.get((tenant_id, kind, subject), 0) for kind, subject in subjects)

    @property
    def fresh(self) -> bool:
        return self.pulse.fresh_until_s > 0

    @fresh.setter
    def fresh(self, fresh: bool) -> None:
        self.pulse.fresh_until_s = float("inf" if fresh else "-inf")

    def is_fresh(self) -> bool:
        return self.fresh
