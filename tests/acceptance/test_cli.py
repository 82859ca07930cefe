"""Every command as a process: on a folder, on a running server over ``--url``, and on both at once."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.processes import Result, Server, ask, furnish, nagaya, serving
from nagaya.cli.main import run

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "data"


@pytest.fixture(scope="module")
def keys(data: Path) -> dict[str, str]:
    return furnish(data, "hooli")


@pytest.fixture(scope="module")
def server(data: Path, keys: dict[str, str]) -> Iterator[Server]:
    with serving(data) as running:
        yield running


@pytest.fixture
def ways(
    request: pytest.FixtureRequest,
    data: Path,
    keys: dict[str, str],
    server: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, Command]:
    """A way to speak to the same tenants: over the folder while the server runs on it (in this process, which is
    quick, or in one of its own), or over the server, in a process of its own."""
    way: str = request.param

    def command(*arguments: str, stdin: str = "") -> Any:
        if way == "folder":
            monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
            result = Result(run(["--json", *arguments, "--data", str(data)]), *capsys.readouterr())
        elif way == "process":
            result = nagaya("--json", *arguments, "--data", str(data), stdin=stdin)
        else:
            result = nagaya(*arguments, "--url", server.url, "--json", stdin=stdin, NAGAYA_KEY=keys[""])
        assert result.code == 0, result
        assert "Traceback" not in result.err
        return result.document

    return way, command


two_ways = pytest.mark.parametrize("ways", ["folder", "server"], indirect=True)


@pytest.mark.parametrize("ways", ["process", "server"], indirect=True)
def test_a_tenants_life_from_its_making_to_its_end(ways: tuple[str, Command], server: Server) -> None:
    way, command = ways
    tenant = f"acme-{way}"
    made = command(
        "tenant", "create", tenant, "--name", "アクメ", "--tier", "standard", "--isolation", "shared_everything",
        "--model", "builtin://", "--region", "ap-northeast-1", "--region", "eu-west-1", "--host", "127.0.0.1",
    )  # fmt: skip
    assert (made["id"], made["name"], made["state"], made["tier"]) == (tenant, "アクメ", "active", "standard")
    assert (made["isolation"], made["models"], made["hosts"]) == ("shared_everything", ["builtin://"], ["127.0.0.1"])
    assert made["regions"] == ["ap-northeast-1", "eu-west-1"]
    assert command("tenant", "show", tenant)["name"] == "アクメ"
    assert tenant in [shown["id"] for shown in command("tenant", "list")["data"]]

    # A key made here opens the door there: the server hears of what the folder was told.
    issued = command("api-key", "create", "--tenant", tenant, "--user", "mia", "--role", "member", "--name", "ci")
    assert re.fullmatch(r"nk_\w{60,}", issued["api_key"])
    assert ask(server.url, issued["api_key"], "GET", "/v1/me").json()["tenant"]["id"] == tenant
    listed = command("api-key", "list", "--tenant", tenant)["data"]
    assert [(key["key_id"], key["user"], key["role"], key["name"]) for key in listed] == [
        (issued["key_id"], "mia", "member", "ci")
    ]
    token = command("token", "mint", "--tenant", tenant, "--user", "mia", "--role", "tenant_admin", "--mfa")["token"]
    assert ask(server.url, token, "GET", "/v1/me").json()["role"] == "tenant_admin"
    assert command("tenant", "usage", tenant)["stored_bytes"] > 0
    assert command("tenant", "usage", tenant, "--month", "2020-01")["api_calls"] == 0

    changed = command(
        "tenant", "set", tenant, "tier=enterprise", "mfa_required=yes", "hosts=a.example, b.example",
        "expires_at=2099-01-01T00:00:00Z", "requests_per_minute=600", "name=Acme KK",
    )  # fmt: skip
    assert (changed["tier"], changed["mfa_required"], changed["hosts"]) == (
        "enterprise",
        True,
        ["a.example", "b.example"],
    )
    assert (changed["expires_at_us"], changed["requests_per_minute"]) == (4_070_908_800_000_000, 600)
    assert command("tenant", "set", tenant, "expires_at=none", "requests_per_minute=none")["expires_at_us"] is None

    assert command("tenant", "suspend", tenant)["state"] == "suspended"
    assert command("tenant", "resume", tenant)["state"] == "active"
    assert command("tenant", "delete", tenant) == {"id": tenant, "object": "tenant.deleted", "deleted": True}
    assert command("audit", "verify")["verified"] is True


@two_ways
def test_a_workspaces_life_from_its_making_to_its_end(ways: tuple[str, Command], server: Server) -> None:
    way, command = ways
    workspace = f"hooli/by-{way}"
    made = command("tenant", "create", workspace, "--name", "法務部", "--admin", "gavin")
    assert (made["id"], made["name"], made["state"]) == (workspace, "法務部", "active")
    assert workspace in [shown["id"] for shown in command("tenant", "list", "hooli")["data"]]
    assert workspace not in [shown["id"] for shown in command("tenant", "list")["data"]]
    assert command("member", "add", workspace, "denpok", "--role", "member")["role"] == "member"
    assert [each["user"] for each in command("member", "list", workspace)["data"]] == ["denpok", "gavin"]

    issued = command("api-key", "create", "--tenant", workspace, "--user", "gavin")
    assert issued["tenant"] == workspace
    assert [key["tenant"] for key in command("api-key", "list", "--tenant", workspace)["data"]] == [workspace]
    token = command("token", "mint", "--tenant", workspace, "--user", "gavin", "--role", "tenant_admin")["token"]
    for credential in (issued["api_key"], token):
        shown = ask(server.url, credential, "GET", "/v1/me").json()
        assert (shown["tenant"]["id"], shown["workspace"]["id"]) == ("hooli", workspace)

    assert command("tenant", "set", workspace, "name=Legal", "requests_per_minute=600")["name"] == "Legal"
    assert command("key", "rotate", workspace)["tenant"] == workspace
    for act, service in (("revoke", "disabled"), ("restore", "enabled"), ("status", "enabled")):
        assert command("key", act, workspace)["service"] == service
    assert command("tenant", "suspend", workspace)["state"] == "suspended"
    assert command("tenant", "resume", workspace)["state"] == "active"
    assert command("tenant", "usage", workspace)["stored_bytes"] > 0
    assert command("audit", "verify", "--tenant", workspace)["verified"] is True
    assert command("member", "remove", workspace, "denpok")["deleted"] is True
    assert command("token", "revoke", "--tenant", workspace, "--user", "gavin")["revoked"] is True
    refused_within_30_s(server, token, "/v1/me")
    refused_within_30_s(server, issued["api_key"], "/v1/me")
    assert command("tenant", "delete", workspace)["id"] == workspace
    assert workspace not in [shown["id"] for shown in command("tenant", "list", "hooli")["data"]]


@two_ways
def test_a_key_is_rotated_revoked_and_restored(ways: tuple[str, Command]) -> None:
    _, command = ways
    before = len(command("key", "status", "hooli")["versions"])
    rotated = command("key", "rotate", "hooli")
    assert [version["state"] for version in rotated["versions"]] == ["decrypt_only"] * before + ["active"]
    assert command("key", "revoke", "hooli")["service"] == "disabled"
    assert command("key", "restore", "hooli")["service"] == "enabled"


@two_ways
def test_tokens_and_keys_are_revoked(ways: tuple[str, Command], server: Server) -> None:
    _, command = ways
    token = command("token", "mint", "--tenant", "hooli", "--user", "gavin", "--lifetime-s", "600")["token"]
    assert command("token", "revoke", "--tenant", "hooli", "--user", "gavin")["revoked"] is True
    operator = command("api-key", "create", "--operator", "--lifetime-s", "60")
    assert (operator["tenant"], operator["role"]) == (None, "operator")
    assert operator["key_id"] in [key["key_id"] for key in command("api-key", "list")["data"]]
    assert command("api-key", "revoke", operator["key_id"])["deleted"] is True
    scoped = command("api-key", "create", "--tenant", "hooli", "--scope", "nagaya.read")
    assert command("api-key", "revoke", scoped["key_id"], "--tenant", "hooli")["deleted"] is True
    refused_within_30_s(server, token, "/v1/me")
    refused_within_30_s(server, operator["api_key"], "/admin/tenants")
    refused_within_30_s(server, scoped["api_key"], "/v1/me")


@two_ways
def test_one_token_is_revoked_by_its_id_or_whole_and_no_other(ways: tuple[str, Command], server: Server) -> None:
    _, command = ways
    lost, named, kept = [
        command("token", "mint", "--tenant", "hooli", "--user", "monica", "--lifetime-s", "600")["token"]
        for _ in range(3)
    ]
    ids = [json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["jti"] for token in (lost, named)]
    shown = command("token", "revoke", "--tenant", "hooli", "--token", lost)
    assert (shown["tokens"], shown["revoked"]) == ([ids[0]], True)
    assert command("token", "revoke", "--tenant", "hooli", "--token", ids[1])["tokens"] == [ids[1]]
    for token in (lost, named):
        refused_within_30_s(server, token, "/v1/me")
    assert ask(server.url, kept, "GET", "/v1/me").status_code == 200


def refused_within_30_s(server: Server, credential: str, path: str) -> None:
    end_s = time.monotonic() + 30
    while (reply := ask(server.url, credential, "GET", path)).status_code != 401:
        assert time.monotonic() < end_s, reply.text
        time.sleep(0.1)


@two_ways
def test_an_issuer_is_bound_listed_and_unbound(ways: tuple[str, Command]) -> None:
    way, command = ways
    issuer = f"https://{way}.example"
    bound = command(
        "issuer", "bind", "hooli", "--issuer", issuer, "--provider", "oidc", "--audience", "one", "--audience", "two",
        "--jwks-url", f"{issuer}/keys", "--algorithm", "ES256", "--role-claim", "staff=member", "--required-scope", "x",
    )  # fmt: skip
    assert (bound["issuer"], bound["audiences"], bound["role_claims"]) == (issuer, ["one", "two"], {"staff": "member"})
    assert [shown["issuer"] for shown in command("issuer", "list", "hooli")["data"]] == [issuer]
    assert command("issuer", "unbind", "hooli", issuer)["deleted"] is True
    assert command("issuer", "list", "hooli")["data"] == []


@two_ways
def test_a_tenants_log_is_verified_while_the_server_writes_it(ways: tuple[str, Command]) -> None:
    _, command = ways
    verified = command("audit", "verify", "--tenant", "hooli")
    assert verified["verified"] is True
    assert (verified["chain"], len(verified["root"])) == ("hooli", 64)


@two_ways
def test_a_models_key_is_read_from_standard_input_and_never_shown(ways: tuple[str, Command]) -> None:
    _, command = ways
    command("tenant", "set", "hooli", "models=openai://gpt-5-mini")
    shown = command("tenant", "set", "hooli", "model_key=-", "tier=standard", stdin="sk-very-secret\n")
    assert shown["tier"] == "standard"
    assert "sk-very-secret" not in str(shown)


# --- refusals and mistakes, as a shell sees them ---


def refusal(result: Result, *, code: int) -> dict[str, Any]:
    assert result.code == code, result
    assert "Traceback" not in result.err + result.out
    error: dict[str, Any] = result.document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_a_server_refuses_whoever_is_no_operator(server: Server, keys: dict[str, str]) -> None:
    for key in (keys["hooli"], "nk_wrong"):
        error = refusal(nagaya("tenant", "list", "--url", server.url, "--key", key, "--json"), code=1)
        assert error["code"] in ("forbidden", "invalid_api_key")


def test_a_servers_refusal_keeps_its_code_and_speaks_the_callers_language(server: Server, keys: dict[str, str]) -> None:
    result = nagaya("tenant", "show", "nobody", "--url", server.url, "--key", keys[""], "--json", "--lang", "ja")
    error = refusal(result, code=1)
    assert error["code"] == "not_found"
    assert "見つかりません" in error["message"]
    assert "見つかりません" in result.err


def test_a_server_that_is_not_there_is_named() -> None:
    result = nagaya("tenant", "list", "--url", "http://127.0.0.1:9", "--key", "nk_x", "--json")
    assert refusal(result, code=1)["code"] == "server_unreachable"


def test_an_id_with_a_slash_reaches_no_other_route(server: Server, keys: dict[str, str]) -> None:
    for tenant in ("hooli/usage", "..", "", "hooli?x=1", "hooli#x"):
        result = nagaya("tenant", "show", tenant, "--url", server.url, "--key", keys[""], "--json")
        assert refusal(result, code=1)["code"] == "not_found"


def test_help_comes_without_the_heavy_parts_being_loaded() -> None:
    import subprocess
    import sys

    script = (
        "import sys; from nagaya.cli.main import run; code = run(['--help']); "
        "heavy = {'openai', 'sqlalchemy', 'fastapi', 'uvicorn', 'httpx', 'cryptography', 'structlog', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=120)
    assert done.stderr.decode().strip() == "[]"
    for word in ("demo", "serve", "tenant", "key", "token", "api-key", "issuer", "audit", "bench"):
        assert f"\n  {word} " in done.stdout.decode()
