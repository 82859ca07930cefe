"""LangChain's messages, which are most of what a thread holds: told from each other and rebuilt in less time.

All but one or two messages of a conversation are as they were in the checkpoint before. A message's *print* is made
from everything that its serialised form depends on, in a sixth of the time of serialising it; of a text it holds
Python's hash, which is keyed anew in every process and which the text remembers, and no content.

A message that is read was validated when it was made and has been sealed since, so it is rebuilt as it was.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import ormsgpack
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2, JsonPlusSerializer

_KINDS: Final = (AIMessage, HumanMessage, SystemMessage, ToolMessage)
_KNOWN: Final = frozenset(_KINDS)
_FIELDS_AT: Final = 2
# How a serialised message of each kind begins: an array of four, of which the first two are its module and its name.
_BEGINS: Final = [(b"\x94" + ormsgpack.packb((kind.__module__, kind.__name__))[1:], kind) for kind in _KINDS]


def print_of(value: object) -> Hashable | None:
    """The print of a message of LangChain's own kinds; None for everything else, and for a message whose metadata or
    content is not plain: those are serialised to be told."""
    kind = type(value)
    if kind not in _KNOWN or getattr(value, "__pydantic_extra__", None):
        return None
    found: list[object] = [kind]
    for each in vars(value).values():
        form = type(each)
        if form is str:
            found.append((hash(each), len(each)))
        elif each is None or form is bool:
            found.append(each)
        elif not each and (form is dict or form is list):
            found.append(form)
        else:
            return None
    return tuple(found)


class MessageSerializer(JsonPlusSerializer):
    """LangGraph's serialiser without pickle; of types it rebuilds only what is known to be safe or was allowed."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value that was serialised."""
        form, body = data
        if form != "msgpack":
            return super().loads_typed(data)
        return ormsgpack.unpackb(body, ext_hook=self._rebuilt, option=ormsgpack.OPT_NON_STR_KEYS)

    def _rebuilt(self, code: int, data: bytes) -> Any:
        if code == EXT_PYDANTIC_V2:
            for begins, kind in _BEGINS:
                if data.startswith(begins):
                    whole = ormsgpack.unpackb(data, ext_hook=self._rebuilt, option=ormsgpack.OPT_NON_STR_KEYS)
                    fields = whole[_FIELDS_AT]
                    if fields.keys() <= kind.model_fields.keys():
                        return kind.model_construct(**fields)
        return self._unpack_ext_hook(code, data)
