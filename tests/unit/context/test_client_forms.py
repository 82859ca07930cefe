"""The short way of a client's simple message: it comes to what the long one comes to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.context.client_forms import SIMPLE_FORM, as_item, form_of, simple_message
from nagaya.context.items import ROLES


class MoreThanText(str):
    """What a library may hand over for a text."""


@given(st.sampled_from(sorted(ROLES)), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_role_and_a_text_are_the_same_either_way(role: str, text: str) -> None:
    client_form = {"role": role, "content": text}
    item = as_item(client_form)
    assert item is not None
    assert simple_message(client_form) == item
    assert msgspec.json.decode(SIMPLE_FORM) == form_of(client_form, item)


@pytest.mark.parametrize(
    "other",
    [
        {"role": "user"},
        {"content": "x", "role": "user"},
        {"role": "user", "content": "x", "id": "msg_1"},
        {"type": "message", "role": "user", "content": "x"},
        {"role": "tool", "content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": None},
        {"role": "user", "content": MoreThanText("x")},
        {"role": MoreThanText("user"), "content": "x"},
        {"role": "user", "content": "half a pair: \ud800"},
        ["role", "content"],
        ("role", "content"),
    ],
)
def test_anything_else_goes_the_long_way(other: Any) -> None:
    assert simple_message(other) is None
