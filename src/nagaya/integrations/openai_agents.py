"""The memory of an agent of the OpenAI Agents SDK, kept as a conversation of the tenant.

::

    async with nagaya.session(entrance) as tenant:
        session = NagayaSession("roof", tenant)
        result = await Runner.run(agent, "Who mends the roof?", session=session)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from nagaya.context.drawers import Folder
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import ConditionFailed, MissingExtra, NotFound

try:
    from agents.memory import SessionABC
    from agents.memory.session_settings import SessionSettings, resolve_session_limit
except ModuleNotFoundError as missing:
    raise MissingExtra(feature="nagaya.integrations.openai_agents", extra="openai-agents") from missing

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

__all__ = ["NagayaSession"]

_CONVERSATION: Final = re.compile(r"conv_[0-9a-f]{32}")
_METADATA_CHARACTERS: Final = 512


class NagayaSession(SessionABC):
    """A ``Session`` of the OpenAI Agents SDK over a conversation, sealed in the tenant's own store.

    ``session_id`` is a conversation's id, or any name: a conversation is then made for it with the first item. A name
    belongs to the user whose session ``tenant`` is; somebody else's conversation is ``NotFound``.

    Items that conversations know (messages, function calls and their outputs, reasoning) are items like all others,
    read and searched by whoever may see the conversation. All items come back as they were given.
    """

    def __init__(
        self, session_id: str, tenant: TenantContext, *, session_settings: SessionSettings | None = None
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings or SessionSettings()
        self._tenant = tenant
        self._items = tenant.client_items
        self._conversation = session_id if _CONVERSATION.fullmatch(session_id) else None

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The latest ``limit`` items (of the settings, where None; else all), the oldest first."""
        conversation = await self._found()
        limit = resolve_session_limit(limit, self.session_settings)
        if conversation is None or limit == 0:
            return []
        wanted = None if limit is None or limit < 0 else limit
        try:
            return cast("list[TResponseInputItem]", await self._items.last(conversation, wanted))
        except NotFound:
            self._gone()
            return []

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items, durably when this returns."""
        if not items:
            return
        gone: str | None = None
        for _ in range(2):
            conversation = self._conversation or await self._found(gone) or await self._made(gone)
            try:
                await self._items.add(conversation, items)
            except NotFound:
                self._gone()
                gone = conversation
                continue
            return
        raise NotFound("conversation")

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the latest item and give it; None where there is none."""
        conversation = await self._found()
        if conversation is None:
            return None
        try:
            return cast("TResponseInputItem | None", await self._items.pop(conversation))
        except NotFound:
            self._gone()
            return None

    async def clear_session(self) -> None:
        """Remove every item. The conversation stays."""
        conversation = await self._found()
        if conversation is None:
            return
        try:
            await self._items.clear(conversation)
        except NotFound:
            self._gone()

    async def conversation_id(self) -> str | None:
        """The conversation behind the session; None before the first item."""
        return await self._found()

    # --- names ---

    @property
    def _is_named(self) -> bool:
        return not _CONVERSATION.fullmatch(self.session_id)

    def _gone(self) -> None:
        """The conversation was deleted. A name may have another; an id names this one and no other."""
        if not self._is_named:
            raise NotFound("conversation")
        self._conversation = None

    async def _place(self) -> tuple[Folder, bytes]:
        drawer = self._tenant.drawer("agents")
        return await drawer.folder("sessions"), await drawer.mark("session", self.session_id)

    async def _found(self, gone: str | None = None) -> str | None:
        """The conversation of the name, unless it is the one that is known to be gone."""
        if self._conversation is None:
            folder, sort = await self._place()
            record = await folder.get(sort)
            found = None if record is None else record.body.decode()
            self._conversation = None if found == gone else found
        return self._conversation

    async def _made(self, gone: str | None = None) -> str:
        metadata = {"session_id": self.session_id[:_METADATA_CHARACTERS]}
        made = (await self._tenant.conversations.create(metadata=metadata)).id
        folder, sort = await self._place()
        record = await folder.get(sort)
        # The name goes over from the conversation that is gone, and from no other.
        expect = record.revision if record is not None and record.body.decode() == gone else 0
        try:
            await folder.put(sort, made.encode(), expect=expect)
        except ConditionFailed:
            # Another process was first: there is one conversation for a name.
            await self._tenant.conversations.delete(made)
            return await self._found(gone) or await self._made(gone)
        self._conversation = made
        return made
