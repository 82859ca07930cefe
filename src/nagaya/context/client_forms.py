"""Items in the form of the client that stored them: what a client's library gave comes back equal.

A client's item is kept as an item of the conversation, for everybody to read, and beside it what tells the client's
form from that one: its form. Where they are equal, the form says so and repeats nothing.

========== ===================================================
``0``      as in the conversation's item
``1``      the text of the item's only part
object     an object with these keys, each in its form
``["*"…]`` an array of as many elements, each in its form
``["="…]`` the value itself
========== ===================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nagaya.context.items import ROLES, Item, ItemIn, ItemReference, read_item, text_message
from nagaya.errors import NagayaError

_SAME: Final = 0
_TEXT: Final = 1
SIMPLE_FORM: Final = msgspec.Raw(b'{"role":0,"content":1}')
_KNOWN: Final = frozenset(ItemIn.__struct_fields__)


def as_item(given: Mapping[str, Any]) -> Item | None:
    """The conversation's item that a client means; None for a shape that conversations do not have."""
    try:
        item = read_item(msgspec.convert({name: given[name] for name in given if name in _KNOWN}, ItemIn), "items")
    except (NagayaError, msgspec.ValidationError):
        return None
    return None if isinstance(item, ItemReference) else item


def simple_message(given: object) -> Item | None:
    """What :func:`as_item` gives of a role and a text, which is most of what clients store, without looking for more;
    None for anything else. Its form is :data:`SIMPLE_FORM`."""
    if type(given) is not dict or tuple(given) != ("role", "content"):
        return None
    role, text = given["role"], given["content"]
    if type(role) is not str or type(text) is not str or not (text.isascii() or _is_sound(text)):
        return None
    known = ROLES.get(role)
    return None if known is None else text_message(known, text)


def _is_sound(text: str) -> bool:
    """Whether it can be written: a lone half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def form_of(given: Mapping[str, Any], item: Item) -> Any:
    """What tells the client's form from the item's."""
    return _form(given, msgspec.to_builtins(item), top=True)


def _form(given: Any, kept: Any, *, top: bool = False) -> Any:
    if isinstance(given, dict) and isinstance(kept, dict):
        shape = {name: _form(value, kept[name]) if name in kept else ["=", value] for name, value in given.items()}
        # The whole item is always told key by key: its id is known only when it is stored.
        return _SAME if not top and len(given) == len(kept) and not any(map(_differs, shape.values())) else shape
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        shapes = [_form(one, other) for one, other in zip(given, kept, strict=True)]
        return ["*", *shapes] if any(map(_differs, shapes)) else _SAME
    if isinstance(given, str) and _only_text(kept) == given:
        return _TEXT
    return _SAME if type(given) is type(kept) and given == kept else ["=", given]


def _differs(form: Any) -> bool:
    return form != _SAME or isinstance(form, bool)


def _only_text(kept: Any) -> str | None:
    if isinstance(kept, list) and len(kept) == 1 and isinstance(kept[0], dict):
        text = kept[0].get("text")
        return text if isinstance(text, str) else None
    return None


def in_form(form: Any, kept: Any) -> Any:
    """What the client gave, from its form and the item. Takes ``kept`` apart: it is not to be used afterwards."""
    if isinstance(form, dict):
        made: dict[str, Any] = {}
        for name, each in form.items():
            # Most of what there is, without a call for it.
            if each == _SAME:
                made[name] = kept.get(name)
            elif each == _TEXT:
                made[name] = kept[name][0]["text"]
            else:
                made[name] = in_form(each, kept.get(name))
        return made
    if form == _SAME:
        return kept
    if form == _TEXT:
        return kept[0]["text"]
    if form[0] == "=":
        return form[1]
    return [in_form(each, one) for each, one in zip(form[1:], kept, strict=True)]


def as_input(kept: dict[str, Any]) -> dict[str, Any]:
    """An item that came otherwise, such as over HTTP, as a client would send it: without the id that it has here."""
    kept.pop("id", None)
    return kept
