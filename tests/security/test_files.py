"""Files and their uploads, attacked: foreign ids and cursors, sizes, cut connections, wrong forms, names."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nagaya.tenancy.names import room_of
from support.naughty import NAUGHTY
from support.planted import Planted, assert_error, assert_no_canary
from support.server import RunningServer, running

LIMIT = 1024 * 1024
EDGE = "edge-of-the-form"
FORM = f"multipart/form-data; boundary={EDGE}"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(
        tmp_path_factory.mktemp("files"),
        NAGAYA_ALLOWED_HOSTS="127.0.0.1",
        NAGAYA_FILE_LIMIT_BYTES=str(LIMIT),
        NAGAYA_BODY_DEADLINE_S="5",
    ) as server:
        yield server


@pytest.fixture(scope="module")
def two(house: RunningServer) -> tuple[Planted, Planted]:
    return Planted(house, "acme"), Planted(house, "globex")


def upload(client: httpx.Client, name: str, body: bytes, **fields: str) -> httpx.Response:
    return client.post("/v1/files", files={"file": (name, body)}, data={"purpose": "user_data", **fields})


def made(client: httpx.Client, name: str, body: bytes, **fields: str) -> str:
    reply = upload(client, name, body, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def raw(*parts: tuple[str, bytes], closing: bool = True) -> bytes:
    """A form by hand: each part's headers and its bytes."""
    body = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (EDGE.encode(), head.encode(), data) for head, data in parts)
    return body + (f"--{EDGE}--\r\n".encode() if closing else b"")


def field(name: str, more: str = "") -> str:
    return f'Content-Disposition: form-data; name="{name}"{more}'


FILE = field("file", '; filename="a.txt"')


def blobs(tenant: Planted) -> list[Path]:
    """Every file in the tenant's blob storage, half-written ones too."""
    folder = tenant.server.data / "blobs" / room_of(tenant.id)
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def test_a_foreign_file_answers_as_one_that_is_not_there(two):
    acme, globex = two
    name, body = f"{acme.canary}.txt", acme.canary.encode() * 50
    own, shared = made(acme.as_user, name, body), made(acme.as_user, name, body, shared="true")
    listed = acme.as_user.get("/v1/files", params={"limit": 1}).json()
    absent = "file_" + "0" * 32
    for stranger, ids in (
        (acme.as_other, [own, shared]),
        (globex.as_user, [own, shared]),
        (globex.as_admin, [own, shared]),
        (acme.as_member, [own]),
    ):
        for each in ids:
            for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                foreign = stranger.request(method, f"/v1/files/{each}{path}")
                nowhere = stranger.request(method, f"/v1/files/{absent}{path}")
                assert_error(foreign, 404, "not_found")
                assert foreign.json() == nowhere.json()
        for after in (own, listed["next_cursor"]):
            reply = stranger.get("/v1/files", params={"after": after})
            assert_error(reply, 404, "not_found")
            assert_no_canary(reply.text, of=acme)
        assert_no_canary(stranger.get("/v1/files").text, of=acme)
    assert acme.as_member.get(f"/v1/files/{shared}/content").content == body
    assert acme.as_member.get("/v1/files", params={"shared": "true"}).json()["data"][0]["id"] == shared
    assert_error(acme.as_member.delete(f"/v1/files/{shared}"), 404)
    assert_error(acme.as_user.get("/v1/files", params={"user": acme.other_user}), 403)
    assert acme.as_admin.get(f"/v1/files/{own}/content").content == body
    assert acme.as_user.get(f"/v1/files/{own}/content").content == body


def test_no_canary_stands_in_the_storage_or_the_log(two):
    acme, _ = two
    made(acme.as_user, f"{acme.canary}.txt", acme.canary.encode() * 5000)
    assert blobs(acme)
    for path in blobs(acme):
        assert_no_canary(path.read_bytes() + path.name.encode(), of=acme)
    assert_no_canary(acme.store_bytes(), of=acme)
    assert_no_canary(acme.server.log(), of=acme)


def test_a_form_that_names_another_tenant_is_refused_and_keeps_nothing(two):
    acme, globex = two
    before = len(blobs(acme)), len(blobs(globex))
    tenant = field("tenant_id"), globex.id.encode()
    for parts in ([tenant, (FILE, b"x")], [(field("purpose"), b"vision"), (FILE, b"x"), tenant]):
        reply = acme.as_user.post("/v1/files", content=raw(*parts), headers={"content-type": FORM})
        assert_error(reply, 403, "tenant_mismatch")
    for name in ("owner", "id", "version", "partition", "tenant_id"):
        value = acme.id if name == "tenant_id" else globex.user
        assert_error(upload(acme.as_user, "a.txt", b"x", **{name: value}), 400, "unknown_parameter")
    assert (len(blobs(acme)), len(blobs(globex))) == before


@pytest.mark.parametrize("declared", [True, False])
def test_ten_gigabytes_are_refused_early_and_fill_nothing(two, declared):
    acme, _ = two
    before = len(blobs(acme))
    sent = 0

    def sparse() -> Iterator[bytes]:
        nonlocal sent
        yield raw((field("purpose"), b"vision"), (FILE, b""), closing=False)[:-2]
        for _ in range(10 * 1024):
            sent += 1024 * 1024
            yield bytes(1024 * 1024)

    headers = {"content-type": FORM} | ({"content-length": str(10 * 1024**3)} if declared else {})
    try:
        reply = acme.as_user.post("/v1/files", content=sparse(), headers=headers)
    except httpx.TransportError:
        # Refused and cut before the client looked at the answer.
        reply = None
    if reply is not None:
        assert_error(reply, 413, "file_too_large")
        assert str(LIMIT) in reply.text
    assert sent < 512 * 1024**2, "it took a twentieth of it"
    assert settled(acme, before)


def test_the_largest_file_fits_and_one_byte_more_does_not(two):
    acme, _ = two
    fits = made(acme.as_user, "full.bin", b"x" * LIMIT)
    count = len(blobs(acme))
    assert_error(upload(acme.as_user, "over.bin", b"x" * (LIMIT + 1)), 413, "file_too_large")
    assert len(blobs(acme)) == count
    acme.as_user.delete(f"/v1/files/{fits}")
    assert len(blobs(acme)) == count - 1


def half_sent(tenant: Planted) -> socket.socket:
    """A connection on which half a file has been sent."""
    connection = socket.create_connection(("127.0.0.1", tenant.server.port), timeout=60)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {tenant.host}\r\nAuthorization: Bearer {tenant.user_key}\r\n"
        f"Content-Type: {FORM}\r\nContent-Length: 900000\r\n\r\n"
    )
    start = raw((field("purpose"), b"vision"), (FILE, tenant.canary.encode() * 5000), closing=False)
    connection.sendall(head.encode() + start)
    return connection


def settled(tenant: Planted, before: int) -> bool:
    """Whether the storage comes back to so many files within half a minute."""
    ends_s = time.monotonic() + 30
    while len(blobs(tenant)) != before:
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.1)
    return True


def test_an_upload_that_is_cut_leaves_nothing(two):
    acme, _ = two
    before, listed = len(blobs(acme)), acme.as_user.get("/v1/files").json()["data"]
    connection = half_sent(acme)
    time.sleep(0.3)
    connection.close()
    assert settled(acme, before)
    assert acme.as_user.get("/v1/files").json()["data"] == listed


def test_an_upload_that_stops_coming_is_given_up(two):
    acme, _ = two
    before = len(blobs(acme))
    with half_sent(acme) as connection:
        received = b""
        while b"request_timeout" not in received and (piece := connection.recv(65_536)):
            received += piece
        assert received.startswith(b"HTTP/1.1 408")
    assert settled(acme, before)


WRONG = {
    "json": ("application/json", b"{}", 415),
    "no boundary": ("multipart/form-data", raw((FILE, b"x")), 415),
    "another boundary": ("multipart/form-data; boundary=other", raw((field("purpose"), b"vision"), (FILE, b"x")), 400),
    "a long boundary": ("multipart/form-data; boundary=" + "a" * 400, b"--a", 400),
    "empty": (FORM, b"", 400),
    "only its end": (FORM, raw(), 400),
    "not closed": (FORM, raw((field("purpose"), b"vision"), (FILE, b"x"), closing=False), 400),
    "no file": (FORM, raw((field("purpose"), b"vision")), 400),
    "no purpose": (FORM, raw((FILE, b"x")), 400),
    "a part without a name": (FORM, raw(("Content-Disposition: form-data", b"x"), (FILE, b"x")), 400),
    "a part without headers": (FORM, f"--{EDGE}\r\n\r\nx\r\n--{EDGE}--\r\n".encode(), 400),
    "two files": (FORM, raw((field("purpose"), b"vision"), (FILE, b"x"), (FILE, b"y")), 400),
    "two purposes": (FORM, raw((field("purpose"), b"vision"), (field("purpose"), b"vision"), (FILE, b"x")), 400),
    "many fields": (FORM, raw(*[(field(f"expires_after[{n}]"), b"x") for n in range(40)], (FILE, b"x")), 400),
    "a huge field": (FORM, raw((field("purpose"), b"x" * 9000), (FILE, b"x")), 400),
    "a field that is no text": (FORM, raw((field("purpose"), b"\xff\xfe"), (FILE, b"x")), 400),
    "huge headers": (FORM, raw((FILE + "; x=" + "y" * 70_000, b"x")), 400),
    "many headers": (FORM, raw(("\r\n".join([FILE, *["X-A: b"] * 20]), b"x")), 400),
    "a term that is none": (FORM, raw((field("purpose"), b"vision"), (field("expires_after[seconds]"), "３６００".encode()), (FILE, b"x")), 400),
    "another anchor": (FORM, raw((field("purpose"), b"vision"), (field("expires_after[anchor]"), b"later"), (FILE, b"x")), 400),
    "an anchor alone": (FORM, raw((field("purpose"), b"vision"), (field("expires_after[anchor]"), b"created_at"), (FILE, b"x")), 400),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_form_says_what_is_wrong_and_keeps_nothing(two, wrong):
    acme, _ = two
    before = len(blobs(acme))
    kind, body, status = WRONG[wrong]
    error = assert_error(acme.as_user.post("/v1/files", content=body, headers={"content-type": kind}), status)
    if status == 415:
        assert "multipart/form-data" in error["message"]
    japanese = {"content-type": kind, "accept-language": "ja"}
    assert acme.as_user.post("/v1/files", content=body, headers=japanese).json()["error"]["message"] != error["message"]
    assert len(blobs(acme)) == before


def test_the_purpose_may_come_after_the_file(two):
    acme, _ = two
    body = raw((FILE, b"first\r\n--edge-of"), (field("purpose"), b"vision"))
    reply = acme.as_user.post(
        "/v1/files", content=iter([body[at : at + 1] for at in range(len(body))]), headers={"content-type": FORM}
    )
    assert (reply.status_code, reply.json()["purpose"]) == (200, "vision")
    assert acme.as_user.get(f"/v1/files/{reply.json()['id']}/content").content == b"first\r\n--edge-of"


NAMES = [
    *NAUGHTY,
    "../../../../etc/passwd",
    "a" * 10_000,
    "長" * 10_000,
    "見積書（最終版）.pdf",
    "..",
    "C:\\a\\b.txt",
    'a"b.txt',
    "",
]


def test_no_name_fails_the_server_or_leads_anywhere(two):
    acme, _ = two
    kept = 0
    for name in NAMES:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "surrogatepass")
        body = raw((field("purpose"), b"vision"), (field("file", '; filename="@@"'), b"x")).replace(b"@@", quoted)
        reply = acme.as_user.post("/v1/files", content=body, headers={"content-type": FORM})
        assert reply.status_code in (200, 400), (name[:50], reply.text[:300])
        if reply.status_code == 200:
            kept += 1
            shown = reply.json()
            assert not set(shown["filename"]) & set("/\\\x00\r\n")
            content = acme.as_user.get(f"/v1/files/{shown['id']}/content")
            assert content.content == b"x"
            assert content.headers["content-disposition"].startswith('attachment; filename="')
            assert acme.as_user.delete(f"/v1/files/{shown['id']}").status_code == 200
    assert kept > 40
    surrogate = field("file", '; filename="@@"')
    body = raw((field("purpose"), b"vision"), (surrogate, b"x")).replace(b"@@", b"half\xed\xa0\x80way\xff.txt")
    assert acme.as_user.post("/v1/files", content=body, headers={"content-type": FORM}).status_code == 200
    assert "Traceback" not in acme.server.log()


def test_without_a_right_to_write_nothing_is_read(two):
    acme, _ = two
    key = acme.server.key(acme.id, acme.user, "user", "reader", scopes=["nagaya.read"])
    assert_error(upload(acme.client(key), "a.txt", b"x"), 403, "forbidden")
    assert_error(acme.server.client().post("/v1/files", content=b"x", headers={"content-type": FORM}), 401)


def test_a_file_that_is_altered_in_the_storage_does_not_come_back(two):
    _, globex = two
    file_id = made(globex.as_user, "a.txt", b"x" * 1000)
    (path,) = [path for path in blobs(globex) if file_id in str(path)]
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    reply = globex.as_user.get(f"/v1/files/{file_id}/content")
    assert reply.status_code == 500
    assert json.loads(reply.text)["error"]["code"] == "seal_broken"
    assert globex.as_user.delete(f"/v1/files/{file_id}").status_code == 200
