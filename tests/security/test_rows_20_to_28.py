"""The attack table, rows 20 to 28: many tenants at once, operators, onboarding, errors; and what lies about."""

from __future__ import annotations

import asyncio
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nagaya.audit.chain import ChainStore
from nagaya.audit.entry import PLATFORM, Chain
from nagaya.connections.room import Rooms, TenantSession
from nagaya.context.items import Message
from nagaya.errors import AuditBroken, NoTenant, NotFound
from nagaya.records.sealed_store import Partition, Put, SealedStore
from nagaya.server.routes import ROUTES
from nagaya.settings import Settings
from nagaya.tenancy.principal import Entrance, mint_entrance
from nagaya.wiring import Nagaya
from support.model_server import ModelServer
from support.planted import Planted, assert_error, assert_no_canary, forms, said
from support.server import RunningServer

MANY = 1000


async def test_row_20_a_thousand_interleaved_tenants_in_one_process_do_not_bleed(tmp_path: Path):
    began_s = time.monotonic()
    # Fewer open stores than tenants, so that rooms close and open all the time.
    async with Nagaya.open(settings=Settings(data=str(tmp_path), open_stores=128)) as nagaya:
        names = [f"tn{number:04d}x" for number in range(MANY)]
        gate = asyncio.Semaphore(16)
        made: dict[str, tuple[str, str]] = {}

        async def begin(name: str) -> None:
            async with gate:
                await nagaya.tenants.create(name, name=name)
                # One user name for all, so that only the tenant tells them apart.
                token = await nagaya.tenants.mint(name, "mio")
                async with nagaya.session(await nagaya.enter(token)) as tenant:
                    chat = await tenant.conversations.create(title=f"canary {name}")
                made[name] = token, chat.id

        await asyncio.gather(*map(begin, names))
        made_s = time.monotonic() - began_s
        steps = [(name, step) for name in names for step in range(1)]
        random.Random(20).shuffle(steps)
        refused = 0

        async def step(name: str, number: int) -> None:
            nonlocal refused
            async with gate:
                token, chat = made[name]
                other = made[names[(names.index(name) + 1 + 37 * number) % MANY]][1]
                async with nagaya.session(await nagaya.enter(token)) as tenant:
                    await tenant.conversations.append(chat, Message.user(f"canary {name} {number}"))
                    texts = [item.text for item in await tenant.conversations.items(chat, limit=100)]
                    assert texts
                    assert all(text.startswith(f"canary {name} ") for text in texts)
                    listed = await tenant.conversations.list()
                    assert [shown.title for shown in listed.data] == [f"canary {name}"]
                    with pytest.raises(NotFound):
                        await tenant.conversations.items(other)
                    refused += 1

        await asyncio.gather(*(step(*each) for each in steps))
        assert refused == len(steps)
    print(f"{MANY} tenants made in {made_s:.1f} s, all in {time.monotonic() - began_s:.1f} s")
    for name in random.Random(21).sample(names, 50):
        stored = (tmp_path / "tenants" / name / "store.db").read_bytes()
        assert b"canary" not in stored


# --- row 24 ---


def test_row_24_an_operator_sees_metadata_and_no_content(server: RunningServer, acme: Planted, globex: Planted):
    for path in ("/v1/conversations", f"/v1/conversations/{acme.conversation}", "/v1/me", "/v1/models", "/v1/audit"):
        assert_error(server.admin.get(path), 403, "forbidden")
    assert_error(server.admin.post("/v1/responses", json={"input": "x"}), 403)
    for path in (
        "/admin/tenants", "/admin/tenants/acme", "/admin/tenants/acme/usage", "/admin/keys/acme",
        "/admin/tenants/acme/issuers", "/admin/api-keys?tenant=acme", "/admin/audit/verify?tenant=acme",
    ):  # fmt: skip
        reply = server.admin.get(path)
        assert reply.status_code == 200, path
        assert_no_canary(reply.content, of=acme, content_only=True)
        assert_no_canary(reply.content, of=globex)
        assert "nk_" not in reply.text
        assert "sk-" not in reply.text


def test_row_24_only_an_operator_operates(server: RunningServer, acme: Planted):
    for client in (acme.as_user, acme.as_member, acme.as_admin, server.client()):
        for method, path in (
            ("GET", "/admin/tenants"), ("POST", "/admin/tenants"), ("DELETE", "/admin/tenants/globex"),
            ("POST", "/admin/tenants/globex/suspend"), ("POST", "/admin/keys/globex/revoke"),
            ("POST", "/admin/api-keys"), ("POST", "/admin/tenants/acme/tokens"), ("GET", "/admin/audit/verify"),
            ("PUT", "/admin/tenants/acme/model-key"), ("GET", "/admin/keys/acme"),
        ):  # fmt: skip
            reply = client.request(method, path, json={})
            assert reply.status_code in (401, 403), (method, path, reply.text)
            assert_error(reply)
    for role in ("operator", "root", ""):
        body = {"tenant": "acme", "user": "x", "role": role}
        assert_error(server.admin.post("/admin/api-keys", json=body), 400)
        assert_error(server.admin.post("/admin/tenants/acme/tokens", json={"user": "x", "role": role}))


def test_row_24_an_operators_key_does_what_its_scopes_say_and_no_more(own_server: RunningServer):
    own_server.tenant("scoped-by-key")
    paths = {path for _, path, _ in ROUTES if path.startswith("/admin/")}
    asked = [(method, path.replace("{}", "scoped-by-key")) for method, path, _ in ROUTES if path in paths]
    keys = {
        scope: own_server.operate(
            "POST", "/admin/api-keys", {"user": "op", "role": "operator", "scopes": [f"nagaya.{scope}"]}
        )["api_key"]
        for scope in ("read", "write", "admin")
    }
    before = own_server.operate("GET", "/admin/tenants/scoped-by-key")
    for method, path in asked:
        if method != "GET":
            assert_error(own_server.client(keys["read"]).request(method, path, json={}), 403, "forbidden")
        else:
            assert_error(own_server.client(keys["write"]).get(path), 403, "forbidden")
            assert_error(own_server.client(keys["admin"]).get(path), 403, "forbidden")
    reader, writer = own_server.client(keys["read"]), own_server.client(keys["write"])
    assert reader.get("/admin/tenants/scoped-by-key").json() == before
    assert own_server.operate("GET", "/admin/tenants/scoped-by-key") == before
    for role in ("operator", "tenant_admin"):
        # A key that can make keys has every scope.
        body = {"user": "op", "role": role} | ({"tenant": "scoped-by-key"} if role != "operator" else {})
        assert_error(writer.post("/admin/api-keys", json=body), 403, "forbidden")
    for path in ("tokens", "revocations", "issuers"):
        assert_error(writer.post(f"/admin/tenants/scoped-by-key/{path}", json={"user": "x"}), 403, "forbidden")
    assert_error(writer.delete("/admin/tenants/scoped-by-key"), 403, "forbidden")
    assert writer.post("/admin/tenants/scoped-by-key/suspend").status_code == 200
    assert writer.post("/admin/tenants/scoped-by-key/resume").status_code == 200


def test_row_24_a_key_without_the_scope_is_refused_before_anything_is_looked_up_or_kept(own_server: RunningServer):
    own_server.tenant("scoped-before")
    writer = own_server.client(own_server.key("scoped-before", scopes=["nagaya.write"]))
    reader = own_server.client(own_server.key("scoped-before", scopes=["nagaya.read"]))
    own_server.operate("POST", "/admin/keys/scoped-before/revoke")
    # Not "key_disabled": nothing of the tenant was opened to say so.
    for method, path, _ in ROUTES:
        if not path.startswith("/v1/") or path in ("/v1/me", "/v1/ping/", "/v1/session"):
            # Whoever holds a key may ask what it is good for.
            continue
        client = writer if method == "GET" or path.rstrip("/").endswith("/search") else reader
        reply = client.request(method, path.replace("{}", "x"), json=None if method == "GET" else {})
        # Routes of mem0's say the message once more, where its clients look for it.
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden"), (method, path, reply.text)


def test_row_24_what_an_operator_did_is_on_record_under_the_key_that_did_it(own_server: RunningServer):
    own_server.tenant("on-record", models=["openai://gpt-5-mini", "builtin://"])
    made = own_server.operate("POST", "/admin/api-keys", {"user": "ops", "role": "operator", "name": "second"})
    second = own_server.client(made["api_key"])
    tenant = "/admin/tenants/on-record"
    for method, path, body in (
        ("POST", f"{tenant}/suspend", None), ("POST", f"{tenant}/resume", None), ("PATCH", tenant, {"name": "N"}),
        ("POST", f"{tenant}/tokens", {"user": "mio"}), ("POST", f"{tenant}/revocations", {"user": "mio"}),
        ("PUT", f"{tenant}/model-key", {"api_key": "sk-never-shown"}), ("POST", "/admin/keys/on-record/rotate", None),
        ("POST", "/admin/api-keys", {"tenant": "on-record", "user": "mio"}),
        ("POST", f"{tenant}/issuers", {"issuer": "https://i.example", "provider": "oidc", "audiences": ["a"],
                                       "jwks_url": "https://i.example/keys"}),
    ):  # fmt: skip
        assert second.request(method, path, json=body).is_success, path
    admin = own_server.client(own_server.key("on-record", "aoi", "tenant_admin"))
    entries = admin.get("/v1/audit", params={"limit": 1000}).json()["data"]
    by_second = {entry["action"] for entry in entries if entry["actor"] == f"ops {made['key_id']}"}
    assert by_second == {
        "tenant.suspend", "tenant.resume", "tenant.set", "token.mint", "token.revoke", "model_key.set", "key.rotate",
        "api_key.create", "issuer.bind",
    }  # fmt: skip
    assert not [entry for entry in entries if entry["role"] == "operator" and entry["actor"] == "operator"]
    assert "sk-never-shown" not in str(entries)


def test_row_24_metrics_logs_and_the_registry_hold_no_words_of_a_tenant(
    server: RunningServer, acme: Planted, globex: Planted
):
    # Make the server say things: refusals, a failure, a stream.
    acme.as_user.post("/v1/responses", json={"input": acme.canary, "stream": True})
    acme.as_user.post("/v1/responses", json={"input": acme.canary, "model": acme.canary})
    acme.as_user.get(f"/v1/conversations/{acme.canary}")
    acme.as_user.get(f"/{acme.canary}", params={"q": acme.canary})
    acme.as_user.post("/v1/responses", json={acme.canary: 1})
    for tenant in (acme, globex):
        assert_no_canary(server.client().get("/metrics").content, of=tenant)
        assert_no_canary(server.log(), of=tenant)
        for path in sorted(server.data.glob("registry.db*")):
            assert_no_canary(path.read_bytes(), of=tenant, content_only=True)
        for path in sorted((server.data / "tenants" / "_platform").rglob("*")):
            assert_no_canary(path.read_bytes(), of=tenant)
    for key in (acme.user_key, globex.admin_key, server.operator_key):
        assert key not in server.log()
        assert all(key.encode() not in path.read_bytes() for path in server.data.rglob("*") if path.is_file())


def test_row_24_a_tenants_own_store_holds_none_of_its_words_in_clear(acme: Planted, globex: Planted):
    for tenant in (acme, globex):
        stored = tenant.store_bytes()
        assert len(stored) > 20_000
        for owner in (acme, globex):
            assert_no_canary(stored, of=owner)
        assert b"conv_" in stored  # ids are in clear; if this fails, the file that was read is not the store


async def test_row_24_a_tampered_audit_log_does_not_verify(tmp_path: Path):
    async with Nagaya.open(settings=Settings(data=str(tmp_path))) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        for number in range(5):
            nagaya.audit.record(Chain("acme"), actor=f"user{number}", role="user", action="enter")
        await nagaya.audit.flush()
        verified = await nagaya.audit.verify(Chain("acme"))
        assert verified.count == 6
        records = nagaya.audit._chains._store  # the attacker is somebody with the platform's own keys
        place = await _place_of(records)
        rows = await records.query(place, limit=100)
        entry = next(row for row in rows if b"user3" in row.body)
        changed = entry.body.replace(b"user3", b"user9")
        await records.write(place, [Put(entry.sort, changed, entry.revision)])
        with pytest.raises(AuditBroken):
            await nagaya.audit.verify(Chain("acme"))
        await records.write(place, [Put(entry.sort, entry.body, entry.revision + 1)])
        assert (await nagaya.audit.verify(Chain("acme"))).count == 6
        await records.delete(place, entry.sort, expect=entry.revision + 2)
        with pytest.raises(AuditBroken):
            await nagaya.audit.verify(Chain("acme"))
        # The other chains are whole.
        await nagaya.audit.verify(PLATFORM)
        assert isinstance(nagaya.audit._chains, ChainStore)


async def _place_of(records: SealedStore) -> Partition:
    return next(partition for partition, record in await records.scan(limit=500) if b"user3" in record.body)


# --- row 25 ---


def test_row_25_onboarding_an_existing_id_is_refused_and_leaves_the_tenant_as_it_was(
    server: RunningServer, acme: Planted
):
    before, stored = server.operate("GET", "/admin/tenants/acme"), acme.store_bytes()
    for _ in range(3):
        reply = server.admin.post("/admin/tenants", json={"id": "acme", "name": "Evil", "hosts": ["evil.example"]})
        assert_error(reply, 409, "tenant_exists")
    assert server.operate("GET", "/admin/tenants/acme") == before
    assert acme.store_bytes() == stored
    assert acme.as_user.get(f"/v1/conversations/{acme.conversation}").status_code == 200


def test_row_25_a_failed_onboarding_undoes_only_its_own_steps(server: RunningServer, acme: Planted):
    # A folder of that name is there already: somebody else's data, which must survive.
    folder = server.data / "tenants" / "orphan-left"
    folder.mkdir(mode=0o700)
    (folder / "store.db").write_bytes(b"precious")
    reply = server.admin.post("/admin/tenants", json={"id": "orphan-left", "name": "x"})
    assert reply.status_code >= 400
    assert_error(reply, reply.status_code)
    assert (folder / "store.db").read_bytes() == b"precious"
    assert_error(server.admin.get("/admin/tenants/orphan-left"), 404)
    # Taking a host that belongs to another fails and leaves neither tenant nor folder.
    reply = server.admin.post("/admin/tenants", json={"id": "host-thief", "name": "x", "hosts": ["acme.example"]})
    assert_error(reply, 400)
    assert_error(server.admin.get("/admin/tenants/host-thief"), 404)
    assert not (server.data / "tenants" / "host-thief").exists()
    assert acme.as_user.get("/v1/me").json()["tenant"]["id"] == "acme"


def test_row_25_of_two_onboardings_of_one_id_at_once_one_wins_whole(server: RunningServer):
    with ThreadPoolExecutor(6) as pool:
        bodies = [{"id": "contested", "name": f"Name {number}"} for number in range(6)]
        replies = list(pool.map(lambda body: server.admin.post("/admin/tenants", json=body), bodies))
    assert sorted(reply.status_code for reply in replies) == [201] + [409] * 5
    winner = next(reply.json() for reply in replies if reply.status_code == 201)
    assert server.operate("GET", "/admin/tenants/contested")["name"] == winner["name"]
    assert server.client(server.key("contested")).post("/v1/conversations", json={}).status_code == 200


def test_row_25_a_deleted_tenants_id_is_not_given_again_and_its_data_is_gone(server: RunningServer):
    server.tenant("short-lived")
    client = server.client(server.key("short-lived"))
    conversation = client.post("/v1/conversations", json={"title": "gone"}).json()["id"]
    server.operate("DELETE", "/admin/tenants/short-lived")
    assert_error(client.get(f"/v1/conversations/{conversation}"), 401)
    assert not (server.data / "tenants" / "short-lived").exists()
    assert_error(server.admin.post("/admin/tenants", json={"id": "short-lived", "name": "x"}), 409)


# --- row 26 ---


async def test_row_26_without_an_entrance_nothing_opens(tmp_path: Path):
    async with Nagaya.open(settings=Settings(data=str(tmp_path))) as nagaya:
        tenant = await nagaya.tenants.create("acme", name="Acme")
        other = await nagaya.tenants.create("globex", name="Globex")
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        for missing in (None, "acme", tenant, object(), entrance.principal):
            with pytest.raises(NoTenant):
                await nagaya.rooms.session(missing)
        with pytest.raises((NoTenant, AttributeError)):
            await nagaya.inside(None)
        with pytest.raises(NoTenant):
            Entrance(object(), tenant=tenant, principal=entrance.principal, admitted_at_s=0.0)
        with pytest.raises(NoTenant):
            mint_entrance(tenant=other, principal=entrance.principal, admitted_at_s=0.0)
        session = await nagaya.rooms.session(entrance)
        foreign = await nagaya.rooms.session(await nagaya.enter(await nagaya.tenants.mint("globex", "mio")))
        with pytest.raises(NoTenant):
            TenantSession(entrance, foreign.room, nagaya.clock, nagaya.gate.is_current)
        await session.release()
        await session.release()
        await foreign.release()
        assert isinstance(nagaya.rooms, Rooms)
        with pytest.raises(Exception, match="closed"):
            _ = session.records
    for text in ("ContextVar", "current_tenant", "threading.local"):
        found = [path for path in Path("src/nagaya").rglob("*.py") if text in path.read_text("utf-8")]
        assert found == [], f"an ambient tenant would be a way around the entrance: {text}"


# --- row 28 ---


def test_row_28_an_error_never_carries_another_requests_words(
    server: RunningServer, model_server: ModelServer, acme: Planted
):
    secret = "zq-prompt-of-row-28"
    # Tenants with one model each, which have no other to turn to.
    clients = []
    for name in ("down", "cut"):
        server.tenant(f"failing-{name}", models=[model_server.model(name)])
        clients.append(server.client(server.key(f"failing-{name}")))

    def ask(number: int) -> str:
        own = f"{secret}-{number:03d}"
        client = clients[number % 2]
        body = {"input": own, "model": ("down", "cut")[number % 2]}
        replies = [
            client.post("/v1/responses", json=body),
            client.post("/v1/responses", json={**body, "stream": True}),
            client.post("/v1/chat/completions", json={"model": body["model"], "messages": [said_chat(own)]}),
            client.post("/v1/responses", json={"input": own, "model": own}),
            client.post("/v1/conversations", json={own: own}),
            client.get(f"/v1/conversations/{own}"),
        ]
        for reply in replies:
            for found in re.findall(rf"{secret}-(\d+)", reply.text):
                assert int(found) == number, reply.text
        # What the vendor quotes of the prompt stays with the vendor.
        assert secret not in replies[0].text
        assert replies[0].status_code >= 500
        return "".join(reply.text for reply in replies)

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(24)))
    assert len(texts) == 24
    assert secret not in server.log()
    assert any(secret in prompt for prompt in model_server.prompts)
    for text in texts:
        assert_no_canary(text, of=acme)


def said_chat(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_no_prompt_holds_a_word_of_another_tenant(server: RunningServer, model_server: ModelServer, acme, globex):
    for mine, foreign in ((acme, globex), (globex, acme)):
        tenant = f"prompted-{mine.id}"
        server.tenant(tenant, models=[model_server.model("quick")])
        client = server.client(server.key(tenant, mine.user))
        conversation = client.post("/v1/conversations", json={"items": [said(f"{mine.canary} own")]}).json()["id"]
        model_server.prompts.clear()
        reply = client.post("/v1/responses", json={"conversation": conversation, "input": "Go on."})
        assert reply.status_code == 200
        assert any(mine.canary in prompt for prompt in model_server.prompts)
        for prompt in model_server.prompts:
            assert_no_canary(prompt, of=foreign)


def test_the_canary_helper_finds_a_canary_in_every_form(acme: Planted):
    for form in forms(acme.canary):
        with pytest.raises(AssertionError):
            assert_no_canary(b"..." + form + b"...", of=acme)
