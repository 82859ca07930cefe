"""``nagaya serve`` as a process: it starts soon, refuses to start badly, drains, and several workers agree."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from acceptance.processes import PATIENCE_S, Server, SlowModel, ask, furnish, nagaya, serving, slow_model
from parts.environments import absent

BARE_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""Root without the power to write where the mode forbids it."""


class Folder(NamedTuple):
    path: Path
    keys: dict[str, str]


@pytest.fixture(scope="module")
def model() -> Iterator[SlowModel]:
    with slow_model() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: SlowModel) -> Folder:
    """A data folder with a tenant whose model takes three seconds to answer."""
    data = tmp_path_factory.mktemp("serve") / "data"
    url = f"openai+http://127.0.0.1:{model.port}/v1#keyless"
    return Folder(data, furnish(data, "acme", models=url, allowed="127.0.0.1"))


@pytest.fixture(scope="module")
def one(folder: Folder) -> Iterator[Server]:
    with serving(folder.path, NAGAYA_ALLOWED_HOSTS="127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def two(folder: Folder) -> Iterator[Server]:
    """Two workers on the same folder as the other server."""
    with serving(folder.path, "--workers", "2", NAGAYA_ALLOWED_HOSTS="127.0.0.1", NAGAYA_LANGUAGE="ja") as running:
        yield running


# --- start ---


def test_it_is_ready_and_small_while_idle(one: Server) -> None:
    # The figures themselves (2 s, 120 MB) are measured by the benchmarks; the fixture waits for it to be ready at all.
    status = Path(f"/proc/{one.process.pid}/status").read_text().splitlines()
    assert next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) < 150 * 1024
    assert httpx.get(f"{one.url}/readyz").status_code == 200


def test_every_line_of_its_log_is_structured(one: Server) -> None:
    assert one.lines
    assert all("action" in json.loads(line) for line in one.lines)


def test_its_answers_do_not_name_the_program(one: Server) -> None:
    assert "server" not in httpx.get(f"{one.url}/healthz").headers


# --- refusing to start ---


def refused(data: Path, *arguments: str, through: Sequence[str] = (), **env: str) -> str:
    result = nagaya("serve", "--data", str(data), "--port", "0", *arguments, through=through, **env)
    assert result.code == 1, result.err
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    return result.err


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    furnish(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_refuses_to_start_with_a_root_key_that_others_can_read(fresh: Path, workers: str) -> None:
    root = fresh / "keys" / "root.key"
    assert stat.S_IMODE(root.stat().st_mode) == 0o600
    root.chmod(0o644)
    assert "chmod 600" in refused(fresh, "--workers", workers)


def test_it_refuses_a_registry_that_a_newer_program_wrote(fresh: Path) -> None:
    registry = sqlite3.connect(fresh / "registry.db")
    with registry:
        registry.execute("UPDATE nagaya_registry SET version = 9999")
    registry.close()
    assert "newer" in refused(fresh)


def test_it_refuses_a_port_that_is_taken(folder: Folder, one: Server) -> None:
    port = one.url.rpartition(":")[2]
    assert f"127.0.0.1:{port}" in refused(folder.path, "--port", port)


def test_it_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "data folder" in refused(tmp_path / "file" / "data")


def test_it_refuses_a_read_only_folder(fresh: Path) -> None:
    through = BARE_ROOT if os.geteuid() == 0 else []
    if through and shutil.which(through[0]) is None:
        absent("setpriv", "root writes everywhere without it")
    paths = [fresh, *fresh.rglob("*")]
    try:
        for path in paths:
            path.chmod(0o500 if path.is_dir() else 0o400)
        assert "write" in refused(fresh, through=through)
    finally:
        for path in paths:
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_it_refuses_in_the_language_of_the_locale(fresh: Path) -> None:
    (fresh / "keys" / "root.key").unlink()
    assert "ルート鍵" in refused(fresh, LANG="ja_JP.UTF-8")


# --- several workers ---


def codes(server: Server, key: str, path: str) -> set[int]:
    return {ask(server.url, key, "GET", path).status_code for _ in range(10)}


def test_two_workers_both_answer_and_both_see_a_change(folder: Folder, two: Server) -> None:
    key = folder.keys["acme"]
    made = ask(two.url, key, "POST", "/v1/conversations", {"metadata": {"title": "Roof"}})
    conversation = f"/v1/conversations/{made.json()['id']}"
    assert codes(two, key, conversation) == {200}
    page = httpx.get(f"{two.url}/metrics").text
    assert 'nagaya_tenant_requests_total{tenant="acme"} 11.0' in page
    assert len(list((folder.path / "metrics").glob("counter_*.db"))) == 2
    for act, wanted in (("suspend", 403), ("resume", 200)):
        assert nagaya("--data", str(folder.path), "tenant", act, "acme", NAGAYA_ALLOWED_HOSTS="127.0.0.1").code == 0
        ends_s = time.monotonic() + PATIENCE_S
        while (seen := codes(two, key, conversation)) != {wanted}:
            assert time.monotonic() < ends_s, seen


def test_the_settings_reach_every_worker(two: Server) -> None:
    texts = {httpx.get(f"{two.url}/v1/models").json()["error"]["message"] for _ in range(6)}
    assert all("トークン" in text for text in texts)


def test_a_worker_that_dies_is_replaced(folder: Folder, two: Server) -> None:
    pid = two.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], 9)
    time.sleep(0.6)
    assert codes(two, folder.keys["acme"], "/v1/models") == {200}


# --- draining; each ends its server, so these come last ---


def slow_answer(url: str, key: str, events: list[str], failures: list[Exception]) -> threading.Thread:
    def read() -> None:
        body = {"model": "keyless", "input": "Say ten words", "stream": True}
        headers = {"Authorization": f"Bearer {key}"}
        try:
            with httpx.stream("POST", f"{url}/v1/responses", json=body, headers=headers, timeout=30) as reply:
                events.extend(line for line in reply.iter_lines() if line)
        except Exception as failed:
            failures.append(failed)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", ["one", "two"])
def test_on_sigterm_it_is_not_ready_an_open_stream_gets_to_its_end_and_it_exits_with_0(
    folder: Folder, workers: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(workers)
    events: list[str] = []
    failures: list[Exception] = []
    reading = slow_answer(server.url, folder.keys["acme"], events, failures)
    while not any("word0" in event for event in events) and reading.is_alive():
        time.sleep(0.02)
    seen = set()
    with httpx.Client(headers={"Connection": "close"}, timeout=30) as asking:
        server.process.terminate()
        server.wait_for("server.draining", times=2 if workers == "two" else 1)
        # Each new connection may reach another worker; within the second in which they still listen, none is ready.
        for _ in range(5):
            try:
                seen.add(asking.get(f"{server.url}/readyz").status_code)
            except httpx.HTTPError:
                break
    assert seen == {503}
    reading.join()
    assert server.finish() == 0
    assert not failures
    assert any("word9" in event for event in events)
    assert "event: response.completed" in events
    assert all("action" in json.loads(line) for line in server.lines), server.lines


async def test_a_start_that_fails_as_nobody_expected_is_still_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nagaya.server.app import Application
    from nagaya.settings import Settings

    async def fail() -> None:
        raise RuntimeError("of somebody's package")

    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    application = Application(Settings(data=str(tmp_path)))
    monkeypatch.setattr(application.nagaya, "_start", fail)
    await application({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert application.problem is not None
    assert application.problem.code == "command_failed"
    assert "RuntimeError" in str(application.problem)
