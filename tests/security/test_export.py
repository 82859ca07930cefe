"""``GET /v1/export``, attacked: who may not, what of others is in it, whose marks are taken, and lines that break."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nagaya.cli.main import run
from nagaya.lifecycle.bundle_entries import BlobPart, Entry, RecordEntry, unpacked
from nagaya.lifecycle.bundle_format import (
    BundleOpener,
    FrameCipher,
    Marked,
    Passphrase,
    bound_to,
    check_whole,
    frames_of,
    last_mark,
    mark_frame,
    read_header,
    unlocked,
)
from nagaya.settings import Settings
from nagaya.wiring import Nagaya
from support.cutting import cutting
from support.planted import Planted, assert_error, assert_no_canary
from support.server import RunningServer, running

WORD = "correct horse battery"
OPENER = Passphrase(WORD)
LOCK = {"X-Bundle-Passphrase": base64.b64encode(WORD.encode()).decode()}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("export"), NAGAYA_ALLOWED_HOSTS="127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module")
def two(house: RunningServer) -> tuple[Planted, Planted]:
    acme, globex = Planted(house, "acme"), Planted(house, "globex")
    for tenant in (acme, globex):
        # Enough for several marks, in files and in records.
        for number in range(5):
            body = (tenant.canary.encode() * (2 * MIB // len(tenant.canary.encode())))[: -number or None]
            files = {"file": (f"{number}.txt", body)}
            reply = tenant.as_user.post("/v1/files", files=files, data={"purpose": "user_data"})
            assert reply.status_code == 200, reply.text
    return acme, globex


def export(client: httpx.Client, **more: str) -> httpx.Response:
    return client.get("/v1/export", headers={**LOCK, **more})


def entries(bundle: bytes, opener: BundleOpener = OPENER) -> list[Entry]:
    """What lies in a bundle that is whole."""
    file = io.BytesIO(bundle)
    header, raw = check_whole(file)
    cipher = FrameCipher(unlocked(header, opener), bound_to(raw))
    read_header(file)
    found: list[Entry] = []
    for number, frame in enumerate(frames_of(file)):
        if frame.mark is None:
            found += unpacked(cipher.open(number, frame))
    return found


def clear(bundle: bytes, opener: BundleOpener = OPENER) -> bytes:
    held = entries(bundle, opener)
    return b"\n".join(
        each.body if isinstance(each, RecordEntry) else each.data if isinstance(each, BlobPart) else b""
        for each in held
    )


def marks(bundle: bytes) -> list[Marked]:
    """Every mark, and where what follows it begins."""
    found, upto = [], len(bundle)
    while (mark := last_mark(io.BytesIO(bundle[:upto]))) is not None:
        found.insert(0, mark)
        upto = mark.at - 1
    return found


def going_on(mark: bytes) -> dict[str, str]:
    return {"X-Bundle-Mark": base64.b64encode(mark).decode()}


def test_an_administrator_gets_everything_of_the_tenant_and_nothing_of_another(two):
    acme, globex = two
    reply = export(acme.as_admin)
    assert reply.status_code == 200
    assert reply.headers["x-bundle-at"] == "0"
    for tenant in two:
        assert_no_canary(reply.content, of=tenant)
    held = clear(reply.content)
    assert held.count(acme.canary.encode()) > 5
    assert_no_canary(held, of=globex)
    assert b"sk-" + acme.canary.encode() not in held, "a key of the tenant's account elsewhere is not let out"


def test_only_a_tenants_own_administrator_with_every_scope_is_let_in(house: RunningServer, two):
    acme, globex = two
    for client in (acme.as_user, acme.as_other, acme.as_member):
        assert_error(export(client), 403)
    for scopes in (["nagaya.read"], ["nagaya.admin"], ["nagaya.read", "nagaya.write"]):
        key = house.key("acme", "aoi", "tenant_admin", "narrow", scopes=scopes)
        assert_error(export(acme.client(key)), 403)
    assert_error(export(house.client(house.operator_key)))
    assert_error(export(house.client(house.operator_key), **{"X-Tenant-Id": "acme"}))
    assert_error(export(house.client()), 401)
    assert_error(export(acme.as_admin, **{"X-Tenant-Id": "globex"}), 403)
    assert_error(export(house.client(acme.admin_key, host=globex.host)), 403)
    assert_error(acme.as_admin.get("/v1/export", params={"tenant": "globex"}, headers=LOCK), 403)
    assert_error(acme.as_admin.post("/v1/export", headers=LOCK), 405)


def test_a_workspace_is_exported_by_its_own_administrator_and_is_not_in_its_tenants_bundle(house: RunningServer, two):
    acme, _ = two
    legal = Planted(house, "acme/legal")
    held = clear(export(acme.as_admin).content)
    assert_no_canary(held, of=legal, content_only=True)
    assert entries(export(acme.as_admin).content)[-1].left_out["workspace"] == 1
    assert_error(export(acme.as_admin, **{"X-Workspace-Id": "acme/legal"}), 403)
    own = clear(export(legal.as_admin).content)
    assert legal.canary.encode() in own
    assert_no_canary(own, of=acme, content_only=True)


def test_it_must_be_said_once_and_well_for_whom_the_bundle_is(two):
    acme, _ = two
    get = acme.as_admin.get
    public = X25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    assert_error(get("/v1/export"), 400)
    assert_error(get("/v1/export", headers=LOCK, params={"recipient": public}), 400)
    assert_error(get("/v1/export", params={"recipient": public, "x": "1"}), 400)
    for bad in ("", "zz", public[:-2], public.upper(), f" {public}"[:64]):
        assert_error(get("/v1/export", params={"recipient": bad}), 400)
    for bad in ("", "?", base64.b64encode(b"\xff" * 20).decode(), base64.b64encode(b"short").decode()):
        refused = assert_error(get("/v1/export", headers={"X-Bundle-Passphrase": bad}), 400)
        japanese = {"X-Bundle-Passphrase": bad, "Accept-Language": "ja"}
        assert assert_error(get("/v1/export", headers=japanese))["message"] != refused["message"]


def test_a_bundle_for_a_key_opens_with_that_key_alone(two):
    acme, _ = two
    key = X25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    reply = acme.as_admin.get("/v1/export", params={"recipient": public})
    assert acme.canary.encode() in clear(reply.content, key)


def test_from_every_mark_the_rest_follows_and_the_whole_is_signed(two):
    acme, _ = two
    whole = export(acme.as_admin).content
    found = marks(whole)
    assert len(found) >= 2
    for mark in found:
        # Twice, since the first answer may break off too.
        for _ in range(2):
            rest = acme.as_admin.get("/v1/export", headers=going_on(mark.mark))
            assert rest.status_code == 200, rest.text
            assert rest.headers["x-bundle-at"] == str(mark.at)
            joined = whole[: mark.at] + rest.content
            first, second = entries(whole), entries(joined)
            assert [each for each in first[:-1] if each in second] == first[:-1]


def test_a_mark_of_another_tenant_and_an_altered_one_answer_as_one_that_never_was(two):
    acme, globex = two
    mark = marks(export(acme.as_admin).content)[0].mark
    never = bytes(len(mark))
    altered = [mark[:at] + bytes([mark[at] ^ 1]) + mark[at + 1 :] for at in range(0, len(mark), len(mark) // 12)]
    told = set()
    for client, bad in [(globex.as_admin, mark), (acme.as_admin, never), *((acme.as_admin, each) for each in altered)]:
        reply = client.get("/v1/export", headers=going_on(bad))
        told.add(json.dumps(assert_error(reply, 404)))
    for bad in (b"", mark[:20], mark + b"x"):
        told.add(json.dumps(assert_error(acme.as_admin.get("/v1/export", headers=going_on(bad)), 404)))
    assert len(told) == 1
    for client in (acme.as_user, acme.as_member):
        assert_error(client.get("/v1/export", headers=going_on(mark)), 403)


def test_who_can_open_a_bundle_cannot_have_one_of_his_own_making_signed(two):
    acme, _ = two
    whole = export(acme.as_admin).content
    mark = marks(whole)[0]
    # He puts other frames before the mark: the signature is over those that were sent.
    forged = bytearray(whole[: mark.at])
    at = whole.index(mark_frame(mark.mark)) - 40
    forged[at] ^= 1
    rest = acme.as_admin.get("/v1/export", headers=going_on(mark.mark)).content
    from nagaya.errors import BundleBroken

    with pytest.raises(BundleBroken):
        check_whole(io.BytesIO(bytes(forged) + rest))


def test_an_export_and_its_resumption_are_in_the_tenants_audit_log(two):
    acme, _ = two
    whole = export(acme.as_admin).content
    acme.as_admin.get("/v1/export", headers=going_on(marks(whole)[0].mark))
    header, _ = read_header(io.BytesIO(whole))
    found, after = [], 0
    while (page := acme.as_admin.get("/v1/audit", params={"after": after, "limit": 100}).json())["data"]:
        found += [(entry["action"], entry["role"]) for entry in page["data"] if entry.get("target") == header.bundle]
        after += len(page["data"])
    assert [action for action, _ in found] == [
        "tenant.export.begin", "tenant.export", "tenant.export.resume", "tenant.export",
    ]  # fmt: skip
    assert {role for _, role in found} == {"tenant_admin"}


def test_a_revoked_administrator_is_cut_off_in_the_middle(house: RunningServer, two):
    acme, _ = two
    token = house.token("acme", "brief", "tenant_admin")
    with house.client(token).stream("GET", "/v1/export", headers=LOCK) as reply:
        assert reply.status_code == 200
        pieces = reply.iter_raw(1024)
        arrived = len(next(pieces))
        house.operate("POST", "/admin/tenants/acme/revocations", {"user": "brief"})
        try:
            import time

            time.sleep(3)
            for piece in pieces:
                arrived += len(piece)
        except httpx.HTTPError:
            pass
    assert arrived < len(export(acme.as_admin).content)


def arguments(relay: str, key: str, file: Path, *more: str) -> list[str]:
    return ["tenant", "export", "acme", str(file), "--url", relay, "--key", key, "--json", *more]


def test_a_line_that_breaks_again_and_again_is_gone_on_with(
    house: RunningServer, two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from nagaya.cli import bundle_download

    acme, _ = two
    monkeypatch.setenv("BUNDLE_WORD", WORD)
    monkeypatch.setattr(bundle_download, "_FIRST_WAIT_S", 0.01)
    file = tmp_path / "acme.bundle"
    # In the header, before any mark, after one, and within the last answer.
    with cutting(house.port, 0, 700, 3 * MIB, 6 * MIB, 5 * MIB) as relay:
        assert run(arguments(relay.url, acme.admin_key, file, "--passphrase", "env://BUNDLE_WORD")) == 0
        assert relay.asked == 6
    shown = json.loads(capsys.readouterr().out)
    assert shown["tenant"] == "acme"
    assert file.stat().st_mode & 0o077 == 0
    assert acme.canary.encode() * 100 in clear(file.read_bytes())

    async def imported() -> None:
        async with Nagaya.open(settings=Settings(data=str(tmp_path / "elsewhere"))) as nagaya:
            done = await nagaya.bundles.import_(file, Passphrase(WORD), signer=shown["signer"])
            assert done.counts["blob"] >= 5

    asyncio.run(imported())


def test_a_download_that_was_given_up_is_taken_up_later_by_its_mark(
    house: RunningServer, two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from nagaya.cli import bundle_download

    acme, globex = two
    monkeypatch.setenv("BUNDLE_WORD", WORD)
    monkeypatch.setattr(bundle_download, "_FIRST_WAIT_S", 0.01)
    file = tmp_path / "acme.bundle"
    with cutting(house.port, 6 * MIB, *([0] * 20)) as relay:
        assert run(arguments(relay.url, acme.admin_key, file, "--passphrase", "env://BUNDLE_WORD")) == 1
    cut = file.read_bytes()
    assert marks(cut)
    assert run(arguments(house.url, acme.admin_key, file, "--passphrase", "env://BUNDLE_WORD")) == 1, "it is there"
    assert run(arguments(house.url, globex.admin_key, file, "--resume")) == 1
    assert file.read_bytes() == cut
    assert run(arguments(house.url, acme.admin_key, file, "--resume")) == 0
    assert acme.canary.encode() in clear(file.read_bytes())
    (tmp_path / "empty").write_bytes(b"")
    assert run(arguments(house.url, acme.admin_key, tmp_path / "empty", "--resume")) == 1
    assert run(arguments(house.url, house.operator_key, tmp_path / "new", "--passphrase", "env://BUNDLE_WORD")) == 1
    capsys.readouterr()
