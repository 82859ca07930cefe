"""Issuers' published keys: fetched over HTTP from the tests' own server, seldom, and within limits (attack row 6)."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket

import httpcore
import httpx
import pytest

from nagaya.errors import IssuerUnreachable, TokenRefused
from nagaya.identity import jwks as room
from nagaya.identity.jwks import KeyCache, is_fetchable
from nagaya.identity.key_client import CheckedBackend, key_client
from nagaya.kernel.egress import EgressPolicy
from nagaya.testing.identity import IssuerKey, KeyServer, SetClock

ONE = IssuerKey("one", algorithm="ES256")
TWO = IssuerKey("two", algorithm="ES256")


@pytest.fixture
async def server():
    async with KeyServer() as running:
        yield running


@pytest.fixture
async def client():
    async with httpx.AsyncClient(follow_redirects=True, trust_env=False) as opened:
        yield opened


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
async def cache(client, clock):
    made = KeyCache(client, clock, jitter=lambda: 0.5)
    yield made
    await made.close()


async def settled(cache: KeyCache) -> None:
    """Wait for the fetches that run behind an answer."""
    for held in list(cache._sets.values()):
        if held.fetch is not None:
            await held.fetch


async def test_a_key_is_fetched_once_and_then_served_from_memory(server, cache):
    url = server.publish(ONE, TWO)
    assert (await cache.key(url, "one")).key_id == "one"
    assert (await cache.key(url, "two")).algorithm == "ES256"
    assert server.requests["/keys"] == 1


@pytest.fixture
async def inside(monkeypatch):
    """A listener on this machine that ``keys.example`` resolves to; its connections so far."""
    opened: list[object] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        writer.close()

    resolve = socket.getaddrinfo

    def rebound(host, *arguments, **named):
        return resolve("127.0.0.1" if host in ("keys.example", b"keys.example") else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1], opened


async def test_row_29_a_name_that_resolves_inside_is_never_connected_to(inside, clock):
    port, opened = inside
    url = f"https://keys.example:{port}/keys"
    async with key_client(EgressPolicy()) as client:
        with pytest.raises(IssuerUnreachable):
            await KeyCache(client, clock).key(url, "one")
    assert opened == []
    # Where the operator allows that very host, it is asked; what listens there speaks no TLS.
    async with key_client(EgressPolicy(("keys.example",))) as client:
        with pytest.raises(IssuerUnreachable):
            await KeyCache(client, clock, allowed_hosts=("keys.example",)).key(url, "one")
    assert len(opened) == 1


async def test_the_checked_client_fetches_keys_as_any_other(server, clock):
    async with key_client(EgressPolicy()) as client:
        cache = KeyCache(client, clock)
        assert (await cache.key(server.publish(ONE), "one")).key_id == "one"
        with pytest.raises(IssuerUnreachable):
            await cache.key("http://127.0.0.1:9/keys", "one")
        await cache.close()


async def test_a_name_that_does_not_resolve_is_an_outage():
    for problem, meant in ((OSError, httpcore.ConnectError), (TimeoutError, httpcore.ConnectTimeout)):

        async def resolver(host: str, port: int) -> list[str]:
            raise problem  # noqa: B023 - asked within this very turn

        backend = CheckedBackend(EgressPolicy(resolver=resolver))
        with pytest.raises(meant):
            await backend.connect_tcp("keys.example", 443)
        await backend.sleep(0)


async def test_a_flood_of_unknown_key_ids_causes_one_fetch_a_window(server, cache, clock):
    url = server.publish(ONE)
    await cache.key(url, "one")
    for window in range(3):
        clock.move_s(room.UNKNOWN_WINDOW_S)
        for number in range(200):
            with pytest.raises(TokenRefused):
                await cache.key(url, f"unknown-{window}-{number}")
        assert server.requests["/keys"] == 2 + window


async def test_a_flood_of_unknown_key_ids_at_once_causes_one_fetch(server, cache):
    url = server.publish_page(json.dumps({"keys": [ONE.public()]}).encode(), delay_s=0.05)
    answers = await asyncio.gather(*(cache.key(url, f"u{n}") for n in range(500)), return_exceptions=True)
    assert all(isinstance(answer, TokenRefused) for answer in answers)
    assert server.requests["/keys"] == 1


async def test_a_key_id_that_a_fetch_did_not_find_causes_no_second_fetch_for_a_while(server, cache, clock):
    url = server.publish(ONE)
    with pytest.raises(TokenRefused):
        await cache.key(url, "gone")
    clock.move_s(room.UNKNOWN_WINDOW_S)
    with pytest.raises(TokenRefused):
        await cache.key(url, "gone")
    assert server.requests["/keys"] == 1
    clock.move_s(room.UNKNOWN_MEMORY_S)
    with pytest.raises(TokenRefused):
        await cache.key(url, "gone")
    assert server.requests["/keys"] == 2


async def test_remembered_unknown_key_ids_are_bounded(server, cache, clock, monkeypatch):
    monkeypatch.setattr(room, "UNKNOWN_LIMIT", 3)
    url = server.publish(ONE)
    await cache.key(url, "one")
    for number in range(10):
        clock.move_s(room.UNKNOWN_WINDOW_S)
        with pytest.raises(TokenRefused):
            await cache.key(url, f"u{number}")
    assert list(cache._sets[url].unknown) == ["u7", "u8", "u9"]


async def test_a_new_key_is_found_one_window_after_it_was_published(server, cache, clock):
    url = server.publish(ONE)
    await cache.key(url, "one")
    server.publish(ONE, TWO)
    clock.move_s(room.UNKNOWN_WINDOW_S - 1)
    with pytest.raises(TokenRefused):
        await cache.key(url, "two")  # within the window: not looked for, and not remembered as absent either
    clock.move_s(1)
    assert (await cache.key(url, "two")).key_id == "two"


async def test_a_key_remembered_as_absent_serves_once_another_fetch_brought_it(server, cache, clock):
    url = server.publish(ONE)
    with pytest.raises(TokenRefused):
        await cache.key(url, "two")
    server.publish(ONE, TWO)
    clock.move_s(room.UNKNOWN_WINDOW_S)
    with pytest.raises(TokenRefused):
        await cache.key(url, "three")
    assert (await cache.key(url, "two")).key_id == "two"
    assert "two" not in cache._sets[url].unknown


async def test_an_hour_old_set_is_fetched_anew_behind_the_answer(server, cache, clock):
    url = server.publish(ONE)
    await cache.key(url, "one")
    clock.move_s(3599)
    await cache.key(url, "one")
    await settled(cache)
    assert server.requests["/keys"] == 1
    server.publish(TWO)
    clock.move_s(1)
    assert (await cache.key(url, "one")).key_id == "one"  # answered at once, from what is held
    await settled(cache)
    assert server.requests["/keys"] == 2
    with pytest.raises(TokenRefused):
        await cache.key(url, "one")


async def test_refreshes_are_spread_by_jitter(server, client, clock):
    url = server.publish(ONE)
    for jitter, expected in ((0.0, 3240.0), (1.0, 3960.0)):
        cache = KeyCache(client, clock, jitter=lambda jitter=jitter: jitter)
        await cache.key(url, "one")
        assert cache._sets[url].refresh_at_s == pytest.approx(expected)


async def test_the_last_good_keys_serve_while_the_issuer_is_down_and_no_longer_than_their_limit(server, cache, clock):
    url = server.publish(ONE)
    await cache.key(url, "one")
    server.publish_page(b"{}", status=500)
    for _ in range(23):
        clock.move_s(3600)
        assert (await cache.key(url, "one")).key_id == "one"
        await settled(cache)
    clock.move_s(3600)
    with pytest.raises(IssuerUnreachable):
        await cache.key(url, "one")


async def test_an_issuer_that_never_answered_is_asked_again_after_a_pause_only(server, cache, clock):
    url = server.url()
    for _ in range(5):
        with pytest.raises(IssuerUnreachable) as unreachable:
            await cache.key(url, "one")
        assert unreachable.value.retry_after_s == 5
    assert server.requests["/keys"] == 1
    server.publish(ONE)
    clock.move_s(room.RETRY_S)
    assert (await cache.key(url, "one")).key_id == "one"


async def test_a_redirect_is_not_followed_whatever_the_client_would_do(server, cache):
    server.publish(ONE, path="/inside")
    url = server.publish_page(b"", status=302, headers={"Location": server.url("/inside")})
    with pytest.raises(IssuerUnreachable):
        await cache.key(url, "one")
    assert server.requests["/inside"] == 0


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html>", {"Content-Type": "text/html"}),
        (json.dumps({"keys": [ONE.public()]}).encode(), {"Content-Type": "text/plain"}),
        (gzip.compress(json.dumps({"keys": [ONE.public()]}).encode()), {"Content-Encoding": "gzip"}),
        (b"not json", {}),
        (b"[]", {}),
        (b'{"keys": []}', {}),
        (b'{"keys": [], "keys": []}', {}),
        (json.dumps({"keys": [ONE.public()], "pad": "x" * room.BODY_LIMIT_BYTES}).encode(), {}),
    ],
    ids=["html", "text", "gzip", "broken", "list", "empty", "twice", "large"],
)
async def test_what_is_no_small_plain_json_key_set_is_not_taken(server, cache, body, headers):
    url = server.publish_page(body, headers=headers)
    with pytest.raises(IssuerUnreachable):
        await cache.key(url, "one")


async def test_a_slow_issuer_is_given_up_after_its_deadline(server, cache, monkeypatch):
    monkeypatch.setattr(room, "FETCH_DEADLINE_S", 0.05)
    url = server.publish_page(json.dumps({"keys": [ONE.public()]}).encode(), delay_s=5)
    with pytest.raises(IssuerUnreachable):
        await cache.key(url, "one")


async def test_an_address_where_nobody_listens_is_unreachable(cache):
    for url in ("http://127.0.0.1:9/keys", "http://example.com/keys", "ftp://127.0.0.1/", "https://", "http://[::1"):
        with pytest.raises(IssuerUnreachable):
            await cache.key(url, "one")


async def test_an_odd_address_or_a_closed_client_is_unreachable_and_no_surprise(client, clock):
    cache = KeyCache(client, clock)
    await client.aclose()
    for url in ("https://127.0.0.1:9/keys", "https://exa mple/", "https://a\udcff.example/", "https://xn--\u3042/"):
        with pytest.raises(IssuerUnreachable):
            await cache.key(url, "one")


async def test_one_waiter_that_is_cancelled_does_not_stop_the_fetch_for_the_others(server, cache):
    url = server.publish_page(json.dumps({"keys": [ONE.public()]}).encode(), delay_s=0.1)
    impatient, patient = (asyncio.create_task(cache.key(url, "one")) for _ in range(2))
    await asyncio.sleep(0.02)
    impatient.cancel()
    assert (await patient).key_id == "one"
    assert server.requests["/keys"] == 1


async def test_closing_stops_what_is_in_flight(server, client, clock):
    cache = KeyCache(client, clock)
    url = server.publish_page(b"{}", delay_s=5)
    waiting = asyncio.create_task(cache.key(url, "one"))
    await asyncio.sleep(0.02)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_key_sets_in_memory_are_bounded_and_one_that_is_being_fetched_stays(server, cache, monkeypatch):
    monkeypatch.setattr(room, "KEY_SETS_LIMIT", 2)
    slow = server.publish_page(json.dumps({"keys": [ONE.public()]}).encode(), path="/slow", delay_s=3)
    waiting = asyncio.create_task(cache.key(slow, "one"))
    await asyncio.sleep(0.02)
    for number in range(4):
        await cache.key(server.publish(ONE, path=f"/{number}"), "one")
    assert list(cache._sets) == [slow, server.url("/3")]
    assert (await waiting).key_id == "one"


async def test_no_key_set_is_dropped_while_all_are_being_fetched(server, cache, monkeypatch):
    monkeypatch.setattr(room, "KEY_SETS_LIMIT", 1)
    body = json.dumps({"keys": [ONE.public()]}).encode()
    urls = [server.publish_page(body, path=f"/{number}", delay_s=0.05) for number in range(3)]
    keys = await asyncio.gather(*(cache.key(url, "one") for url in urls))
    assert [key.key_id for key in keys] == ["one"] * 3


@pytest.mark.parametrize(
    ("url", "fetchable"),
    [
        ("https://login.example/keys", True),
        ("https://user:pw@login.example/keys", False),
        ("http://login.example/keys", False),
        ("http://keys.inside/keys", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://[::1]/keys", True),
        ("http://localhost/keys", True),
        ("http://10.0.0.1/keys", False),
        ("https://10.0.0.1/keys", False),
        ("https://169.254.169.254/keys", False),
        ("https://[fd00::1]/keys", False),
        ("https://2852039166/keys", False),
        ("https://keys.internal/keys", False),
        ("https://keys.inside/keys", True),
        ("http://keys.inside:8080/keys", True),
        ("http://10.0.0.9:8443/keys", True),
        ("http://10.0.0.9/keys", False),
        ("https://login.example:99999/keys", False),
        ("https://login.example/ke ys", False),
        ("https:///keys", False),
        ("file:///etc/passwd", False),
        ("", False),
    ],
)
def test_keys_come_over_https_or_from_this_machine_or_an_allowed_host(url, fetchable):
    assert is_fetchable(url, EgressPolicy({"keys.inside", "10.0.0.9:8443"})) is fetchable
