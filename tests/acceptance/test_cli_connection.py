"""``nagaya connection`` and tenants that bring their own: on a folder and through a server, told apart from mistakes,
and no secret said aloud by anything."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from acceptance.processes import Server, furnish, nagaya, serving
from nagaya.cli.main import run
from parts.postgres import APP, PASSWORD, Postgres, done

pytest_plugins = ["parts.postgres_server"]

CANARY = "canary-4be2-of-a-secret"
ROLE = {"role_arn": "arn:aws:iam::123456789012:role/nagaya", "region": "ap-northeast-1"}
AZURE = {"tenant_id": "11111111-2222-3333-4444-555555555555", "client_id": "app", "client_secret": CANARY}


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.out)
        return shown

    @property
    def error(self) -> dict[str, Any]:
        shape: dict[str, Any] = self.document["error"]
        assert self.code == 1
        assert shape.keys() == {"message", "type", "param", "code"}
        return shape


Say = Callable[..., Said]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connection") / "data"


@pytest.fixture(scope="module")
def operator(folder: Path) -> str:
    return furnish(folder, "globex")[""]


@pytest.fixture(scope="module")
def server(folder: Path, operator: str) -> Iterator[Server]:
    with serving(folder, "--log-level", "debug", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as running:
        yield running


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """A command in this process, which is quick; that it works as a process is shown elsewhere."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "NAGAYA_KEY", "NAGAYA_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NAGAYA_ALLOWED_HOSTS", "127.0.0.1")
    monkeypatch.setenv("NAGAYA_REGION", "ap-northeast-1")

    def command(*arguments: str, stdin: bytes = b"") -> Said:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(["--json", *arguments])
        said = Said(code, *capsys.readouterr())
        assert CANARY not in said.out + said.err
        assert PASSWORD not in said.out + said.err
        assert "Traceback" not in said.err
        return said

    return command


@pytest.fixture
def here(folder: Path, operator: str, command: Say) -> Say:
    """A command on the folder."""
    return lambda *arguments, stdin=b"": command(*arguments, "--data", str(folder), stdin=stdin)


@pytest.fixture
def there(server: Server, operator: str, command: Say) -> Say:
    """The same command through the server."""
    return lambda *arguments, stdin=b"": command(*arguments, "--url", server.url, "--key", operator, stdin=stdin)


@pytest.fixture(params=["here", "there"])
def way(request: pytest.FixtureRequest) -> tuple[str, Say]:
    """Both ways, and an id for a tenant of the test's own."""
    return f"acme-{request.param}", request.getfixturevalue(request.param)


def written(tmp_path: Path, content: object) -> str:
    file = tmp_path / "secret.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(file)


# --- what each command says ---


def test_a_connections_life_in_json(way: tuple[str, Say], tmp_path: Path) -> None:
    tenant, say = way
    issued = say("connection", "external-id", tenant).document
    assert issued["tenant"] == tenant
    assert re.fullmatch(r"nagaya-[\w-]{43}", issued["external_id"])
    assert say("connection", "external-id", tenant).document == issued
    assert say("connection", "list", tenant).document == {"object": "list", "data": []}
    file = written(tmp_path, ROLE | {"external_id": issued["external_id"], "note": CANARY})
    kept = say("connection", "set", tenant, "aws-connection", file)
    assert kept.document == {"tenant": tenant, "name": "aws-connection", "set": True}
    stdin = json.dumps({"user": "nagaya", "password": CANARY}).encode()
    assert say("connection", "set", tenant, "postgresql-connection", "-", stdin=stdin).document["set"] is True
    assert say("connection", "set", tenant, "azure-connection", written(tmp_path, AZURE)).document["set"] is True
    keys = {"access_key_id": "k", "secret_access_key": CANARY}
    assert say("connection", "set", tenant, "s3-connection", written(tmp_path, keys)).document["set"] is True
    names = ["aws-connection", "azure-connection", "postgresql-connection", "s3-connection"]
    assert [entry["name"] for entry in say("connection", "list", tenant).document["data"]] == names
    gone = say("connection", "delete", tenant, "aws-connection")
    assert gone.document == {"tenant": tenant, "name": "aws-connection", "deleted": True}
    assert say("connection", "delete", tenant, "aws-connection").document["deleted"] is True
    assert [entry["name"] for entry in say("connection", "list", tenant).document["data"]] == names[1:]
    assert say("connection", "external-id", tenant).document == issued


def test_the_folder_and_the_server_keep_the_same_connections(here: Say, there: Say) -> None:
    assert here("connection", "external-id", "both").document == there("connection", "external-id", "both").document
    secret = json.dumps({"user": "u", "password": CANARY}).encode()
    there("connection", "set", "both", "postgresql-connection", "-", stdin=secret)
    assert here("connection", "list", "both").document["data"] == [{"name": "postgresql-connection"}]
    assert here("connection", "list", "globex").document["data"] == []


def test_people_read_a_table(
    folder: Path, operator: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Say
) -> None:
    here("connection", "set", "hooli", "postgresql-connection", "-", stdin=b'{"user": "u", "password": "p"}')
    assert run(["connection", "list", "hooli", "--data", str(folder)]) == 0
    assert capsys.readouterr().out.split() == ["name", "postgresql-connection"]
    assert run(["connection", "external-id", "hooli", "--data", str(folder)]) == 0
    assert re.fullmatch(r"tenant {7}hooli\nexternal_id {2}nagaya-[\w-]{43}\n", capsys.readouterr().out)


# --- mistakes ---


def test_a_customers_own_external_id_is_refused(way: tuple[str, Say], tmp_path: Path) -> None:
    tenant, say = way
    file = written(tmp_path, ROLE | {"external_id": f"{CANARY}-of-my-own"})
    assert say("connection", "set", f"{tenant}-own", "aws-connection", file).error["code"] == "external_id_refused"
    assert say("connection", "list", f"{tenant}-own").document["data"] == []


def test_another_tenants_external_id_is_refused(here: Say, tmp_path: Path) -> None:
    theirs = here("connection", "external-id", "globex").document["external_id"]
    file = written(tmp_path, ROLE | {"external_id": theirs})
    assert here("connection", "set", "thief", "aws-connection", file).error["code"] == "external_id_refused"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("aws-connection", CANARY.encode(), "not a JSON object"),
        ("aws-connection", b'["' + CANARY.encode() + b'"]', "not a JSON object"),
        ("aws-connection", b'{"role_arn": "\xff' + CANARY.encode() + b'"}', "not a JSON object"),
        ("aws-connection", {"role_arn": CANARY}, "role_arn"),
        ("aws-connection", {"key": CANARY}, "role_arn"),
        ("azure-connection", CANARY.encode(), "not a JSON object"),
        ("azure-connection", {"client_secret": CANARY}, "belong together"),
        ("azure-connection", AZURE | {"authority": f"http://{CANARY}"}, "https://"),
        ("postgresql-connection", CANARY.encode(), "not a JSON object"),
        ("postgresql-connection", b"", "not a JSON object"),
        ("postgresql-connection", {"password": CANARY}, "user is missing"),
        ("postgresql-connection", {"user": "u", "password": [CANARY]}, "password is not a text"),
        ("s3-connection", {"access_key_id": CANARY}, "secret_access_key is missing"),
        ("entraid-config", b"null", "not a JSON object"),
    ],
)
def test_what_is_no_connection_is_refused_by_its_field_and_its_value_is_not_said(
    here: Say, tmp_path: Path, name: str, content: object, problem: str
) -> None:
    error = here("connection", "set", "acme", name, written(tmp_path, content)).error
    assert error["code"] == "connection_secret_invalid"
    assert name in error["message"]
    assert problem in error["message"]


def test_through_a_server_what_is_no_connection_is_refused_alike(there: Say, tmp_path: Path) -> None:
    for content, problem in ((CANARY.encode(), "not a JSON object"), ({"password": CANARY}, "user is missing")):
        error = there("connection", "set", "acme", "postgresql-connection", written(tmp_path, content)).error
        assert error["code"] == "connection_secret_invalid"
        assert problem in error["message"]


def test_an_unknown_name_is_answered_with_the_known_ones(way: tuple[str, Say], tmp_path: Path) -> None:
    tenant, say = way
    for name in ("my-secret", "llm-connection", "../aws-connection", "aws-external-id"):
        said = say("connection", "set", tenant, name, written(tmp_path, {"x": CANARY}))
        # What would be another path of the server's is nobody's name.
        assert said.error["code"] in ("invalid_value", "not_found")
        if said.error["code"] == "invalid_value":
            assert "aws-connection, azure-connection" in said.error["message"]


def test_an_external_id_is_not_deleted_by_its_name(way: tuple[str, Say]) -> None:
    tenant, say = way
    issued = say("connection", "external-id", tenant).document
    assert say("connection", "delete", tenant, "aws-external-id").error["code"] == "invalid_value"
    assert say("connection", "external-id", tenant).document == issued


def test_a_file_that_is_not_there_and_one_that_is_too_large_are_named(here: Say, tmp_path: Path) -> None:
    missing = here("connection", "set", "acme", "aws-connection", str(tmp_path / "none.json")).error
    assert (missing["code"], missing["param"]) == ("invalid_value", "file")
    assert "No such file" in missing["message"]
    folder = here("connection", "set", "acme", "aws-connection", str(tmp_path)).error
    assert folder["param"] == "file"
    large = {"user": "u", "password": "x" * 70_000}
    error = here("connection", "set", "acme", "postgresql-connection", written(tmp_path, large)).error
    assert "65536" in error["message"]


@pytest.mark.parametrize("tenant", ["Acme", "../acme", "", "a", "_platform"])
def test_what_is_no_tenants_id_has_no_connections(way: tuple[str, Say], tenant: str) -> None:
    _, say = way
    for words in (("external-id", tenant), ("list", tenant), ("delete", tenant, "aws-connection")):
        assert say("connection", *words).error["code"] in ("tenant_id_invalid", "not_found")


def test_a_mistyped_folder_has_no_connections_and_is_not_made(command: Say, tmp_path: Path) -> None:
    for words in (("list", "acme"), ("delete", "acme", "aws-connection")):
        said = command("connection", *words, "--data", str(tmp_path / "none"))
        assert said.error["code"] == "no_data_folder"
    assert not (tmp_path / "none").exists()


def test_refusals_speak_japanese(way: tuple[str, Say], tmp_path: Path) -> None:
    tenant, say = way
    own = written(tmp_path, ROLE | {"external_id": CANARY})
    said = say("--lang", "ja", "connection", "set", f"{tenant}-ja", "aws-connection", own)
    assert "AWS ロールの ExternalId はここで作られ" in said.error["message"]
    assert "AWS ロールの ExternalId" in said.err
    wrong = written(tmp_path, b"[]")
    said = say("--lang", "ja", "connection", "set", tenant, "azure-connection", wrong)
    assert "正しい接続情報ではありません" in said.error["message"]
    said = say("--lang", "ja", "tenant", "create", f"{tenant}-ja", "--name", "A", "--store", "oracle://x")
    assert "の値が正しくありません" in said.error["message"]


def test_nobody_but_an_operator_sets_connections(server: Server, folder: Path, tmp_path: Path, command: Say) -> None:
    file = written(tmp_path, ROLE)
    for key in ("nk_wrong", furnish(folder, "initech")["initech"]):
        for words in (("list", "acme"), ("external-id", "acme"), ("set", "acme", "aws-connection", file)):
            said = command("connection", *words, "--url", server.url, "--key", key)
            assert said.error["code"] in ("forbidden", "invalid_api_key")


def test_a_connection_is_set_by_a_process_too(server: Server, operator: str) -> None:
    secret = json.dumps({"user": "u", "password": CANARY})
    result = nagaya(
        "connection",
        "set",
        "proc",
        "postgresql-connection",
        "-",
        "--url",
        server.url,
        stdin=secret,
        NAGAYA_KEY=operator,
    )
    assert result.code == 0, result
    assert result.out.split() == ["tenant", "proc", "name", "postgresql-connection", "set", "yes"]
    assert CANARY not in result.out + result.err


# --- tenants that bring their own ---


@pytest.fixture(scope="module")
def own_database(postgres: Postgres) -> Iterator[str]:
    name = done(postgres.new_database())
    yield name
    done(postgres.drop_database(name))


@pytest.fixture
def store(postgres: Postgres, own_database: str) -> str:
    return f"postgresql://127.0.0.1:{postgres.port}/{own_database}?sslmode=disable"


def connect(say: Say, tenant: str, *, user: str = APP, password: str = PASSWORD) -> None:
    secret = json.dumps({"user": user, "password": password}).encode()
    assert say("connection", "set", tenant, "postgresql-connection", "-", stdin=secret).code == 0


def nothing_stays(say: Say, tenant: str, postgres: Postgres, database: str) -> None:
    assert say("tenant", "show", tenant).error["code"] == "not_found"
    schemas = done(postgres.ask("SELECT nspname FROM pg_namespace", database=database))
    assert (f"nagaya_{tenant}",) not in schemas


def test_a_tenant_on_its_own_postgresql_is_made_and_taken_down(
    way: tuple[str, Say], store: str, postgres: Postgres, own_database: str
) -> None:
    tenant, say = way
    connect(say, tenant)
    made = say("tenant", "create", tenant, "--name", "Acme", "--store", store).document
    assert (made["state"], made["store"]) == ("active", store)
    assert say("tenant", "usage", tenant).document["stored_bytes"] >= 0
    say("tenant", "delete", tenant, "--yes")
    schemas = done(postgres.ask("SELECT nspname FROM pg_namespace", database=own_database))
    assert not [name for (name,) in schemas if str(name).startswith("nagaya_acme")]
    # What opened its accounts goes with it.
    assert say("connection", "list", tenant).document["data"] == []


def test_a_wrong_password_is_named_as_such_and_nothing_stays(
    way: tuple[str, Say], store: str, postgres: Postgres, own_database: str
) -> None:
    tenant, say = way[0] + "-bad", way[1]
    connect(say, tenant, password=CANARY)
    error = say("tenant", "create", tenant, "--name", "Acme", "--store", store).error
    assert error["code"] == "store_login_refused"
    assert "connection secret" in error["message"]
    nothing_stays(say, tenant, postgres, own_database)
    connect(say, tenant)
    assert say("tenant", "create", tenant, "--name", "Acme", "--store", store).document["state"] == "active"
    say("tenant", "delete", tenant, "--yes")


def test_a_missing_permission_is_named(here: Say, postgres: Postgres, own_database: str, store: str) -> None:
    done(postgres.run("CREATE ROLE bare LOGIN PASSWORD 'correct horse'"))
    try:
        connect(here, "bare-acme", user="bare")
        error = here("tenant", "create", "bare-acme", "--name", "Acme", "--store", store).error
        assert error["code"] == "store_permission_missing"
        assert f"CREATE on database {own_database}" in error["message"]
        nothing_stays(here, "bare-acme", postgres, own_database)
    finally:
        done(postgres.run("DROP ROLE bare"))


def test_a_store_without_its_secret_says_which_is_missing(here: Say, store: str) -> None:
    error = here("tenant", "create", "unset", "--name", "Acme", "--store", store).error
    assert "postgresql-connection" in error["message"]


@pytest.mark.parametrize(
    ("option", "url", "code", "says"),
    [
        ("--store", "oracle://db/x", "invalid_value", "cosmos://, dynamodb://, postgresql://, sqlite://"),
        ("--keys", "oracle://db/x", "invalid_value", "awskms://, azurekeys://, local://"),
        ("--blobs", "oracle://db/x", "invalid_value", "azblob://, file://, s3://"),
        ("--model", "oracle://db/x", "invalid_value", "bedrock://REGION/MODEL"),
        ("--store", "postgresql", "invalid_value", "URL"),
        ("--store", "sqlite:///elsewhere", "invalid_value", "sqlite:///tenants"),
        ("--store", "postgresql://10.0.0.7/x", "address_refused", "10.0.0.7"),
        ("--store", f"postgresql://u:{CANARY}@127.0.0.1/x", "invalid_value", "must not hold"),
        ("--blobs", f"s3://u:{CANARY}@bucket/x", "invalid_value", "must not hold"),
        ("--store", f"postgresql://127.0.0.1/x?password={CANARY}", "invalid_value", "not known"),
        ("--store", "cosmos://account", "invalid_value", "database"),
    ],
)
def test_an_address_that_is_none_is_refused_and_nothing_stays(
    here: Say, option: str, url: str, code: str, says: str
) -> None:
    connect(here, "refused")
    error = here("tenant", "create", "refused", "--name", "Acme", option, url).error
    assert error["code"] == code
    assert says in error["message"]
    assert here("tenant", "show", "refused").error["code"] == "not_found"


@pytest.mark.parametrize(
    "brought",
    [
        (),
        ("--model", "openai://gpt-5-mini"),
        ("--model", "bedrock://eu-west-1/eu.amazon.nova-lite-v1:0"),
        ("--model", "bedrock://eu-west-1/amazon.nova-lite-v1:0", "--store", "dynamodb://eu-west-1/t"),
    ],
)
def test_a_tenant_that_is_pinned_elsewhere_is_refused_what_lies_here(here: Say, brought: tuple[str, ...]) -> None:
    # The last brings a model and a store, and would still have its keys here.
    error = here("tenant", "create", "pinned", "--name", "Acme", "--region", "eu-west-1", *brought).error
    assert error["code"] == "region_refused"
    assert "eu-west-1" in error["message"]
    assert here("tenant", "show", "pinned").error["code"] == "not_found"


def test_no_secret_is_in_the_folder_nor_in_the_servers_log(here: Say, there: Say, folder: Path, server: Server) -> None:
    """Runs last: what all the tests before it have left."""
    connect(there, "canary", password=CANARY)
    here("connection", "set", "canary", "azure-connection", "-", stdin=json.dumps(AZURE).encode())
    there("connection", "set", "canary", "s3-connection", "-", stdin=b'{"access_key_id": "' + CANARY.encode() + b'"}')
    assert server.stop() == 0
    assert CANARY not in "\n".join(server.lines)
    assert PASSWORD not in "\n".join(server.lines)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        assert CANARY.encode() not in content, file
        assert PASSWORD.encode() not in content, file
