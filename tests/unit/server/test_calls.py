"""What the routes see of a request: its credential, its cookies, its hints, its body and its query."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nagaya.errors import (
    BodyTooLarge,
    CsrfRefused,
    InvalidRequest,
    InvalidType,
    InvalidValue,
    MediaTypeRefused,
    RateLimited,
    TooSlow,
    Unauthenticated,
    UnknownParameter,
)
from nagaya.server.calls import (
    Call,
    Disconnected,
    Reply,
    Router,
    error_reply,
    flag_of,
    language_of,
    number_of,
    order_of,
    tenants_in_body,
    tenants_in_query,
)
from nagaya.settings import Settings


def call_of(
    *headers: tuple[str, str],
    method: str = "POST",
    pieces: tuple[bytes, ...] = (b"{}",),
    query: str = "",
    **settings: Any,
) -> Call:
    messages = [
        {"type": "http.request", "body": piece, "more_body": at + 1 < len(pieces)} for at, piece in enumerate(pieces)
    ] or [{"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        if not messages:
            return {"type": "http.disconnect"}
        return messages.pop(0)

    scope = {
        "method": method, "path": "/v1/x", "query_string": query.encode("latin-1"),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }  # fmt: skip
    nagaya: Any = SimpleNamespace(settings=Settings(**settings))
    return Call(scope, receive, nagaya, "req_1")


# --- who ---


def test_a_bearer_is_taken_from_its_header():
    for given in ("Bearer abc", "bearer  abc ", "BEARER abc"):
        assert call_of(("authorization", given)).credential() == "abc"


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearerabc"])
def test_what_is_no_bearer_is_refused_even_beside_a_good_cookie(given):
    with pytest.raises(Unauthenticated):
        call_of(("authorization", given), ("cookie", "access_token=abc"), method="GET").credential()


@pytest.mark.parametrize("cookie", [None, "", "other=1", 'access_token="\\', "access_token", ";;;", "a b=c"])
def test_without_a_token_nobody_is_anybody(cookie):
    headers = [] if cookie is None else [("cookie", cookie)]
    with pytest.raises(Unauthenticated):
        call_of(*headers, method="GET").credential()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_cookie_alone_reads(method):
    assert call_of(("cookie", "a=b; access_token=abc; c=d"), method=method).credential() == "abc"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_a_cookie_writes_only_with_its_csrf_token(method):
    good = ("cookie", "access_token=abc; csrf_token=xyz")
    assert call_of(good, ("x-csrf-token", "xyz"), method=method).credential() == "abc"
    for headers in (
        [good],
        [good, ("x-csrf-token", "")],
        [good, ("x-csrf-token", "xyZ")],
        [good, ("x-csrf-token", "xyzz")],
        [good, ("x-csrf-token", "\u00ff")],
        [("cookie", "access_token=abc"), ("x-csrf-token", "xyz")],
        [("cookie", "access_token=abc; csrf_token="), ("x-csrf-token", "")],
        [("cookie", 'access_token=abc; csrf_token=""'), ("x-csrf-token", "")],
    ):
        with pytest.raises(CsrfRefused):
            call_of(*headers, method=method).credential()


def test_a_bearer_needs_no_csrf_token():
    assert call_of(("authorization", "Bearer abc"), ("cookie", "access_token=other")).credential() == "abc"


@pytest.mark.parametrize(
    "name",
    ["authorization", "content-length", "content-type", "host", "idempotency-key", "x-tenant-id", "x-csrf-token"],
)
def test_a_header_that_decides_may_come_once(name):
    with pytest.raises(InvalidRequest, match=name):
        call_of((name, "a"), (name, "b"))
    with pytest.raises(InvalidRequest):
        call_of((name, "a"), (name, "a"))


def test_other_headers_may_come_twice():
    assert call_of(("accept", "a"), ("accept", "b")).header(b"accept") == "b"


@pytest.mark.parametrize(
    ("headers", "tenant_id", "host"),
    [
        ([], None, None),
        ([("host", "Acme.Example:8700")], None, "acme.example"),
        ([("host", "")], None, None),
        ([("host", "acme.example"), ("x-tenant-id", "acme")], "acme", "acme.example"),
    ],
)
def test_hints_are_what_header_and_host_say(headers, tenant_id, host):
    named = call_of(*headers).named()
    assert (named.tenant_id, named.host) == (tenant_id, host)


# --- which tenant ---


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (b"limit=50", ()),
        (b"tenant_id=globex&limit=5", ("globex",)),
        (b"TENANT=globex&tenantId=acme&x-tenant-id=&t%65nant-id=%67lobex", ("globex", "acme", "", "globex")),
        (b"user[tenant]=globex&tenants=globex&mytenant=globex", ()),
        (b"tenant_id=%ff", ()),
        (b"tenant_id=\xff", ()),
        (b"&".join([b"tenant=x"] * 100), ()),
    ],
)
def test_the_tenants_that_a_query_names_are_found_in_every_spelling(query, named):
    assert tenants_in_query(query) == named


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", ()),
        (b'{"metadata": {"tenant_id": "globex"}}', ()),
        (b'{"tenant_id": "globex"}', ("globex",)),
        (b'{"Tenant-Id": "acme", "tenantId": "globex"}', ("acme", "globex")),
        (b'{"tenant": null, "tenant_id": 5, "tenantId": ["globex"]}', ()),
        (b'["tenant_id"]', ()),
        (b'{"tenant_id": ', ()),
        (b'{"tenant_id": "\xff"}', ()),
        (b'{"tenant_id": ' + b"[" * 100_000, ()),
        (b'{"tenant_id": "\\ud800"}', ()),
    ],
)
def test_the_tenants_that_a_body_names_at_its_top_are_found(body, named):
    assert tenants_in_body(body) == named


# --- what ---


async def test_a_body_comes_in_one_piece_or_many():
    assert await call_of(pieces=(b"{}",)).body() == b"{}"
    assert await call_of(pieces=(b'{"a"', b":", b"1}")).body() == b'{"a":1}'
    assert await call_of(pieces=(b"",)).json(dict) == {}


@pytest.mark.parametrize("pieces", [(b"x" * 11,), (b"x" * 6, b"x" * 6), (b"x" * 11, b"y")])
async def test_a_body_over_the_limit_is_refused(pieces):
    with pytest.raises(BodyTooLarge):
        await call_of(pieces=pieces, body_limit_bytes=10).body()
    with pytest.raises(BodyTooLarge):
        await call_of(("content-length", "11"), body_limit_bytes=10).body()
    assert await call_of(("content-length", "x"), body_limit_bytes=10).body() == b"{}"


@pytest.mark.parametrize("kind", ["text/plain", "", "application/jsonx", "multipart/form-data"])
async def test_a_body_of_another_kind_is_refused(kind):
    with pytest.raises(MediaTypeRefused):
        await call_of(("content-type", kind)).body()


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
async def test_json_is_json(kind):
    assert await call_of(("content-type", kind)).body() == b"{}"


async def test_a_client_that_goes_away_is_nobodys_error():
    with pytest.raises(Disconnected):
        await call_of(pieces=()).body()
    half = call_of(pieces=(b"a", b"b"))
    half._receive = _then_gone(b"a")
    with pytest.raises(Disconnected):
        await half.body()


def _then_gone(body: bytes):
    messages = [{"type": "http.request", "body": body, "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive


async def test_a_body_that_does_not_come_is_given_up():
    for first in (None, {"type": "http.request", "body": b"{", "more_body": True}):
        waiting = [first] if first else []

        async def receive(waiting=waiting) -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await asyncio.sleep(30)
            raise AssertionError

        slow = call_of(body_deadline_s=0.05)
        slow._receive = receive
        with pytest.raises(TooSlow):
            await slow.body()


def test_a_query_gives_what_is_known_and_refuses_the_rest():
    known = {"limit": "20", "after": ""}
    assert call_of().query(known) == known
    assert call_of(query="limit=5&after=%E5%B1%8B").query(known) == {"limit": "5", "after": "屋"}
    assert call_of(query="limit=").query(known)["limit"] == ""
    assert call_of(query="include=a&include[]=b&include%5B%5D=c").query(known) == known
    for query, kind in (
        ("limit=1&limit=2", InvalidValue),
        ("other=1", UnknownParameter),
        ("limit=%ff", InvalidRequest),
        ("limit=\u00ff", InvalidRequest),
        ("&".join(f"a{n}=1" for n in range(70)), InvalidRequest),
    ):
        with pytest.raises(kind):
            call_of(query=query).query(known)


def test_numbers_orders_and_flags_are_exact():
    assert [number_of(text, "n", lowest=0, highest=20) for text in ("0", "7", "020")] == [0, 7, 20]
    for text in ("", "-1", "21", "1.0", " 1", "+1", "1e1", "９", "²", "0" * 10, "x"):
        with pytest.raises(InvalidValue):
            number_of(text, "n", lowest=0, highest=20)
    assert (order_of("asc"), order_of("desc")) == ("asc", "desc")
    assert [flag_of(text, "f") for text in ("", "true", "false")] == [None, True, False]
    for text in ("ASC", "", "up"):
        with pytest.raises(InvalidValue):
            order_of(text)
    for text in ("True", "1", "yes"):
        with pytest.raises(InvalidValue):
            flag_of(text, "f")


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        (None, "en"), ("", "en"), ("ja", "ja"), ("JA-jp", "ja"), ("en,ja", "en"), ("fr,ja;q=0.1", "ja"), ("japanese", "en"),
        (",".join(["xx"] * 20 + ["ja"]), "en"), ("english", "en"), ("en-US", "en"), ("*", "en"),
    ],
)  # fmt: skip
def test_the_language_is_the_first_of_ours_that_is_asked_for(accept, language):
    assert language_of(accept, "en") == language
    if accept is None:
        assert language_of(accept, "ja") == "ja"


def test_an_error_has_one_shape_and_its_headers():
    reply = error_reply(InvalidType(param="a", at="a", detail="no"), "en", more=((b"allow", b"GET"),))
    assert isinstance(reply, Reply)
    assert reply.status == 400
    assert dict(reply.headers)[b"allow"] == b"GET"
    assert b"retry-after" not in dict(reply.headers)
    assert dict(error_reply(Unauthenticated(), "ja").headers)[b"www-authenticate"] == b"Bearer"
    assert dict(error_reply(RateLimited(retry_after_s=17), "en").headers)[b"retry-after"] == b"17"
    assert dict(error_reply(RateLimited(), "en").headers)[b"retry-after"] == b"5"


async def test_what_is_let_go_while_an_answer_streams_is_held_by_nobody():
    call = call_of(("authorization", "Bearer a-secret"), ("x-request-id", "req_1"), pieces=(b'{"input": "long"}',))
    held = call.scope["headers"]  # the web server has this very list
    assert await call.body() == b'{"input": "long"}'
    call.let_go()
    assert held == []
    assert call.header(b"authorization") is None
    assert await asyncio.wait_for(_refused(call), 30), "the body is not there a second time"


async def _refused(call: Call) -> bool:
    with pytest.raises(Disconnected):
        await call.body()
    return True


def test_the_router_prefers_what_is_spelt_out():
    router = Router()

    async def handler(_: Call) -> Reply:
        return Reply(b"")

    for method, pattern in (
        ("GET", "/v1/things/{}"),
        ("GET", "/v1/things/own"),
        ("POST", "/v1/things/{}"),
        ("GET", "/v1/things/{}/parts/{}"),
    ):
        router.add(method, pattern, handler)
    found = router.find("/v1/things/own")
    assert found is not None
    assert found[0] == "/v1/things/own"
    assert found[2] == ()
    found = router.find("/v1/things/7")
    assert found is not None
    assert (found[0], sorted(found[1]), found[2]) == ("/v1/things/{}", ["GET", "POST"], ("7",))
    found = router.find("/v1/things/7/parts/8")
    assert found is not None
    assert found[2] == ("7", "8")
    for raw in (b"/v1/things/a%2Fb%2Fc/parts/%E5%B1%8B", b"/v1/things/a%2fb%2fc/parts/%E5%B1%8B"):
        found = router.find("/v1/things/a/b/c/parts/屋", raw)
        assert found is not None
        assert (found[0], found[2]) == ("/v1/things/{}/parts/{}", ("a/b/c", "屋"))
    assert router.find("/v1/things/7", b"/v1%2Fthings/7") is None
    for path in ("/v1/things", "/v1/things/7/", "/v1/things/7/pieces/8", "", "/", "v1/things/7", "//v1/things/7"):
        missing = router.find(path)
        assert missing is None or missing[2] == ("",), path
