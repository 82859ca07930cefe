"""Which users, sessions and tokens are refused, held whole in memory so that a request asks without waiting."""

from __future__ import annotations

from nagaya.tenancy.bindings import Revocation


class Refusals:
    """Live revocations by tenant. A moment only rises; a row goes when its tokens have all ended."""

    __slots__ = ("_of_tenant",)

    def __init__(self) -> None:
        self._of_tenant: dict[str, dict[tuple[str, str], tuple[int, int]]] = {}

    def add(self, revocation: Revocation) -> None:
        mine = self._of_tenant.setdefault(revocation.tenant_id, {})
        at = (revocation.kind, revocation.subject)
        not_before_us, expires_at_us = mine.get(at, (0, 0))
        mine[at] = max(not_before_us, revocation.not_before_us), max(expires_at_us, revocation.expires_at_us)

    def forget_ended(self, before_us: int) -> None:
        """Drop those whose tokens had all ended before that moment."""
        self._of_tenant = {
            tenant_id: live
            for tenant_id, mine in self._of_tenant.items()
            if (live := {at: moments for at, moments in mine.items() if moments[1] >= before_us})
        }

    def before_us(self, tenant_id: str, *, user_id: str, session_id: str | None, token_id: str | None) -> int:
        """Tokens of this user, session or token id issued before this moment are refused; 0: none are."""
        mine = self._of_tenant.get(tenant_id)
        if mine is None:
            return 0
        moment_us = mine.get(("user", user_id), (0, 0))[0]
        if session_id is not None:
            moment_us = max(moment_us, mine.get(("session", session_id), (0, 0))[0])
        if token_id is not None:
            moment_us = max(moment_us, mine.get(("token", token_id), (0, 0))[0])
        return moment_us
