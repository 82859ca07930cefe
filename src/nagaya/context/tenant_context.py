"""Everything a caller can do in its tenant, behind one object."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from nagaya.connections.room import TenantSession
from nagaya.context.agents import Agents
from nagaya.context.chat import Chat
from nagaya.context.client_items import ClientItems
from nagaya.context.conversations import Conversations
from nagaya.context.drawers import Drawer
from nagaya.context.embedding import Embedding
from nagaya.context.found import FoundPage
from nagaya.context.library import file_search as _file_search  # noqa: F401 - makes the tool known
from nagaya.context.library.files import Files
from nagaya.context.library.search import Search
from nagaya.context.library.stores import Stores, forget_file
from nagaya.context.memories import Memories
from nagaya.context.notices import Notices
from nagaya.context.responses import Responses
from nagaya.context.search import TYPES, Everywhere
from nagaya.records.sealed_cache import SealedCache
from nagaya.tenancy.tenant import Tenant
from nagaya.usage.meter import Meter


class TenantContext:
    """One caller inside one tenant: conversations, responses, chat, embeddings. Close it, or use ``async with``."""

    __slots__ = ("_meter", "conversations", "session")

    def __init__(self, session: TenantSession, meter: Meter) -> None:
        self.session = session
        self.conversations = Conversations(session)
        self._meter = meter

    @property
    def responses(self) -> Responses:
        """Answers of the tenant's model."""
        return Responses(self.session, self.conversations, self._meter)

    @property
    def agents(self) -> Agents:
        """Answers whose model may call Python functions of the caller's."""
        return Agents(self.responses)

    @property
    def notices(self) -> Notices:
        """What agents and the library tell the caller."""
        return Notices(self.session)

    @property
    def chat(self) -> Chat:
        """Chat completions: nothing is kept."""
        return Chat(self.session, self._meter)

    @property
    def embeddings(self) -> Embedding:
        """Vectors for texts."""
        return Embedding(self.session, self._meter)

    @property
    def files(self) -> Files:
        """Files that the tenant's people keep."""
        return Files(self.session, self._meter, on_delete=(forget_file,))

    @property
    def vector_stores(self) -> Stores:
        """Files that are searched together."""
        return Stores(self.session, self._meter)

    @property
    def library_search(self) -> Search:
        """Searches of vector stores."""
        return Search(self.session, self._meter)

    async def search(
        self, query: str, *, types: Sequence[str] = TYPES, limit: int = 20, after: str | None = None
    ) -> FoundPage:
        """What the caller may read that has the words of ``query``, best first, each with a snippet: messages of
        ``conversations``, ``memories``, passages of ``documents``.

        ``limit`` is 1–100, ``after`` the ``next_cursor`` of the page before. Raises ``MissingParameter`` for a query of
        blanks, ``InvalidValue``, ``NotFound`` for a cursor of another query or caller. May be repeated.
        """
        everywhere = Everywhere(self.session, self.conversations, self.memories)
        return await everywhere.search(query, types=types, limit=limit, after=after)

    @property
    def meter(self) -> Meter:
        """What counts the tenant's use."""
        return self._meter

    @property
    def memories(self) -> Memories:
        """What is known about the caller and its tenant from one conversation to the next."""
        return Memories(self.session, self._meter)

    @property
    def client_items(self) -> ClientItems:
        """Conversations as the memory of a client's library."""
        return ClientItems(self.session, self.conversations)

    def drawer(self, program: str) -> Drawer:
        """Sealed records that a program keeps for this caller."""
        return Drawer(self.session, program)

    @property
    def cache(self) -> SealedCache:
        """The tenant's cache: copies for 300 s or as long as is said, sealed, shared by the servers where they share
        one. A copy may be lost at any moment; what must not be is a record."""
        return self.session.cache

    @property
    def tenant(self) -> Tenant:
        """The tenant as it was when the caller entered."""
        return self.session.tenant

    def lasting(self) -> TenantContext:
        """The same caller for work that outlives this context; to be closed by itself."""
        return TenantContext(self.session.lease(), self._meter)

    async def close(self) -> None:
        """End the session. May be called again."""
        await self.session.release()

    async def __aenter__(self) -> TenantContext:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
