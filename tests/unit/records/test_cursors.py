from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from nagaya.errors import KeyDisabled, NotFound, SealBroken
from nagaya.keys.versions import KeyVersionState
from nagaya.records.sealed_store import Partition

House = Any  # the class lies in conftest.py, which cannot be imported by name
QUERY = ("conversations", "aiko", "desc")
PLACE = b"\0\1item\xff"


async def test_a_cursor_leads_back_to_its_place(house: House) -> None:
    cursors = (await house.room("acme")).cursors
    text = await cursors.seal_cursor(QUERY, PLACE)
    assert await cursors.open_cursor(QUERY, text) == PLACE
    assert await (await house.room("acme")).cursors.open_cursor(QUERY, text) == PLACE
    assert len(text) < 200


@pytest.mark.parametrize(
    "query",
    [
        (),
        ("conversations",),
        ("conversations", "aiko", "asc"),
        ("conversations", "aikodesc"),
        ("conversationsa", "iko", "desc"),
        (*QUERY, ""),
    ],
)
async def test_a_cursor_of_another_query_is_not_found(house: House, query: tuple[str, ...]) -> None:
    cursors = (await house.room("acme")).cursors
    text = await cursors.seal_cursor(QUERY, PLACE)
    with pytest.raises(NotFound):
        await cursors.open_cursor(query, text)


async def test_a_cursor_of_another_tenant_is_not_found(house: House) -> None:
    text = await (await house.room("acme")).cursors.seal_cursor(QUERY, PLACE)
    with pytest.raises(NotFound) as foreign:
        await (await house.room("other")).cursors.open_cursor(QUERY, text)
    with pytest.raises(NotFound) as absent:
        await (await house.room("other")).cursors.open_cursor(QUERY, "x" * len(text))
    assert str(foreign.value) == str(absent.value)


async def test_every_altered_character_of_a_cursor_is_noticed(house: House) -> None:
    cursors = (await house.room("acme")).cursors
    # Three lengths: base64 leaves 0, 2 or 4 bits unused at the end, which must not be a second spelling.
    for place in (b"a", b"ab", b"abc"):
        text = await cursors.seal_cursor(QUERY, place)
        for at, letter in enumerate(text):
            other = "B" if letter == "A" else chr(ord(letter) ^ 1) if (chr(ord(letter) ^ 1)).isalnum() else "A"
            with pytest.raises(NotFound):
                await cursors.open_cursor(QUERY, text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize(
    "text", ["", "x", "=", "a\0b", "日本", "\ud800", "A" * 3000, "item_0198", "..", "A" * 84 + "=="]
)
async def test_what_is_no_cursor_is_not_found(house: House, text: str) -> None:
    with pytest.raises(NotFound):
        await (await house.room("acme")).cursors.open_cursor(QUERY, text)


@given(some.text())
async def test_no_text_at_all_is_taken_for_a_cursor(make_house: Any, text: str) -> None:
    with pytest.raises(NotFound):
        await (await make_house().room("acme")).cursors.open_cursor(QUERY, text)


async def test_a_record_is_no_cursor_and_a_cursor_no_record(house: House) -> None:
    store = await house.room("acme")
    text = await store.cursors.seal_cursor(QUERY, PLACE)
    await store.put(Partition("cursor", ""), b"1", b"body")
    row = (await house.row("acme", "cursor/", b"1")).body
    with pytest.raises(NotFound):
        await store.cursors.open_cursor(QUERY, urlsafe_b64encode(row).rstrip(b"=").decode())
    await house.plant("acme", "cursor/", b"1", urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    with pytest.raises(SealBroken):
        await store.get(Partition("cursor", ""), b"1")


async def test_a_cursor_outlives_a_rotation_but_not_its_key(house: House) -> None:
    store = await house.room("acme")
    text = await store.cursors.seal_cursor(QUERY, PLACE)
    await house.versions.rotate(house.keys, "acme")
    store.drop_keys()
    assert await store.cursors.open_cursor(QUERY, text) == PLACE
    house.versions.change("acme", 1, state=KeyVersionState.DESTROYED)
    store.drop_keys()
    with pytest.raises(NotFound):
        await store.cursors.open_cursor(QUERY, text)


async def test_a_disabled_key_is_told_as_such(house: House) -> None:
    store = await house.room("acme")
    text = await store.cursors.seal_cursor(QUERY, PLACE)
    await house.keys.disable("acme")
    store.drop_keys()
    with pytest.raises(KeyDisabled):
        await store.cursors.open_cursor(QUERY, text)
