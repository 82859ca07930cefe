"""Keys that open only while another key does."""

from __future__ import annotations

import pytest

from nagaya.errors import KeyDisabled
from nagaya.keys.keyring import key_context
from nagaya.keys.linked import LinkedKeys
from nagaya.testing.keys import MemoryKeys


async def test_every_use_asks_for_the_other_key_first() -> None:
    asked, allowed = 0, True

    async def check() -> None:
        nonlocal asked
        asked += 1
        if not allowed:
            raise KeyDisabled

    keys = MemoryKeys()
    linked = LinkedKeys(keys, check)
    context = key_context("_acme-legal-0", 1)
    plain, wrapped = await linked.generate(context)
    assert await linked.unwrap(wrapped, context) == plain
    assert asked == 2
    allowed = False
    with pytest.raises(KeyDisabled):
        await linked.unwrap(wrapped, context)
    with pytest.raises(KeyDisabled):
        await linked.generate(context)
    await linked.close()
    assert await keys.unwrap(wrapped, context) == plain
