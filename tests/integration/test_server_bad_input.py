"""Whatever a stranger sends is answered below 500, in the error shape, with a request id; texts come back as sent."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import pytest

from support.naughty import NAUGHTY
from support.planted import assert_error, said
from support.server import RunningServer


@pytest.fixture(scope="module")
def client(server: RunningServer) -> httpx.Client:
    server.tenant("naughty")
    return server.client(server.key("naughty", "mio", "tenant_admin"))


@pytest.fixture(scope="module")
def conversation(client: httpx.Client) -> str:
    made: str = client.post("/v1/conversations", json={}).json()["id"]
    return made


POSTS = ("/v1/conversations", "/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/conversations/{}/items")
MALFORMED: tuple[bytes, ...] = (
    b"{", b"}", b"[", b"nope", b"{'a': 1}", b'{"a": 1,}', b'{"a" 1}', b"\xff\xfe", b'"\xed\xa0\x80"', b'{"a": "\xff"}',
    b'{"input": "\\ud800"}', b'{"input": "\\udc00\\ud800"}', b'{"items": [{"role": "user", "content": "\\ud83d"}]}',
    b'{"metadata": {"\\udfff": "x"}}', b"NaN", b'{"temperature": NaN}', b'{"temperature": Infinity}', b"1", b'"text"', b"[]", b"null",
    b"true", b"\x00", b"{}{}", b'{"input": "x"} trailing', b'{"input": "x\ny"}', b"[" * 200 + b"]" * 200, b'{"a":' * 100 + b"1" + b"}" * 100,
    b'{"tools": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"text": {"a": ' + b'{"b":' * 70 + b"1" + b"}" * 72,
    b'{"items": 1}', b'{"items": {}}', b'{"items": [1]}', b'{"items": [[]]}', b'{"items": [null]}', b'{"items": "x"}', b'{"input": 1}',
    b'{"input": {}}', b'{"input": [1]}', b'{"input": [{"type": 1}]}', b'{"input": [{"type": "x"}]}', b'{"input": []}', b'{"messages": {}}',
    b'{"messages": [{"role": "user"}]}', b'{"messages": [{"content": "x"}]}', b'{"metadata": []}', b'{"metadata": {"a": {}}}',
    b'{"metadata": "x"}', b'{"stream": "yes", "input": "x"}', b'{"input": "x", "max_output_tokens": 1e400}',
    b'{"input": "x", "max_output_tokens": 99999999999999999999999999}', b'{"input": "x", "max_output_tokens": -1}',
    b'{"input": "x", "max_output_tokens": 1.5}', b'{"input": "x", "temperature": "hot"}', b'{"input": "x", "temperature": 1e308}',
    b'{"input": "x", "tools": {}}', b'{"input": "x", "tools": [1]}', b'{"input": "x", "tools": [{"type": "function"}]}',
    b'{"input": "x", "tools": [{"type": "function", "name": 1}]}', b'{"input": "x", "tool_choice": 1}', b'{"input": "x", "tool_choice": {}}',
    b'{"input": "x", "tool_choice": "sometimes"}', b'{"input": "x", "text": 1}', b'{"input": "x", "text": {"format": 1}}',
    b'{"input": "x", "reasoning": 1}', b'{"input": "x", "conversation": 1}', b'{"input": "x", "conversation": {"id": 1}}',
    b'{"input": "x", "conversation": ""}', b'{"input": "x", "previous_response_id": ""}', b'{"input": "x", "model": 1}',
    b'{"input": "x", "truncation": "maybe"}', b'{"input": "x", "user": 1}', b'{"input": "x", "conversation": "\\u0000"}',
    b'{"input": "x", "a": 1e999}', b'{"input": "x", "input": "y", "zz": 1}',
)  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:40].decode("latin-1"))
def test_a_malformed_body_is_refused_everywhere(client: httpx.Client, conversation: str, body: bytes):
    for path in POSTS:
        reply = client.post(path.format(conversation), content=body, headers={"content-type": "application/json"})
        assert reply.status_code < 500, reply.text
        if reply.status_code != 200:
            assert assert_error(reply)["type"] == "invalid_request_error"


def test_depth_is_counted_outside_of_strings_only(client: httpx.Client, conversation: str):
    text = '[{"' * 500
    path = f"/v1/conversations/{conversation}/items"
    stored = client.post(path, json={"items": [said(text)]})
    assert stored.json()["data"][0]["content"][0]["text"] == text
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    assert_error(client.post("/v1/responses", json={"input": "x", "tools": deep}), 400)


@pytest.mark.parametrize("start", range(0, len(NAUGHTY), 20))
def test_naughty_texts_come_back_byte_for_byte(client: httpx.Client, conversation: str, start: int):
    texts = list(NAUGHTY[start : start + 20])
    path = f"/v1/conversations/{conversation}/items"
    reply = client.post(path, json={"items": [said(text) for text in texts]})
    assert reply.status_code == 200, reply.text
    shown = client.get(path, params={"limit": len(texts)}).json()["data"][::-1]
    assert [item["content"][0]["text"] for item in shown] == texts
    ascii_only = json.dumps({"items": [said(text) for text in texts]}, ensure_ascii=True).encode()
    again = client.post(path, content=ascii_only, headers={"content-type": "application/json"})
    assert [item["content"][0]["text"] for item in again.json()["data"]] == texts


@pytest.mark.parametrize("text", NAUGHTY, ids=lambda text: ascii(text)[:30])
def test_a_naughty_text_is_kept_or_refused_wherever_it_stands(client: httpx.Client, conversation: str, text: str):
    made = client.post("/v1/conversations", json={"title": text, "metadata": {"k": text, text[:64]: "v"}})
    if made.status_code == 200:
        shown = client.get(f"/v1/conversations/{made.json()['id']}").json()
        assert shown["metadata"] == {"k": text, text[:64]: "v", "title": text}
    else:
        assert len(text) > 512
        assert_error(made, 400)
    answer = client.post(
        "/v1/responses", json={"input": text, "instructions": text, "user": text, "metadata": {"m": text[:512]}}
    )
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert answer.json()["instructions"] == text
        items = client.get(f"/v1/responses/{answer.json()['id']}/input_items").json()["data"]
        assert items[0]["content"][0]["text"] == text
    for reply in (
        client.get("/v1/conversations", params={"user": text}),
        client.get("/v1/conversations", params={"after": text}),
        client.get("/v1/conversations", params={text[:200]: text[:200]}),
        client.get(f"/v1/conversations/{conversation}/items", params={"after": text, "limit": text}),
        client.post("/v1/responses", json={"input": "x", "model": text}),
        client.post("/v1/responses", json={"input": "x", "conversation": text}),
        client.post("/v1/responses", json={"input": "x", "previous_response_id": text}),
        client.post("/v1/conversations", json={text: text}),
        client.post("/v1/conversations", json={"items": [{"type": text, "role": text, "content": "x"}]}),
        client.request("GET", httpx.URL(f"{client.base_url}/v1/conversations/").copy_with(raw_path=_raw("/v1/conversations/", text))),
        client.request("GET", httpx.URL(f"{client.base_url}/v1/models/").copy_with(raw_path=_raw("/v1/models/", text))),
    ):  # fmt: skip
        assert reply.status_code < 500, reply.text
        if reply.status_code != 200:
            assert_error(reply)


def _raw(prefix: str, text: str) -> bytes:
    return (prefix + "".join(f"%{byte:02X}" for byte in text[:500].encode())).encode()


@pytest.mark.parametrize("text", [*NAUGHTY[::3], "operator", "x" * 300, ""], ids=lambda text: ascii(text)[:30])
def test_a_naughty_text_in_an_operators_body_is_kept_or_refused(server: RunningServer, text: str):
    admin = server.admin
    for method, path, body in (
        ("POST", "/admin/tenants", {"id": text, "name": text}),
        ("POST", "/admin/tenants", {"id": "naughty", "name": text, "tier": text}),
        ("PATCH", "/admin/tenants/naughty", {text: text}),
        ("PATCH", "/admin/tenants/naughty", {"tier": text}),
        ("PATCH", "/admin/tenants/naughty", {"models": [text]}),
        ("PATCH", "/admin/tenants/naughty", {"models": text}),
        ("PATCH", "/admin/tenants/naughty", {"hosts": [text]}),
        ("PATCH", "/admin/tenants/naughty", {"expires_at_us": text}),
        ("POST", "/admin/tenants/naughty/tokens", {"user": text, "role": "user"}),
        ("POST", "/admin/tenants/naughty/tokens", {"user": "x", "role": text}),
        ("POST", "/admin/tenants/naughty/revocations", {"user": text or "x"}),
        ("POST", "/admin/api-keys", {"tenant": "naughty", "user": text, "name": text}),
        ("POST", "/admin/api-keys", {"tenant": text, "user": "x", "scopes": [text]}),
        ("POST", "/admin/tenants/naughty/issuers", {"issuer": text, "provider": "oidc", "audiences": [text], "jwks_url": text}),
        ("PUT", "/admin/tenants/naughty/model-key", {"api_key": text}),
    ):  # fmt: skip
        reply = admin.request(method, path, json=body)
        assert reply.status_code < 500, (method, path, body, reply.text)
        if not reply.is_success:
            assert_error(reply)
    for path in ("tenants", "keys", "api-keys"):
        for method in ("GET", "DELETE", "PATCH"):
            url = httpx.URL(f"{server.url}/").copy_with(raw_path=_raw(f"/admin/{path}/", text))
            reply = admin.request(method, url)
            assert reply.status_code < 500
            if not reply.is_success:
                assert_error(reply)
    for params in ({"tenant": text}, {"after": text}, {"limit": text}):
        for path in ("/admin/api-keys", "/admin/tenants", "/admin/audit/verify", "/admin/tenants/naughty/usage"):
            reply = admin.get(path, params=params)
            assert reply.status_code < 500, (path, params, reply.text)
    server.operate("PATCH", "/admin/tenants/naughty", {"models": ["builtin://"], "hosts": []})


@pytest.mark.parametrize("changes", [1, [], "x", {"models": 1}, {"models": [1]}, {"models": None}, {"name": 1}, {"hosts": 1}, {"epoch": 1},
    {"expires_at_us": 10**30}, {"requests_per_minute": -1}, {"mfa_required": "yes"}, {"id": "x"}, {"models": {"a": 1}}, {"regions": [None]}])  # fmt: skip
def test_a_change_of_a_wrong_kind_is_refused(server: RunningServer, client: httpx.Client, changes: Any):
    assert_error(server.admin.patch("/admin/tenants/naughty", json=changes), 400)
    assert client.get("/v1/me").status_code == 200


def test_a_page_of_a_hundred_thousand_is_refused(client: httpx.Client, conversation: str):
    for limit in ("100000", "101", "0", "-1", "1.5", "", "９", "²", "1e2", "+5", " 5", "0x10", "9" * 400):
        for path in ("/v1/conversations", f"/v1/conversations/{conversation}/items", "/v1/audit"):
            if path == "/v1/audit" and limit == "101":
                continue
            assert_error(client.get(path, params={"limit": limit}), 400)
    many = {"items": [said("x")] * 100_000}
    assert_error(client.post(f"/v1/conversations/{conversation}/items", json=many), 400)


def test_unknown_paths_and_methods_are_refused_in_shape(client: httpx.Client, server: RunningServer):
    for path in ("/", "/v1", "/v1/", "/v1/nothing", "/v2/responses", "//v1/me", "/v1/me/", "/v1/conversations/", "/admin", "/.git/config",
                 "/v1/../admin/tenants", "/v1/%2e%2e/me", "/v1/conversations/%00", "/favicon.ico", "/%ff%fe", "/v1/me;x=1"):  # fmt: skip
        for who in (client, server.client()):
            reply = who.get(path)
            assert reply.status_code in (401, 403, 404), (path, reply.status_code)
            assert_error(reply)
    for method, path in (("PUT", "/v1/me"), ("DELETE", "/v1/models"), ("POST", "/healthz"), ("TRACE", "/v1/me"),
                         ("PATCH", "/v1/conversations"), ("OPTIONS", "/v1/me"), ("POST", "/openapi.json")):  # fmt: skip
        reply = client.request(method, path)
        assert_error(reply, 405, "method_not_allowed")
        assert reply.headers["allow"]


def test_what_is_no_http_is_refused_in_the_same_shape(client: httpx.Client, server: RunningServer):
    assert_error(client.request("BREW", "/v1/responses"), 400)
    head = b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: "
    received = exchange(server, head + b"y" * 40_000, wait_s=0.3) or exchange(server, head + b"y" * 90_000)
    assert statuses(received) in ([400], [431])
    assert b"x-request-id" in received
    assert b'{"error":' in received


def test_security_headers_and_request_ids_are_on_every_reply(client: httpx.Client):
    for path in ("/healthz", "/v1/me", "/nothing", "/openapi.json", "/docs", "/metrics", "/v1/conversations/x"):
        reply = client.get(path, headers={"x-request-id": "given-by-the-caller"})
        assert reply.headers["x-request-id"] == "given-by-the-caller"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "content-security-policy" in reply.headers
        assert "server" not in reply.headers
    for bad in ("short", "x" * 65, "sp ace-sp ace", "<script>12345"):
        assert client.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req_")


def test_errors_speak_japanese_to_whoever_asks_for_it(client: httpx.Client):
    for given, japanese in (
        ("ja", True), ("ja-JP,en;q=0.5", True), ("de, ja;q=0.9", True), ("en-GB, ja", False), ("fr", False), ("", False), ("," * 5000, False),
    ):  # fmt: skip
        for path in ("/v1/conversations/none", "/nothing", "/v1/conversations?limit=0"):
            message = assert_error(client.get(path, headers={"accept-language": given}))["message"]
            assert any("\u3040" <= letter <= "\u30ff" for letter in message) == japanese
    wrong = client.get("/v1/me", headers={"authorization": "Bearer no", "accept-language": "ja"})
    assert "トークン" in assert_error(wrong, 401)["message"]


def test_a_body_of_another_kind_or_size_is_refused(client: httpx.Client, server: RunningServer):
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
    ):
        assert_error(client.post("/v1/conversations", content=b"{}", headers={"content-type": kind}), 415)
    big = b'{"input": "' + b"x" * (8 * 1024 * 1024) + b'"}'
    assert_error(client.post("/v1/responses", content=big, headers={"content-type": "application/json"}), 413)

    def pieces():
        for _ in range(140):
            yield b" " * 65_536

    reply = client.post("/v1/responses", content=pieces(), headers={"content-type": "application/json"})
    assert_error(reply, 413)
    just_under = json.dumps({"metadata": {}, "items": [said("x" * 7_000_000)]}).encode()
    fits = client.post("/v1/conversations", content=just_under, headers={"content-type": "application/json"})
    assert fits.status_code in (200, 400, 413), fits.text
    if fits.status_code != 200:
        assert_error(fits)


# --- through a raw socket ---


def exchange(server: RunningServer, sent: bytes, *, wait_s: float = 10.0) -> bytes:
    """What the server answers to these very bytes, until it closes or falls silent."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        connection.sendall(sent)
        deadline_s = time.monotonic() + wait_s
        try:
            while piece := connection.recv(65_536):
                received += piece
                connection.settimeout(max(0.3, min(0.5, deadline_s - time.monotonic())))
        except TimeoutError:
            pass
        except ConnectionResetError:
            pass
    return received


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_doubled_headers_are_refused(server: RunningServer, client: httpx.Client):
    key = client.headers["authorization"]
    for double in (
        f"Authorization: {key}\r\nAuthorization: Bearer other",
        "X-Tenant-Id: naughty\r\nX-Tenant-Id: acme",
        "Host: a\r\nHost: b",
    ):
        head = (
            f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
            if "X-Tenant" in double
            else "GET /v1/me HTTP/1.1\r\n"
        )
        received = exchange(server, f"{head}{double}\r\nConnection: close\r\n\r\n".encode())
        assert statuses(received)[0] in (400, 401), received[:200]


ODD = [
    b"GET /v1/me HTTP/1.1\r\nHost: x\r\nCookie: " + b"a=b; " * 4000 + b"\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/1.1\r\nHost: x\r\nCookie: access_token=\"\\x\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\nConnection: close\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\nConnection: close\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\nConnection: close\r\n\r\n{}xx",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /admin/tenants HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /v1/me\x00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET http://evil.example/v1/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/1.1\r\n Host: folded\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/1.1\r\nHost : spaced\r\nConnection: close\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n\r\n\r\n",
    b"GET " + b"/x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    b"GET /v1/me HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("sent", ODD, ids=lambda sent: ascii(sent[:70]))
def test_odd_bytes_on_the_wire_are_refused_and_never_smuggled(server: RunningServer, sent: bytes):
    received = exchange(server, sent, wait_s=3.0)
    assert all(400 <= status < 500 for status in statuses(received)), received[:300]
    assert len(statuses(received)) <= 1, received
    assert b"Traceback" not in received
    assert server.client().get("/healthz").status_code == 200


def test_a_client_that_leaves_in_the_middle_leaves_no_mess(
    server: RunningServer, client: httpx.Client, conversation: str
):
    before = len(client.get(f"/v1/conversations/{conversation}/items", params={"limit": 100}).json()["data"])
    head = f"POST /v1/conversations/{conversation}/items HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['authorization']}\r\n"
    for sent in (
        head + "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n" + '{"items": [',
        head + 'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ite',
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(sent.encode())
            time.sleep(0.1)
    time.sleep(0.2)
    assert len(client.get(f"/v1/conversations/{conversation}/items", params={"limit": 100}).json()["data"]) == before
    assert '"level":"error"' not in server.log()[-2000:].replace(" ", "") or "Traceback" not in server.log()[-2000:]


def test_nothing_in_all_of_this_made_the_server_fail(server: RunningServer, client: httpx.Client):
    # Last in the file: what the door logs when a handler raises what it should not.
    failed = [line for line in server.log().splitlines() if "http.failed" in line or "Traceback" in line]
    assert failed == []
