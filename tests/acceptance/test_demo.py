"""``nagaya demo`` as a process: the whole scenario, again on the same folder, in Japanese, and beside another server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from acceptance.processes import PATIENCE_S, PROGRAM, Server, ask, environment, free_port, nagaya
from nagaya.cli import demo_scenario
from nagaya.cli.demo_scenario import ACME, GLOBEX, Attempt, Outcome, Place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "data"


def test_it_ends_well_on_a_fresh_folder_and_every_attempt_is_refused(data: Path) -> None:
    done = nagaya("demo", "--once", "--json", "--data", str(data), "--port", "0")
    assert done.code == 0, done.err
    assert done.err == ""
    told = done.document
    assert [tenant["id"] for tenant in told["tenants"]] == ["acme", "globex"]
    assert "Kato Roofing" in told["tenants"][0]["answer"]
    assert "田中" in told["tenants"][1]["answer"]
    assert all(attempt["refused"] for attempt in told["attempts"])
    assert [(attempt["status"], attempt["code"]) for attempt in told["attempts"]] == [
        (404, "not_found"),
        (404, "not_found"),
        (404, "not_found"),
        (403, "tenant_mismatch"),
        (404, "not_found"),
        (500, "seal_broken"),
    ]
    assert told["isolated"] is True


def test_run_again_it_finds_its_tenants_ends_the_old_keys_and_takes_the_next_port(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = nagaya("demo", "--once", "--data", str(data), "--port", str(port), "--lang", "ja")
    assert done.code == 0, done.err
    assert f"ポート {port} は使用中" in done.err
    for text in ("は既にあります", "Kato Roofing", "田中さん", "seal_broken", "6 件中 6 件", "/v1", "nk_"):
        assert text in done.out
    listed = nagaya("api-key", "list", "--tenant", "acme", "--data", str(data), "--json").document["data"]
    assert [key["revoked_at_us"] is None for key in listed].count(True) == 1


def test_it_stays_up_until_ctrl_c_with_keys_that_work(data: Path) -> None:
    port = free_port()
    command = [*PROGRAM, "demo", "--data", str(data), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        try:
            Server(process).wait_for("Ctrl-C")
            assert process.stdout is not None
            shown = os.read(process.stdout.fileno(), 65536).decode()
            keys = re.findall(r"nk_\w+", shown)
            assert f"http://127.0.0.1:{port}/v1" in shown
            for tenant, key in zip(("acme", "globex"), keys, strict=True):
                assert ask(f"http://127.0.0.1:{port}", key, "GET", "/v1/me").json()["tenant"]["id"] == tenant
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_it_refuses_a_root_key_that_others_can_read(data: Path) -> None:
    root = data / "keys" / "root.key"
    root.chmod(0o644)
    try:
        done = nagaya("demo", "--once", "--data", str(data), "--port", "0", "--json")
    finally:
        root.chmod(0o600)
    assert done.code == 1
    assert done.document["error"]["code"] == "root_key_refused"
    assert len(done.err.splitlines()) == 1


def test_a_tenant_that_lets_nobody_in_is_told_in_the_servers_words(data: Path) -> None:
    assert nagaya("tenant", "suspend", "globex", "--data", str(data)).code == 0
    try:
        done = nagaya("demo", "--once", "--data", str(data), "--port", "0", HTTP_PROXY="http://127.0.0.1:9")
    finally:
        assert nagaya("tenant", "resume", "globex", "--data", str(data)).code == 0
    assert done.code == 1
    assert done.err.startswith("nagaya: Tenant is suspended")


# --- what counts as isolated ---


PLACES = [Place(company, "nk_x", "builtin", "conv_x", "resp_x", company.answer_holds) for company in (ACME, GLOBEX)]
REFUSED = Attempt("read", 404, "not_found", "", True)


def test_one_attempt_that_was_answered_makes_the_demo_fail() -> None:
    assert Outcome(PLACES, [REFUSED, REFUSED]).isolated
    assert not Outcome(PLACES, [REFUSED, Attempt("read", 0, "", "", False)]).isolated


def test_an_answer_without_the_conversations_own_words_makes_the_demo_fail() -> None:
    assert not Outcome([PLACES[0]._replace(answer="Who knows?"), PLACES[1]], [REFUSED]).isolated


async def test_an_answered_attempt_and_a_mere_failure_are_no_refusals() -> None:
    async def answered() -> None:
        return None

    assert not (await demo_scenario._attempt("read", answered)).refused

    async def failed() -> None:
        reply = httpx.Response(500, request=httpx.Request("GET", "http://x"))
        raise demo_scenario.APIStatusError("boom", response=reply, body=None)  # type: ignore[arg-type]  # httpx stands in

    assert not (await demo_scenario._attempt("read", failed)).refused
