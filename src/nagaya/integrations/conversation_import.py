"""Conversations that were held elsewhere, as conversations of the caller: each read back and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from nagaya.context.items import Message
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import RecordsDiffer

_AT_ONCE: Final = 20
_PAGE: Final = 100
_LONGEST_TITLE: Final = 512


async def bring_conversation(
    tenant: TenantContext, program: str, name: str, title: str | None, messages: Sequence[Message]
) -> None:
    """Keep what was said as one conversation of the caller's. May be repeated, also when more has been said since:
    what is there already is not written again. Raises ``RecordsDiffer`` for one that was changed here."""
    owner = tenant.session.entrance.principal.user_key
    digest = hashlib.sha256(msgspec.json.encode([program, owner, name])).hexdigest()
    chat = await tenant.conversations.create(
        title=(title or "")[:_LONGEST_TITLE] or None, conversation_id=f"conv_{digest[:32]}"
    )
    expected = [(message.role, message.text) for message in messages]
    there = await _kept(tenant, chat.id)
    if there == expected[: len(there)]:
        for at in range(len(there), len(messages), _AT_ONCE):
            await tenant.conversations.append(chat.id, *messages[at : at + _AT_ONCE])
        there = await _kept(tenant, chat.id)
    if there[: len(expected)] != expected:
        raise RecordsDiffer(what=name)


async def _kept(tenant: TenantContext, chat: str) -> list[tuple[str, str]]:
    kept: list[tuple[str, str]] = []
    after = None
    while page := await tenant.conversations.items(chat, after=after, limit=_PAGE, order="asc"):
        kept += [(item.role, item.text) for item in page if isinstance(item, Message)]
        after = page[-1].id
    return kept
