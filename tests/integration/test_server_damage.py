"""One tenant's store is damaged, gone, foreign, full or read-only: that tenant is told so, the others go on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.planted import assert_error, said
from support.server import RunningServer, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with running(tmp_path) as started:
        yield started


class Home:
    """A tenant with a conversation."""

    def __init__(self, server: RunningServer, tenant_id: str) -> None:
        server.tenant(tenant_id)
        self.server = server
        self.key = server.key(tenant_id)
        self.path = server.data / "tenants" / tenant_id / "store.db"
        with self.client() as client:
            made = client.post("/v1/conversations", json={"items": [said(f"{tenant_id} says")] * 20})
            self.conversation = made.json()["id"]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.server.url, headers={"authorization": f"Bearer {self.key}"}, timeout=30)

    def read(self) -> httpx.Response:
        with self.client() as client:
            return client.get(f"/v1/conversations/{self.conversation}/items")

    def append(self, text: str = "more") -> httpx.Response:
        with self.client() as client:
            return client.post(f"/v1/conversations/{self.conversation}/items", json={"items": [said(text)]})


def restarted(server: RunningServer) -> None:
    assert server.stop() in (0, -15)
    server.start()


def test_a_damaged_store_is_told_to_its_tenant_alone(server: RunningServer):
    hurt, well = Home(server, "hurt-one"), Home(server, "well-one")
    server.stop()
    data = bytearray(hurt.path.read_bytes())
    data[100:] = os.urandom(len(data) - 100)
    hurt.path.write_bytes(data)
    server.start()
    for reply in (hurt.read(), hurt.append()):
        error = assert_error(reply, 503, "store_damaged")
        assert "backup" in error["message"]
        assert str(server.data) not in reply.text
    assert well.read().status_code == well.append().status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 300, b"SQLite format 3\x00" + b"\x00" * 4080])
def test_a_file_that_is_no_store_is_told_to_its_tenant_alone(server: RunningServer, content: bytes):
    hurt, well = Home(server, "hurt-two"), Home(server, "well-two")
    server.stop()
    for companion in hurt.path.parent.glob("store.db-*"):
        companion.unlink()
    hurt.path.write_bytes(content)
    server.start()
    assert_error(hurt.read(), 503, "store_damaged")
    assert_error(hurt.append(), 503, "store_damaged")
    assert well.append().status_code == 200


def test_a_store_that_is_gone_is_not_made_anew(server: RunningServer):
    hurt, well = Home(server, "gone-one"), Home(server, "here-one")
    server.stop()
    shutil.rmtree(hurt.path.parent)
    server.start()
    for reply in (hurt.read(), hurt.append()):
        assert reply.status_code in (500, 503)
        assert_error(reply, reply.status_code)
    # An empty store in its place would look like a tenant that never said anything.
    assert not hurt.path.exists()
    assert well.append().status_code == 200


def test_a_store_that_disappears_while_the_server_runs_does_not_take_writes_silently(server: RunningServer):
    hurt, well = Home(server, "gone-two"), Home(server, "here-two")
    assert hurt.append().status_code == 200
    shutil.rmtree(hurt.path.parent)
    replies = [hurt.append(f"lost {number}") for number in range(3)]
    for reply in replies:
        assert reply.status_code in (500, 503), reply.text
        assert_error(reply, reply.status_code)
    assert well.append().status_code == 200


def test_another_tenants_file_in_its_place_shows_nothing_of_it(server: RunningServer):
    hurt, other = Home(server, "swap-one"), Home(server, "swap-two")
    server.stop()
    shutil.copy(other.path, hurt.path)
    for companion in hurt.path.parent.glob("store.db-*"):
        companion.unlink()
    server.start()
    with hurt.client() as client:
        for path in (
            f"/v1/conversations/{hurt.conversation}",
            f"/v1/conversations/{other.conversation}/items",
            "/v1/conversations",
        ):
            reply = client.get(path)
            assert "swap-two says" not in reply.text
            assert reply.status_code in (404, 500), reply.text
            assert_error(reply, reply.status_code)
        reply = client.get(f"/v1/conversations/{other.conversation}/items")
        assert_error(reply, 500, "seal_broken")
    assert other.append().status_code == 200


def test_a_full_disk_refuses_writes_loses_nothing_and_lets_others_read(tmp_path: Path):
    # Files of this process may not grow over the limit: what a full disk does to a write.
    with running(tmp_path, TEST_FILE_SIZE_LIMIT=str(400_000)) as server:
        home, other = Home(server, "full-one"), Home(server, "full-two")
        kept = 20
        for _ in range(200):
            reply = home.append("x" * 20_000)
            if reply.status_code != 200:
                break
            kept += 1
        error = assert_error(reply, 507, "store_full")
        assert "Free space" in error["message"]
        assert kept > 22
        assert home.read().status_code == 200
        assert other.append().status_code == 200
    server.environment.pop("TEST_FILE_SIZE_LIMIT")
    server.start()
    try:
        with home.client() as client:
            found = 0
            after: dict[str, str] = {}
            while True:
                page = client.get(f"/v1/conversations/{home.conversation}/items", params={"limit": 100, **after}).json()
                found += len(page["data"])
                if not page["has_more"]:
                    break
                after = {"after": page["last_id"]}
        assert found == kept
        assert home.append().status_code == 200
    finally:
        server.close()


def test_a_read_only_folder_is_said_to_be_one(tmp_path: Path):
    with running(tmp_path, TEST_WITHOUT_OVERRIDE="1") as server:
        home, well = Home(server, "ro-one"), Home(server, "rw-one")
        restarted(server)
        home.path.chmod(0o400)
        home.path.parent.chmod(0o500)
        try:
            assert_error(home.append(), 503, "store_read_only")
            assert well.append().status_code == 200
        finally:
            home.path.parent.chmod(0o700)
            home.path.chmod(0o600)
        assert home.append().status_code == 200


def test_a_store_written_by_a_newer_program_is_left_alone(server: RunningServer):
    newer, well = Home(server, "newer-one"), Home(server, "older-one")
    server.stop()
    import sqlite3

    connection = sqlite3.connect(newer.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    server.start()
    before = newer.path.read_bytes()
    error = assert_error(newer.append(), 503, "store_newer")
    assert "99" in error["message"]
    assert newer.path.read_bytes() == before
    assert well.append().status_code == 200
