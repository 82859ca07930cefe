"""The attack table between two workspaces of a tenant, a workspace and its tenant, a workspace of the same name in another
tenant, and a tenant whose id looks like the workspace's address."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import permutations
from typing import Any

import httpx
import pytest

from nagaya.tenancy.names import room_of
from support.planted import Planted, assert_error, assert_no_canary, said
from support.server import RunningServer

ROOMS = ("acme", "acme/legal", "acme/sales", "globex", "globex/legal", "acme-legal")
PAIRS = list(permutations(ROOMS, 2))
ABSENT = "0" * 32
WITHIN_S = 30.0
"""What revocation promises."""


@pytest.fixture(scope="module")
def rooms(own_server: RunningServer) -> dict[str, Planted]:
    return {room: Planted(own_server, room) for room in ROOMS}


class Mio:
    """A person of acme with one key of her own, who is a member of acme/legal and of no other workspace."""

    def __init__(self, server: RunningServer) -> None:
        self.user = "mio-of-acme"
        self.client = server.client(server.key("acme", self.user))
        self.admin = server.client(server.key("acme", "the-admin", "tenant_admin"))
        self._members = "/admin/tenants/acme/workspaces/legal/members"
        self._server = server

    def join(self, role: str = "user") -> None:
        self._server.operate("POST", self._members, {"user": self.user, "role": role})

    def leave(self) -> None:
        self._server.operate("DELETE", self._members, user=self.user)

    def get(self, path: str, workspace: str | None = None, **params: Any) -> httpx.Response:
        return self.request("GET", path, workspace, params=params)

    def request(self, method: str, path: str, workspace: str | None = None, **more: Any) -> httpx.Response:
        headers = {} if workspace is None else {"x-workspace-id": workspace}
        return self.client.request(method, path, headers=headers, **more)


@pytest.fixture
def mio(own_server: RunningServer, rooms: dict[str, Planted]) -> Iterator[Mio]:
    mio = Mio(own_server)
    mio.join()
    yield mio
    mio.leave()


def until(happens: Any) -> Any:
    """What ``happens()`` gives once it gives something, within what revocation promises."""
    deadline_s = time.monotonic() + WITHIN_S
    while not (found := happens()):
        assert time.monotonic() < deadline_s, "it did not happen within 30 s"
        time.sleep(0.05)
    return found


def refusals(tenant: Planted) -> list[str]:
    entries = tenant.as_admin.get("/v1/audit", params={"limit": 1000}).json()["data"]
    return [entry.get("reason", "") for entry in entries if entry.get("outcome") == "refused"]


# --- row 1 ----------------------------------------------------------------------------------------------------

NOT_MINE = (
    "sales", "acme/sales", "globex/legal", "nothing", "acme/nothing", "acme-legal", "LEGAL", "acme/Legal", "acme",
    "acme/", "/legal", "acme/legal/", "acme//legal", "l%65gal", "", "..", "*", room_of("acme/sales"),
    room_of("acme/legal"), f"acme/{room_of('acme/legal')}", "x" * 3000,
)  # fmt: skip


def test_row_01_a_header_that_names_a_workspace_of_others_or_of_nobody_answers_alike(mio, rooms):
    assert mio.get("/v1/me", "legal").json()["workspace"]["id"] == "acme/legal"
    assert mio.get("/v1/me", "acme/legal").json()["tenant"]["id"] == "acme"
    before = refusals(rooms["acme"]).count("workspace_refused")
    bodies = set()
    for name in NOT_MINE:
        for path in ("/v1/me", "/v1/conversations", f"/v1/conversations/{rooms['acme/sales'].conversation}"):
            reply = mio.get(path, name)
            assert_error(reply, 403, "workspace_refused")
            bodies.add(reply.content)
    assert len(bodies) == 1
    assert refusals(rooms["acme"]).count("workspace_refused") > before
    assert "workspace_refused" not in refusals(rooms["acme/sales"])


@pytest.mark.parametrize("room", ["acme/legal", "globex/legal"])
def test_row_01_what_is_bound_to_one_workspace_opens_no_other_and_not_the_tenant(own_server, rooms, room):
    tenant, _, name = room.partition("/")
    token = own_server.client(own_server.token(room, "ren", "tenant_admin"))
    for client in (rooms[room].as_admin, token):
        for fits in ({}, {"x-workspace-id": name}, {"x-workspace-id": room}, {"x-tenant-id": tenant}):
            shown = client.get("/v1/me", headers=fits).json()
            assert (shown["tenant"]["id"], shown["workspace"]["id"]) == (tenant, room)
        for other in ("acme/sales", "sales", tenant, "acme-legal"):
            assert_error(client.get("/v1/me", headers={"x-workspace-id": other}), 403, "workspace_refused")
        for other in ("acme-legal", "acme/sales", room_of(room), "acme" if tenant == "globex" else "globex"):
            assert_error(client.get("/v1/me", headers={"x-tenant-id": other}), 403, "tenant_mismatch")


def test_row_01_the_administrator_of_a_tenant_reads_nothing_of_its_workspaces(mio, rooms):
    for workspace in ("legal", "sales"):
        reply = mio.admin.get("/v1/conversations", headers={"x-workspace-id": workspace})
        assert_error(reply, 403, "workspace_refused")
        shown = mio.admin.get(f"/v1/workspaces/{workspace}")
        assert shown.json()["role"] is None
        assert_error(mio.admin.get(f"/v1/workspaces/{workspace}/members"), 403)
        assert_error(mio.admin.post(f"/v1/workspaces/{workspace}/members", json={"user": "the-admin"}), 403)
        for reply in (shown, mio.admin.get("/v1/workspaces", params={"all": "true"})):
            assert_no_canary(reply.content, of=rooms[f"acme/{workspace}"])


# --- rows 8 and 9 ---------------------------------------------------------------------------------------------


def object_paths(room: Planted) -> list[tuple[str, str, Any]]:
    conversation, item, response = room.conversation, room.items[0], room.response
    return [
        ("GET", f"/v1/conversations/{conversation}", None),
        ("POST", f"/v1/conversations/{conversation}", {"metadata": {"mine": "now"}}),
        ("DELETE", f"/v1/conversations/{conversation}", None),
        ("GET", f"/v1/conversations/{conversation}/items", None),
        ("POST", f"/v1/conversations/{conversation}/items", {"items": [said("hello")]}),
        ("GET", f"/v1/conversations/{conversation}/items/{item}", None),
        ("GET", f"/v1/responses/{response}", None),
        ("POST", f"/v1/responses/{response}/cancel", None),
        ("GET", f"/v1/responses/{response}/input_items", None),
        ("POST", "/v1/responses", {"input": "go on", "conversation": conversation}),
        ("POST", "/v1/responses", {"input": "go on", "previous_response_id": response}),
    ]


@pytest.mark.parametrize(("at", "of"), PAIRS)
def test_row_08_a_guessed_id_of_another_room_answers_like_an_absent_one(rooms, at, of):
    here, there = rooms[at], rooms[of]
    absent = {there.conversation: f"conv_{ABSENT}", there.items[0]: f"item_{ABSENT}", there.response: f"resp_{ABSENT}"}
    for method, path, body in object_paths(there):
        foreign = here.as_admin.request(method, path, json=body)
        other_path, other_body = path, json.dumps(body)
        for found, gone in absent.items():
            other_path, other_body = other_path.replace(found, gone), other_body.replace(found, gone)
        missing = here.as_admin.request(method, other_path, json=json.loads(other_body))
        assert_error(foreign, 404, "not_found")
        assert foreign.content == missing.content, path
        assert_no_canary(foreign.content, of=there)
    assert there.as_user.get(f"/v1/conversations/{there.conversation}").json()["metadata"]["topic"] == there.canary


@pytest.mark.parametrize(("at", "of"), PAIRS)
def test_row_09_a_cursor_of_another_room_is_refused_like_a_made_up_one(rooms, at, of):
    here, there = rooms[at], rooms[of]
    made_up = here.as_user.get("/v1/conversations", params={"after": here.cursor[:-8] + "AAAAAAAA"})
    foreign = here.as_user.get("/v1/conversations", params={"after": there.cursor})
    assert_error(foreign, 404)
    assert foreign.content == made_up.content


def test_rows_08_and_09_one_person_with_one_key_has_other_things_in_every_room(mio):
    own = mio.request("POST", "/v1/conversations", json={"title": "own"}).json()["id"]
    ours = mio.request("POST", "/v1/conversations", "legal", json={"title": "ours"}).json()["id"]
    for room, mine, other in ((None, own, ours), ("legal", ours, own)):
        assert mio.get(f"/v1/conversations/{mine}", room).status_code == 200
        assert_error(mio.get(f"/v1/conversations/{other}", room), 404, "not_found")
        assert_error(mio.request("DELETE", f"/v1/conversations/{other}", room), 404, "not_found")
        listed = mio.get("/v1/conversations", room).json()["data"]
        assert mine in {each["id"] for each in listed}
        assert other not in {each["id"] for each in listed}
    for _ in range(3):
        mio.request("POST", "/v1/conversations", "legal", json={})
    cursor = mio.get("/v1/conversations", "legal", limit=2).json()["next_cursor"]
    assert mio.get("/v1/conversations", "legal", after=cursor).status_code == 200
    assert_error(mio.get("/v1/conversations", after=cursor), 404)


def test_row_17_one_idempotency_key_in_two_rooms_is_two_requests(mio):
    made = []
    for room in (None, "legal"):
        headers = {"idempotency-key": "the-same-key-0001"} | ({} if room is None else {"x-workspace-id": room})
        replies = [mio.client.post("/v1/conversations", json={"title": "same"}, headers=headers) for _ in range(2)]
        made += [reply.json()["id"] for reply in replies]
    assert made[0] == made[1] != made[2] == made[3]


# --- rows 14 and 17 -------------------------------------------------------------------------------------------


def rows_of(server: RunningServer, room: str, conversation: str) -> list[tuple[int, bytes]]:
    with closing(sqlite3.connect(server.data / "tenants" / room_of(room) / "store.db")) as connection:
        return connection.execute(
            "SELECT r.id, r.body FROM records r JOIN partitions p ON p.number = r.partition"
            " WHERE p.name LIKE ? AND substr(r.sort, 1, 1) = ? ORDER BY r.id",
            (f"conversation/{conversation}%", b"i"),
        ).fetchall()


@pytest.mark.parametrize(("at", "of"), [pair for pair in PAIRS if "acme/legal" in pair])
def test_row_14_a_record_of_another_room_put_in_place_does_not_open(own_server, rooms, at, of):
    here, there = rooms[at], rooms[of]
    conversation = here.post("/v1/conversations", {"items": [said("one"), said("two")]})["id"]
    path = f"/v1/conversations/{conversation}/items"
    assert here.as_user.get(path).status_code == 200
    foreign = rows_of(own_server, of, there.conversation)[0][1]
    row = rows_of(own_server, at, conversation)[0][0]
    with closing(sqlite3.connect(own_server.data / "tenants" / room_of(at) / "store.db")) as connection, connection:
        connection.execute("UPDATE records SET body = ? WHERE id = ?", (foreign, row))
    reply = here.as_user.get(path)
    assert_error(reply, 500, "seal_broken")
    assert_no_canary(reply.content, of=there)


def test_row_17_rooms_lie_apart_and_are_sealed_under_keys_of_their_own(own_server, rooms):
    folders = {path.name for path in (own_server.data / "tenants").iterdir()}
    assert {room_of(room) for room in ROOMS} <= folders
    assert len({room_of(room) for room in ROOMS}) == len(ROOMS)
    assert {f"{room_of(room)}.key" for room in ROOMS} <= {
        path.name for path in (own_server.data / "keys" / "keys").iterdir()
    }
    for at, of in PAIRS:
        assert_no_canary(rooms[at].store_bytes(), of=rooms[of])


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("acme/legal", 409), ("acme/1egal", 409), ("acme/le-gal", 409), ("acme/LEGAL", 400), ("acme/le", 400),
        ("acme/legal/eu", 400), ("acme/", 400), ("/legal", 400), ("acme//legal", 400), ("acme/_legal", 400),
        ("nobody-here/legal", 404), ("acme/admin", 400), (f"{room_of('acme/legal')}/inner", 400),
    ],
)  # fmt: skip
def test_rows_17_and_25_an_address_that_is_taken_looks_like_one_or_is_none_is_refused(
    own_server, rooms, address, status
):
    reply = own_server.admin.post("/admin/tenants", json={"id": address, "name": "Taken"})
    assert_error(reply, status)
    assert rooms["acme/legal"].as_user.get("/v1/conversations").status_code == 200


def test_row_17_a_look_alike_in_another_tenant_is_nobodys_business(own_server, rooms):
    own_server.tenant("globex/1awyers")
    own_server.tenant("acme/1awyers")
    assert [each["id"] for each in own_server.operate("GET", "/admin/tenants/globex/workspaces")["data"]] == [
        "globex/1awyers", "globex/legal",
    ]  # fmt: skip


# --- row 20 ---------------------------------------------------------------------------------------------------


def test_row_20_requests_of_one_person_in_many_rooms_at_once_do_not_bleed(own_server, rooms):
    names = [f"team-{number:02}" for number in range(12)]
    key = own_server.key("globex", "ren")
    marks = {None: "in-the-tenant"} | {name: f"only-of-{name}" for name in names}
    for name in names:
        own_server.tenant(f"globex/{name}", admin="ren")
    client = own_server.client(key)

    def ask(turn: int) -> tuple[str | None, httpx.Response]:
        room = list(marks)[turn % len(marks)]
        headers = {} if room is None else {"x-workspace-id": room}
        if turn < len(marks):
            return room, client.post("/v1/conversations", json={"metadata": {"mark": marks[room]}}, headers=headers)
        return room, client.get("/v1/conversations", headers=headers)

    for turn in range(len(marks)):
        assert ask(turn)[1].status_code == 200
    with ThreadPoolExecutor(16) as threads:
        for room, reply in threads.map(ask, range(len(marks), 1_000)):
            assert reply.status_code == 200, reply.text
            assert {each["metadata"]["mark"] for each in reply.json()["data"]} == {marks[room]}


# --- row 7 ----------------------------------------------------------------------------------------------------


def test_row_07_who_is_a_member_no_more_is_refused_and_let_in_again_with_the_same_key(own_server, mio):
    bound = own_server.client(own_server.token("acme/legal", mio.user))
    key = own_server.client(own_server.key("acme/legal", mio.user))
    for client in (bound, key):
        assert client.get("/v1/me").status_code == 200
    mio.leave()
    until(lambda: mio.get("/v1/me", "legal").status_code == 403)
    assert_error(mio.get("/v1/me", "legal"), 403, "workspace_refused")
    for client in (bound, key):
        until(lambda client=client: client.get("/v1/me").status_code == 401)
    assert mio.get("/v1/me").status_code == 200
    mio.join("member")
    until(lambda: mio.get("/v1/me", "legal").status_code == 200)
    assert mio.get("/v1/me", "legal").json()["role"] == "member"
    assert mio.get("/v1/me").json()["role"] == "user"
    assert bound.get("/v1/me").status_code == 401


@pytest.mark.parametrize("act", ["leave", "suspend the workspace", "suspend the tenant", "revoke the tenants key"])
def test_rows_07_and_19_an_open_stream_of_a_member_closes(own_server, model_server, act):
    tenant = f"streams-{act.replace(' ', '-')}"
    own_server.tenant(tenant)
    own_server.tenant(f"{tenant}/legal", admin="mio", models=[model_server.model("slow")])
    members = f"/admin/tenants/{tenant}/workspaces/legal/members"
    own_server.operate("POST", members, {"user": "ren"})
    key = own_server.key(tenant, "ren")
    headers = {"authorization": f"Bearer {key}", "x-workspace-id": "legal"}
    body = {"input": "Count.", "stream": True}
    text, since_s = "", None
    with (
        httpx.Client(base_url=own_server.url, timeout=60) as client,
        client.stream("POST", "/v1/responses", json=body, headers=headers) as reply,
    ):
        for piece in reply.iter_text():
            text += piece
            if since_s is None and "word3" in text:
                since_s = time.monotonic()
                if act == "leave":
                    own_server.operate("DELETE", members, user="ren")
                elif act == "suspend the workspace":
                    own_server.operate("POST", f"/admin/tenants/{tenant}/workspaces/legal/suspend")
                elif act == "suspend the tenant":
                    own_server.operate("POST", f"/admin/tenants/{tenant}/suspend")
                else:
                    own_server.operate("POST", f"/admin/keys/{tenant}/revoke")
    assert since_s is not None, text
    assert time.monotonic() - since_s < WITHIN_S
    assert "session_closed" in text or "key_disabled" in text, text[-300:]


def test_row_07_revoking_somebody_in_the_tenant_refuses_him_in_its_workspaces(own_server, rooms):
    key = own_server.client(own_server.key("acme/legal", "leaver"))
    token = own_server.client(own_server.token("acme/sales", "leaver"))
    stays = own_server.client(own_server.token("globex/legal", "leaver"))
    for client in (key, token, stays):
        assert client.get("/v1/me").status_code == 200
    own_server.operate("POST", "/admin/tenants/acme/revocations", {"user": "leaver"})
    for client in (key, token):
        until(lambda client=client: client.get("/v1/me").status_code == 401)
    assert stays.get("/v1/me").status_code == 200


def test_row_07_a_suspended_or_archived_workspace_is_shut_and_its_tenant_is_not(own_server, rooms, mio):
    path = "/admin/tenants/acme/workspaces/legal"
    for act, code in ((f"{path}/suspend", "tenant_suspended"), ("/v1/workspaces/legal/archive", "tenant_not_open")):
        client = own_server.admin if act.startswith("/admin") else mio.admin
        assert client.post(act).is_success
        for reply in (mio.get("/v1/me", "legal"), rooms["acme/legal"].as_user.get("/v1/me")):
            assert_error(reply, 403, code)
        assert mio.get("/v1/me").status_code == 200
        assert rooms["acme/sales"].as_user.get("/v1/me").status_code == 200
        if code == "tenant_suspended":
            assert_error(mio.admin.post("/v1/workspaces/legal/reopen"), 400)
            own_server.operate("POST", f"{path}/resume")
        else:
            assert mio.admin.post("/v1/workspaces/legal/reopen").is_success
        assert mio.get("/v1/me", "legal").status_code == 200


def test_row_07_a_suspended_tenant_shuts_its_workspaces(own_server, rooms, mio):
    own_server.operate("POST", "/admin/tenants/acme/suspend")
    for reply in (mio.get("/v1/me", "legal"), rooms["acme/legal"].as_user.get("/v1/me")):
        assert_error(reply, 403, "tenant_suspended")
    assert rooms["globex/legal"].as_user.get("/v1/me").status_code == 200
    own_server.operate("POST", "/admin/tenants/acme/resume")
    assert mio.get("/v1/me", "legal").status_code == 200


def test_row_07_the_key_of_a_workspace_is_its_own_and_ends_with_its_tenants(own_server, rooms):
    def reads(room: str) -> bool:
        there = rooms[room]
        reply = there.as_user.get(f"/v1/conversations/{there.conversation}/items")
        if reply.status_code == 401:
            assert_error(reply, 401, "session_closed")  # it had begun when the revocation came
        elif reply.status_code != 200:
            assert_error(reply, 403, "key_disabled")
        return reply.status_code == 200

    assert all(reads(room) for room in ROOMS)
    own_server.operate("POST", "/admin/keys/acme/workspaces/legal/revoke")
    until(lambda: not reads("acme/legal"))
    assert [room for room in ROOMS if not reads(room)] == ["acme/legal"]
    own_server.operate("POST", "/admin/keys/acme/workspaces/legal/restore")
    until(lambda: reads("acme/legal"))
    own_server.operate("POST", "/admin/keys/acme/revoke")
    until(lambda: not any(reads(room) for room in ("acme", "acme/legal", "acme/sales")))
    assert all(reads(room) for room in ("globex", "globex/legal", "acme-legal"))
    own_server.operate("POST", "/admin/keys/acme/restore")
    until(lambda: all(reads(room) for room in ROOMS))


def test_rotation_of_one_key_leaves_the_others(own_server, rooms):
    before = {room: versions(own_server, room) for room in ROOMS}
    own_server.operate("POST", "/admin/keys/acme/workspaces/sales/rotate")
    after = {room: versions(own_server, room) for room in ROOMS}
    assert after == before | {"acme/sales": before["acme/sales"] + 1}
    for room in ROOMS:
        assert rooms[room].as_user.get(f"/v1/conversations/{rooms[room].conversation}").status_code == 200


def versions(server: RunningServer, room: str) -> int:
    tenant, slash, name = room.partition("/")
    path = f"/admin/keys/{tenant}" + (f"/workspaces/{name}" if slash else "")
    return len(server.operate("GET", path)["versions"])


# --- rows 24 and 26, and the end ------------------------------------------------------------------------------


def test_rows_24_and_28_no_words_of_a_room_stand_in_logs_metrics_or_lists(own_server, rooms):
    shown = own_server.admin.get("/metrics").text + own_server.admin.get("/admin/tenants/acme/workspaces").text
    shown += own_server.admin.get("/admin/tenants").text + own_server.log()
    for room in ROOMS:
        assert_no_canary(shown, of=rooms[room], content_only=True)


def test_use_of_a_workspace_counts_for_it_and_for_its_tenant(own_server, rooms):
    def usage(path: str) -> dict[str, int]:
        return own_server.operate("GET", f"/admin/tenants/{path}/usage")

    before = usage("acme"), usage("acme/workspaces/legal"), usage("acme/workspaces/sales")
    for _ in range(5):
        assert rooms["acme/legal"].as_user.get("/v1/me").status_code == 200
    after = usage("acme"), usage("acme/workspaces/legal"), usage("acme/workspaces/sales")
    assert [new["api_calls"] - old["api_calls"] for old, new in zip(before, after, strict=True)] == [5, 5, 0]
    assert after[0]["stored_bytes"] > after[1]["stored_bytes"] + after[2]["stored_bytes"]


def test_a_deleted_workspace_and_a_deleted_tenant_leave_nothing_that_opens(own_server):
    own_server.tenant("initech")
    for name in ("legal", "sales"):
        own_server.tenant(f"initech/{name}", admin="bill")
    person = own_server.client(own_server.key("initech", "bill"))
    bound = {name: own_server.client(own_server.key(f"initech/{name}")) for name in ("legal", "sales")}
    own_server.operate("DELETE", "/admin/tenants/initech/workspaces/legal")
    assert_error(person.get("/v1/me", headers={"x-workspace-id": "legal"}), 403, "workspace_refused")
    assert_error(bound["legal"].get("/v1/me"), 401)
    assert person.get("/v1/me", headers={"x-workspace-id": "sales"}).status_code == 200
    assert_error(own_server.admin.post("/admin/tenants", json={"id": "initech/legal", "name": "Again"}), 409)
    own_server.operate("DELETE", "/admin/tenants/initech")
    assert_error(bound["sales"].get("/v1/me"), 401)
    assert_error(own_server.admin.get("/admin/tenants/initech/workspaces/sales"), 404)
    folders = {path.name for path in (own_server.data / "tenants").iterdir()}
    assert not {room_of("initech/legal"), room_of("initech/sales"), "initech"} & folders
