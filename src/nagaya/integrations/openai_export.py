"""Conversations of an OpenAI data export (``conversations.json``) as conversations of one user.

An export keeps a tree of messages for each conversation; what is taken is the branch that was on the screen last
(``current_node``). Texts of users, assistants and systems become items; whatever else there is, is counted by its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nagaya.context.counting import Skips
from nagaya.context.items import Message
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import MalformedJson
from nagaya.integrations.conversation_import import bring_conversation


class _Author(msgspec.Struct):
    role: str


class _Content(msgspec.Struct):
    content_type: str
    parts: list[Any] = []


class _Message(msgspec.Struct):
    author: _Author
    content: _Content


class _Node(msgspec.Struct):
    message: _Message | None = None
    parent: str | None = None


class _Conversation(msgspec.Struct):
    mapping: dict[str, _Node]
    current_node: str | None = None
    title: str | None = None
    id: str | None = None
    conversation_id: str | None = None


class Imported(Skips, msgspec.Struct, kw_only=True):
    """How much came in, and how many messages of which kind did not."""

    conversations: int = 0
    items: int = 0
    skipped: dict[str, int] = msgspec.field(default_factory=dict)


async def import_openai(tenant: TenantContext, content: bytes) -> Imported:
    """Bring the conversations in as the caller's; each is read back and compared. May be repeated: what is there
    already is not written again. Raises ``MalformedJson`` for another form, before anything is written."""
    try:
        found = msgspec.json.decode(content, type=list[_Conversation])
    except (msgspec.DecodeError, UnicodeDecodeError) as other:
        raise MalformedJson(detail=str(other)) from None
    named = [(conversation.conversation_id or conversation.id or "", conversation) for conversation in found]
    if not all(name for name, _ in named):
        raise MalformedJson(detail="a conversation has no id")
    done = Imported()
    for name, conversation in named:
        await _bring(tenant, name, conversation, done)
    return done


async def _bring(tenant: TenantContext, name: str, conversation: _Conversation, done: Imported) -> None:
    messages = _said(conversation, done)
    await bring_conversation(tenant, "openai export", name, conversation.title, messages)
    done.conversations += 1
    done.items += len(messages)


def _said(conversation: _Conversation, done: Imported) -> Sequence[Message]:
    """The messages of the current branch, from the first."""
    branch: dict[str, _Node] = {}
    at = conversation.current_node
    while at is not None and at not in branch and at in conversation.mapping:
        branch[at] = conversation.mapping[at]
        at = branch[at].parent
    others = [node for key, node in conversation.mapping.items() if key not in branch and node.message is not None]
    done.skip("other_branch", len(others))
    return [message for node in reversed(branch.values()) if (message := _message(node, done)) is not None]


def _message(node: _Node, done: Imported) -> Message | None:
    if node.message is None:
        return None
    role, content = node.message.author.role, node.message.content
    texts = [part for part in content.parts if isinstance(part, str)]
    done.skip("part_without_text", len(content.parts) - len(texts))
    text = "".join(texts)
    if content.content_type not in ("text", "multimodal_text"):
        done.skip(content.content_type)
    elif not text:
        done.skip("empty")
    elif role == "user":
        return Message.user(text)
    elif role == "assistant":
        return Message.assistant(text)
    elif role == "system":
        return Message.system(text)
    else:
        done.skip(f"role_{role}")
    return None
