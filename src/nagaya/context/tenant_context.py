"""Everything a caller can do in its tenant, behind one object."""

from __future__ import annotations

from types import TracebackType

from nagaya.connections.room import TenantSession
from nagaya.context.chat import Chat
from nagaya.context.conversations import Conversations
from nagaya.context.embedding import Embedding
from nagaya.context.responses import Responses
from nagaya.tenancy.tenant import Tenant
from nagaya.usage.meter import Meter


class TenantContext:
    """One caller inside one tenant: conversations, responses, chat, embeddings. Close it, or use ``async with``."""

    __slots__ = ("chat", "conversations", "embeddings", "responses", "session")

    def __init__(self, session: TenantSession, meter: Meter) -> None:
        self.session = session
        self.conversations = Conversations(session)
        self.responses = Responses(session, self.conversations, meter)
        self.chat = Chat(session, meter)
        self.embeddings = Embedding(session, meter)

    @property
    def tenant(self) -> Tenant:
        """The tenant as it was when the caller entered."""
        return self.session.tenant

    async def close(self) -> None:
        """End the session. May be called again."""
        await self.session.release()

    async def __aenter__(self) -> TenantContext:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
