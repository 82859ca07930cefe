"""The attack table, rows 14 to 17: somebody who can write a tenant's files, and names that look alike."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

import httpx
import pytest

from support.planted import Planted, assert_error, assert_no_canary, said
from support.server import RunningServer

Rows = list[tuple[int, str, bytes, int, bytes]]
HEADER_BYTES, NONCE_BYTES, COMMITMENT_BYTES = 7, 12, 28


class Store:
    """A tenant's store file in the hands of an attacker who knows its format."""

    def __init__(self, server: RunningServer, tenant_id: str) -> None:
        self.path = server.data / "tenants" / tenant_id / "store.db"

    def rows(self, prefix: str) -> Rows:
        """(row, partition, sort, revision, sealed body) of the partitions that begin so, in the order written."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(
                "SELECT r.id, p.name, r.sort, r.revision, r.body FROM records r JOIN partitions p"
                " ON p.number = r.partition WHERE substr(p.name, 1, ?) = ? ORDER BY r.id",
                (len(prefix), prefix),
            ).fetchall()

    def replace(self, row: int, body: bytes, revision: int | None = None) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE records SET body = ? WHERE id = ?", (body, row))
            if revision is not None:
                connection.execute("UPDATE records SET revision = ? WHERE id = ?", (revision, row))


class Victim:
    """A tenant with one conversation of three items, each with its row."""

    def __init__(self, server: RunningServer, tenant_id: str) -> None:
        server.tenant(tenant_id)
        self.id = tenant_id
        self.store = Store(server, tenant_id)
        self.client = server.client(server.key(tenant_id))
        self.conversation = self.client.post("/v1/conversations", json={}).json()["id"]
        path = f"/v1/conversations/{self.conversation}/items"
        self.texts = [f"{tenant_id} item {number} ".ljust(40, "x") for number in range(3)]
        self.items = [
            self.client.post(path, json={"items": [said(text)]}).json()["data"][0]["id"] for text in self.texts
        ]
        rows = [row for row in self.store.rows(f"conversation/{self.conversation}") if row[2][:1] == b"i"]
        assert len(rows) == 3
        self.rows = rows

    def item(self, number: int) -> httpx.Response:
        return self.client.get(f"/v1/conversations/{self.conversation}/items/{self.items[number]}")

    def page(self) -> httpx.Response:
        return self.client.get(f"/v1/conversations/{self.conversation}/items")


@pytest.fixture(scope="module")
def victims(own_server: RunningServer) -> tuple[Victim, Victim]:
    return Victim(own_server, "left-hand"), Victim(own_server, "right-hand")


@pytest.fixture
def attacked(victims: tuple[Victim, Victim]) -> Iterator[Callable[[bytes, int | None], None]]:
    """Puts bytes in the place of the first victim's second item, after it was read once; put right at the end."""
    victim = victims[0]
    row, _, _, revision, body = victim.rows[1]
    assert victim.item(1).status_code == 200
    assert victim.page().status_code == 200

    def attack(bad: bytes, bad_revision: int | None = None) -> None:
        victim.store.replace(row, bad, bad_revision)
        for reply in (victim.item(1), victim.page()):
            error = assert_error(reply, 500, "seal_broken")
            assert victim.texts[1] not in reply.text
            assert victims[1].texts[1] not in reply.text
            assert "backup" in error["message"]
        # Its neighbours are as they were, and so is everybody else.
        assert victim.item(0).status_code == victim.item(2).status_code == 200
        assert victims[1].page().status_code == 200

    yield attack
    victim.store.replace(row, body, revision)
    assert victim.item(1).status_code == 200


def test_row_14_a_ciphertext_of_another_tenant_put_in_place_does_not_open(attacked, victims):
    attacked(victims[1].rows[1][4], None)


def test_row_14_a_ciphertext_of_another_record_put_in_place_does_not_open(attacked, victims):
    attacked(victims[0].rows[0][4], None)


def test_row_14_a_ciphertext_of_another_partition_put_in_place_does_not_open(attacked, victims):
    head = next(row for row in victims[0].store.rows(f"conversation/{victims[0].conversation}") if row[2] == b"h")
    attacked(head[4], None)


def test_row_14_a_ciphertext_at_another_revision_does_not_open(attacked, victims):
    attacked(victims[0].rows[1][4], 2)


def test_row_14_an_older_revision_put_back_with_its_number_shows_the_old_and_never_anything_foreign(victims):
    # A store that can be rolled back as a whole is restored, not attacked: sealing promises origin, not freshness.
    victim = victims[0]
    path = f"/v1/conversations/{victim.conversation}"
    head = next(row for row in victim.store.rows(f"conversation/{victim.conversation}") if row[2] == b"h")
    assert victim.client.post(path, json={"metadata": {"a": "new"}}).status_code == 200
    victim.store.replace(head[0], head[4], head[3])
    assert victim.client.get(path).json()["metadata"] == {}


def test_row_15_a_plaintext_row_does_not_open(attacked, victims):
    attacked(b'{"type":"message","role":"user","content":[]}\n{"at":1,"by":"mio"}', None)


@pytest.mark.parametrize("text", [b"", b"Ng", b"Ng\x01\x00\x00\x00\x01", b"\x00" * 200])
def test_row_15_a_row_that_is_no_envelope_does_not_open(attacked, victims, text):
    attacked(text, None)


@pytest.mark.parametrize(("at", "value"), [(0, 0x6E), (2, 0), (2, 2), (2, 255), (6, 2), (6, 0), (3, 255)])
def test_row_15_a_downgraded_suite_or_another_key_version_does_not_open(attacked, victims, at, value):
    body = bytearray(victims[0].rows[1][4])
    body[at] = value
    attacked(bytes(body), None)


def test_row_15_no_flipped_byte_anywhere_opens(attacked, victims):
    body = victims[0].rows[1][4]
    for at in range(0, len(body), 7):
        attacked(body[:at] + bytes([body[at] ^ 0x40]) + body[at + 1 :], None)
    attacked(body[:-1], None)
    attacked(body + b"\x00", None)


def test_row_16_a_commitment_to_another_key_is_refused(attacked, victims):
    own, other = victims[0].rows[1][4], victims[1].rows[1][4]
    start, end = HEADER_BYTES + NONCE_BYTES, HEADER_BYTES + NONCE_BYTES + COMMITMENT_BYTES
    attacked(own[:start] + other[start:end] + own[end:], None)
    attacked(other[:end] + own[end:], None)


def test_row_14_a_whole_file_of_another_tenant_opens_nothing(own_server: RunningServer, victims):
    stolen = Victim(own_server, "copied-from")
    target = Victim(own_server, "copied-to")
    with closing(sqlite3.connect(stolen.store.path)) as connection:
        partitions = connection.execute("SELECT * FROM partitions").fetchall()
        records = connection.execute("SELECT * FROM records").fetchall()
    with closing(sqlite3.connect(target.store.path)) as connection, connection:
        connection.execute("DELETE FROM records")
        connection.execute("DELETE FROM partitions")
        connection.executemany("INSERT INTO partitions VALUES (?, ?)", partitions)
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", records)
    reply = target.client.get(f"/v1/conversations/{stolen.conversation}/items")
    assert_error(reply, 500, "seal_broken")
    assert stolen.texts[0] not in reply.text


# --- row 17 ---

ALIKE = [
    "acme-corp", "acme1", "acme-x", "acmes",
]  # fmt: skip
REFUSED = [
    "ACME",
    "acme:x",
    "acme/x",
    "acme.x",
    "ac-me",
    "acrne",
    "асме",
    "acme ",
    "acme\x00",
    "ａｃｍｅ",
    "a-cme",
    "acme-",
    "../acme",
]


@pytest.mark.parametrize("tenant_id", REFUSED)
def test_row_17_an_id_that_looks_like_another_or_has_a_separator_is_refused(server: RunningServer, acme, tenant_id):
    reply = server.admin.post("/admin/tenants", json={"id": tenant_id, "name": "x"})
    error = assert_error(reply)
    assert error["code"] in ("tenant_id_invalid", "tenant_exists", "tenant_id_look_alike")


def test_row_17_tenants_whose_ids_share_a_beginning_share_nothing(server: RunningServer, acme: Planted):
    for other in ALIKE:
        server.tenant(other)
        # The same user name, the same idempotency key, the same body.
        for path, body in (("/v1/conversations", {"title": "same"}), ("/v1/responses", {"input": "same"})):
            headers = {"idempotency-key": f"one-key {path}"}
            client = server.client(server.key(other, acme.user))
            mine = acme.as_user.post(path, json=body, headers=headers)
            theirs = client.post(path, json=body, headers=headers)
            assert mine.status_code == theirs.status_code == 200
            assert mine.json()["id"] != theirs.json()["id"]
        assert len(client.get("/v1/conversations").json()["data"]) == 1
        assert_error(client.get(f"/v1/conversations/{acme.conversation}"), 404)
        assert_no_canary(client.get("/v1/conversations").content.replace(acme.user.encode(), b""), of=acme)


def test_row_17_idempotency_keys_of_users_whose_names_join_alike_do_not_collide(server: RunningServer):
    server.tenant("joiners")
    ids = set()
    for user, key in (("u", "1:xk"), ("u1", ":xk"), ("u1:x", "k"), ("1:u", "xk"), ("u:", "xk")):
        client = server.client(server.key("joiners", user))
        reply = client.post("/v1/conversations", json={}, headers={"idempotency-key": key})
        assert reply.status_code == 200
        ids.add(reply.json()["id"])
    assert len(ids) == 5


def test_row_17_a_user_named_like_another_owns_nothing_of_it(server: RunningServer):
    server.tenant("namesakes")
    names = ["mio", "MIO", "mio ", "mіo", "mio\u200b", "mio/x", "mio:x", "ｍｉｏ", "mi\u006f\u0301", "mi\u00f3"]
    clients = {}
    for name in names:
        reply = server.admin.post("/admin/api-keys", json={"tenant": "namesakes", "user": name})
        if reply.status_code == 201:
            clients[name] = server.client(reply.json()["api_key"])
        else:
            assert_error(reply)
    assert len(clients) > 5
    made = {name: client.post("/v1/conversations", json={}).json()["id"] for name, client in clients.items()}
    for (name, client), (other, conversation) in product(clients.items(), made.items()):
        assert client.get(f"/v1/conversations/{conversation}").status_code == (200 if name == other else 404)
        assert [c["id"] for c in client.get("/v1/conversations").json()["data"]] == [made[name]]


def test_the_tenants_folders_are_named_by_id_and_nothing_else(server: RunningServer, acme: Planted):
    names = {path.name for path in Path(server.data / "tenants").iterdir()}
    assert {"acme", "_platform"} <= names
    assert all(name.replace("-", "").removeprefix("_").isalnum() and name.isascii() for name in names)
