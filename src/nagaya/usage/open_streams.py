"""How many streams a tenant has open in this process, so that one tenant's cannot use up the memory of all."""

from __future__ import annotations

from nagaya.errors import TooManyStreams
from nagaya.tenancy.principal import Entrance


class OpenStreams:
    """Counts the open streams of each tenant, its workspaces' among them, and lets it have at most ``limit``. To be
    used in one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._open.values())

    def take(self, entrance: Entrance) -> None:
        """Count one more. Raises ``TooManyStreams``, which is then not counted."""
        tenant_id = (entrance.parent or entrance.tenant).id
        count = self._open.get(tenant_id, 0)
        if count >= self._limit:
            raise TooManyStreams(limit=self._limit, retry_after_s=5)
        self._open[tenant_id] = count + 1

    def give_back(self, entrance: Entrance) -> None:
        """Count one less, once for every one taken."""
        tenant_id = (entrance.parent or entrance.tenant).id
        left = self._open[tenant_id] - 1
        if left:
            self._open[tenant_id] = left
        else:
            del self._open[tenant_id]
