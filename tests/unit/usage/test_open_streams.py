"""Open streams of a tenant: counted, bounded, given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nagaya.errors import RateLimited, TooManyStreams
from nagaya.usage.open_streams import OpenStreams


def entrance_to(tenant_id: str, parent: str | None = None) -> Any:
    return SimpleNamespace(
        tenant=SimpleNamespace(id=tenant_id), parent=None if parent is None else SimpleNamespace(id=parent)
    )


def test_a_tenant_has_so_many_streams_and_no_more_and_another_is_not_touched():
    streams = OpenStreams(2)
    acme, globex = entrance_to("acme"), entrance_to("globex")
    streams.take(acme)
    streams.take(acme)
    with pytest.raises(TooManyStreams) as refused:
        streams.take(acme)
    assert isinstance(refused.value, RateLimited)
    assert refused.value.retry_after_s
    streams.take(globex)
    assert len(streams) == 3
    streams.give_back(acme)
    streams.take(acme)
    for entrance in (acme, acme, globex):
        streams.give_back(entrance)
    assert len(streams) == 0
    assert streams._open == {}, "nothing is remembered of tenants without streams"


def test_the_streams_of_a_workspace_are_its_tenants():
    streams = OpenStreams(2)
    acme, legal, sales = entrance_to("acme"), entrance_to("_acme-legal", "acme"), entrance_to("_acme-sales", "acme")
    streams.take(legal)
    streams.take(sales)
    for entrance in (acme, legal, sales):
        with pytest.raises(TooManyStreams):
            streams.take(entrance)
    streams.give_back(legal)
    streams.take(acme)
    for entrance in (acme, sales):
        streams.give_back(entrance)
    assert streams._open == {}
