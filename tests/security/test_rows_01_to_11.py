"""The attack table, rows 1 to 11 but for tokens (2 to 6) and revocation (7), against a running server."""

from __future__ import annotations

import json

import pytest

from support.planted import Planted, assert_error, assert_no_canary, said
from support.server import RunningServer

ABSENT = "0" * 32


def refusals(tenant: Planted) -> list[str]:
    entries = []
    after = 0
    while True:
        page = tenant.as_admin.get("/v1/audit", params={"after": after, "limit": 1000}).json()
        entries += page["data"]
        if not page["has_more"]:
            break
        after = entries[-1]["seq"]
    return [entry.get("reason", "") for entry in entries if entry.get("outcome") == "refused"]


@pytest.mark.parametrize("headers", [{"x-tenant-id": "globex"}, {"host": "globex.example"}, {"x-tenant-id": "GLOBEX"}])
def test_row_01_a_header_or_host_that_names_another_tenant_is_refused_and_audited(acme, globex, headers):
    before = refusals(acme).count("tenant_mismatch")
    for path in ("/v1/conversations", f"/v1/conversations/{globex.conversation}", "/v1/me"):
        reply = acme.as_user.get(path, headers=headers)
        assert_error(reply, 403, "tenant_mismatch")
        assert_no_canary(reply.content, of=globex)
        assert_no_canary(reply.content, of=acme)
    assert refusals(acme).count("tenant_mismatch") > before
    assert "tenant_mismatch" not in refusals(globex)


def test_row_01_a_host_of_another_tenant_is_refused_also_where_the_own_tenant_has_none(server, globex):
    server.tenant("hostless")
    client = server.client(server.key("hostless"))
    assert client.get("/v1/me").status_code == 200
    assert_error(client.get("/v1/me", headers={"host": "globex.example"}), 403, "tenant_mismatch")


@pytest.mark.parametrize("name", ["tenant", "tenant_id", "tenantId", "TENANT-ID", "x-tenant-id", "t%65nant"])
def test_row_01_a_query_that_names_another_tenant_is_refused_and_audited(acme, globex, name):
    before = refusals(acme).count("tenant_mismatch")
    for method, path in (
        ("GET", "/v1/conversations"),
        ("GET", f"/v1/conversations/{acme.conversation}"),
        ("GET", "/v1/me"),
        ("POST", "/v1/conversations"),
        ("POST", "/v1/responses"),
        ("DELETE", f"/v1/conversations/{acme.conversation}"),
    ):
        reply = acme.as_admin.request(method, f"{path}?{name}=globex", json={} if method == "POST" else None)
        assert_error(reply, 403, "tenant_mismatch")
        assert_no_canary(reply.content, of=globex)
    assert refusals(acme).count("tenant_mismatch") > before
    assert "tenant_mismatch" not in refusals(globex)
    # The own tenant's name is no more than a parameter that is not known.
    assert_error(acme.as_admin.get(f"/v1/conversations?{name}=acme"), 400, "unknown_parameter")


def test_row_01_nobody_signs_in_under_the_name_of_another_tenant(server, acme, globex):
    body = {"id_token": server.token("acme")}
    for refused in (
        acme.as_user.post("/v1/session?tenant_id=globex", json=body),
        acme.as_user.post("/v1/session", json=body, headers={"x-tenant-id": "globex"}),
    ):
        assert_error(refused, 403, "tenant_mismatch")
        assert "set-cookie" not in refused.headers
    assert acme.as_user.post("/v1/session", json=body).status_code == 201


def test_row_01_a_query_that_names_a_tenant_deeper_down_is_refused(acme, globex):
    reply = acme.as_admin.get("/v1/conversations", params={"user[tenant]": "globex"})
    assert_error(reply, 400, "unknown_parameter")
    assert_no_canary(reply.content, of=globex)


def test_row_01_no_store_is_opened_for_a_refused_request(server, acme):
    server.tenant("closed-room")
    folder = server.data / "tenants" / "closed-room"
    before = {path.name for path in folder.iterdir()}
    assert_error(acme.as_user.get("/v1/conversations", headers={"x-tenant-id": "closed-room"}), 403)
    own = server.client(server.key("closed-room"))
    # Nor is the caller's own, whichever way another is named.
    for reply in (
        own.get("/v1/conversations", headers={"x-tenant-id": "acme"}),
        own.get("/v1/conversations", params={"tenant_id": "acme"}),
        own.post("/v1/conversations", json={"tenant_id": "acme"}),
    ):
        assert_error(reply, 403, "tenant_mismatch")
    # An open SQLite file in WAL mode has companions beside it.
    assert before == {"store.db"}
    assert {path.name for path in folder.iterdir()} == before


def _object_paths(tenant: Planted) -> list[tuple[str, str, object]]:
    conversation, item, response = tenant.conversation, tenant.items[0], tenant.response
    return [
        ("GET", f"/v1/conversations/{conversation}", None),
        ("POST", f"/v1/conversations/{conversation}", {"metadata": {"mine": "now"}}),
        ("DELETE", f"/v1/conversations/{conversation}", None),
        ("DELETE", f"/v1/conversations/{conversation}?permanent=true", None),
        ("POST", f"/v1/conversations/{conversation}/restore", None),
        ("POST", f"/v1/conversations/{conversation}/fork", {}),
        ("POST", f"/v1/conversations/{conversation}/fork", {"item_id": item}),
        ("GET", f"/v1/conversations/{conversation}/items", None),
        ("POST", f"/v1/conversations/{conversation}/items", {"items": [said("hello")]}),
        ("GET", f"/v1/conversations/{conversation}/items/{item}", None),
        ("DELETE", f"/v1/conversations/{conversation}/items/{item}", None),
        ("GET", f"/v1/responses/{response}", None),
        ("GET", f"/v1/responses/{response}?stream=true", None),
        ("DELETE", f"/v1/responses/{response}", None),
        ("POST", f"/v1/responses/{response}/cancel", None),
        ("GET", f"/v1/responses/{response}/context", None),
        ("POST", f"/v1/responses/{response}/replay", {}),
        ("GET", f"/v1/responses/{response}/input_items", None),
        ("POST", "/v1/responses", {"input": "go on", "conversation": conversation}),
        ("POST", "/v1/responses", {"input": "go on", "previous_response_id": response}),
    ]


def test_row_08_a_guessed_id_of_a_foreign_object_answers_like_an_absent_one(acme, globex):
    absent = {
        globex.conversation: f"conv_{ABSENT}",
        globex.items[0]: f"item_{ABSENT}",
        globex.response: f"resp_{ABSENT}",
    }
    for method, path, body in _object_paths(globex):
        for client in (acme.as_user, acme.as_admin):
            foreign = client.request(method, path, json=body)
            other_path, other_body = path, json.dumps(body)
            for there, gone in absent.items():
                other_path, other_body = other_path.replace(there, gone), other_body.replace(there, gone)
            missing = client.request(method, other_path, json=json.loads(other_body))
            assert_error(foreign, 404, "not_found")
            assert foreign.content == missing.content, path
            differing = {"x-request-id", "date"}
            assert {k: v for k, v in foreign.headers.items() if k not in differing} == {
                k: v for k, v in missing.headers.items() if k not in differing
            }
            assert_no_canary(foreign.content, of=globex)
    assert globex.as_user.get(f"/v1/conversations/{globex.conversation}").json()["metadata"]["topic"] == globex.canary
    assert len(globex.as_user.get(f"/v1/conversations/{globex.conversation}/items").json()["data"]) >= 4


def test_row_08_another_user_of_the_same_tenant_is_as_foreign_as_another_tenant(acme):
    for method, path, body in _object_paths(acme):
        reply = acme.as_other.request(method, path, json=body)
        assert_error(reply, 404, "not_found")
        assert acme.canary not in reply.text


def test_row_08_an_item_is_not_found_in_another_conversation(acme):
    other = acme.post("/v1/conversations", {})["id"]
    for item in acme.items:
        assert_error(acme.as_user.get(f"/v1/conversations/{other}/items/{item}"), 404)
        assert_error(acme.as_user.get(f"/v1/conversations/{other}/items", params={"after": item}), 404)


def test_row_09_a_foreign_cursor_is_refused_like_a_made_up_one(acme, globex):
    listing = "/v1/conversations"
    assert acme.as_user.get(listing, params={"after": acme.cursor, "limit": 2}).status_code == 200
    made_up = acme.as_user.get(listing, params={"after": acme.cursor[:-8] + "AAAAAAAA"})
    foreign = acme.as_user.get(listing, params={"after": globex.cursor})
    assert_error(foreign, 404)
    assert foreign.content == made_up.content
    assert_no_canary(foreign.content, of=globex)
    # Bound to its query too: another order, another filter, another user.
    for client, params in (
        (acme.as_user, {"order": "asc"}),
        (acme.as_user, {"archived": "false"}),
        (acme.as_member, {"shared": "true"}),
        (acme.as_other, {}),
        (acme.as_admin, {}),
    ):
        assert client.get(listing, params={"after": acme.cursor, **params}).content == made_up.content


def test_row_09_foreign_places_to_go_on_from_answer_404(acme, globex):
    for path, params in (
        ("/v1/conversations", {"after": globex.conversation}),
        (f"/v1/conversations/{acme.conversation}/items", {"after": globex.items[0]}),
        (f"/v1/responses/{acme.response}/input_items", {"after": globex.items[0]}),
    ):
        assert_error(acme.as_user.get(path, params=params), 404)
    for body in (
        {"input": "x", "previous_response_id": globex.lone_response},
        {"input": [{"type": "item_reference", "id": globex.items[0]}], "conversation": acme.conversation},
    ):
        assert_error(acme.as_user.post("/v1/responses", json=body), 404)


@pytest.mark.parametrize(
    "field", ["tenant_id", "tenant", "partition", "owner", "owner_id", "version", "revision", "created_at"]
)
def test_row_10_a_body_that_sets_tenant_partition_owner_or_version_is_refused(acme, globex, field):
    for path, body in (
        ("/v1/conversations", {"metadata": {}}),
        (f"/v1/conversations/{acme.conversation}", {"metadata": {"topic": acme.canary}}),
        (f"/v1/conversations/{acme.conversation}/items", {"items": [said("x")]}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        reply = acme.as_admin.post(path, json={**body, field: globex.id})
        if field in ("tenant", "tenant_id"):
            assert_error(reply, 403, "tenant_mismatch")
            reply = acme.as_admin.post(path, json={**body, field: acme.id})
        assert assert_error(reply, 400, "unknown_parameter")["param"] == field
    inside = {**said("x"), field: globex.id}
    assert_error(acme.as_user.post(f"/v1/conversations/{acme.conversation}/items", json={"items": [inside]}), 400)


def test_row_10_an_id_in_the_body_is_ignored(acme, globex):
    given = {**said("x"), "id": globex.items[0]}
    conversation = acme.post("/v1/conversations", {})["id"]
    stored = acme.post(f"/v1/conversations/{conversation}/items", {"items": [given]})
    assert stored["data"][0]["id"] != globex.items[0]


def test_row_10_metadata_that_looks_like_an_owner_means_nothing(acme, globex):
    made = acme.post("/v1/conversations", {"metadata": {"tenant_id": "globex", "owner": "globex", "shared": "true"}})
    assert_error(globex.as_user.get(f"/v1/conversations/{made['id']}"), 404)
    assert_error(acme.as_member.get(f"/v1/conversations/{made['id']}"), 404)


ESCAPES = (
    "' OR '1'='1", '" OR ""="', "globex", "../globex", "%", "*", "_", "conversations-of/globex", "x' UNION SELECT * FROM records--",
    "{$ne: null}", '{"$gt": ""}', "\x00", "globex\x00", "acme:globex", "acme/../globex", "$(id)", "{{7*7}}", "\\", "\uffff", "｡｡／globex",
)  # fmt: skip


@pytest.mark.parametrize("text", ESCAPES)
def test_row_11_no_filter_lets_a_foreign_row_through(acme, globex, text):
    for client in (acme.as_admin, acme.as_user):
        for params in ({"user": text}, {"after": text}, {"order": text}, {"limit": text}, {"shared": text}):
            reply = client.get("/v1/conversations", params=params)
            assert reply.status_code in (200, 400, 403, 404), reply.text
            assert_no_canary(reply.content, of=globex)
            if reply.status_code == 200:
                assert reply.json()["data"] == []
            else:
                assert_error(reply)


def test_row_11_an_administrator_asking_for_a_foreign_user_finds_nobody(acme, globex):
    assert acme.as_admin.get("/v1/conversations", params={"user": acme.user}).json()["data"]
    assert acme.as_admin.get("/v1/conversations", params={"user": globex.user}).json()["data"] == []
    assert_error(acme.as_user.get("/v1/conversations", params={"user": acme.other_user}), 403, "forbidden")


def test_no_list_of_one_tenant_holds_anything_of_the_other(acme: Planted, globex: Planted, server: RunningServer):
    for mine, foreign in ((acme, globex), (globex, acme)):
        for client in (mine.as_user, mine.as_other, mine.as_member, mine.as_admin):
            for path in (
                "/v1/conversations",
                "/v1/models",
                "/v1/me",
                "/v1/usage",
                "/v1/audit",
                "/v1/conversations?shared=true",
            ):
                assert_no_canary(client.get(path).content, of=foreign)
