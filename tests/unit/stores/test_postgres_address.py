"""What a ``postgresql://`` address says, and where a connection may go."""

from __future__ import annotations

import runpy
import ssl
import warnings
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from nagaya.errors import AddressRefused, InvalidValue
from nagaya.kernel.egress import EgressPolicy
from nagaya.stores import postgres_address
from nagaya.stores.postgres_address import Credentials, Dialer, dial, parse_address
from nagaya.stores.postgres_shared import set_up_sql
from support.postgres_house import surroundings

AWAY = "postgresql://db.example.com/nagaya"


def test_an_address_is_read_whole() -> None:
    read = parse_address(
        "postgresql://u:p%40w@db.example.com:6432/my%20db?isolation=shared&sslmode=require&connections=7"
    )
    assert (read.host, read.port, read.database, read.user, read.password) == (
        "db.example.com",
        6432,
        "my db",
        "u",
        "p@w",
    )
    assert (read.isolation, read.ssl_mode, read.connections, read.socket_folder) == ("shared", "require", 7, None)
    plain = parse_address(AWAY)
    assert (plain.port, plain.user, plain.isolation, plain.connections) == (5432, None, "schema", 40)
    near = parse_address("postgresql:///nagaya?host=/run/postgresql&port=5433")
    assert (near.socket_folder, near.port, near.ssl_mode) == ("/run/postgresql", 5433, "disable")


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        ("db.example.com", "verify-full"), ("10.0.0.7", "verify-full"), ("localhost", "disable"), ("127.0.0.1", "disable"),
        ("[::1]", "disable"), ("localhost.example.com", "verify-full"),
    ],
)  # fmt: skip
def test_a_line_that_leaves_the_machine_is_encrypted_and_checked(host: str, mode: str) -> None:
    assert parse_address(f"postgresql://{host}/nagaya").ssl_mode == mode


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db/", "postgresql://db", "postgresql:///x", "postgresql://db/a/b", "postgresql://db/x?isolation=none",
        "postgresql://db/x?sslmode=prefer", "postgresql://db/x?connections=0", "postgresql://db/x?connections=many",
        "postgresql://db/x?options=-c%20role%3Downer", "postgresql://db:99999/x", "postgresql://db/x?port=0",
        "postgresql://db/x?host=/run", "postgresql:///x?host=run", "postgresql://db/x?isolation", "postgresql://[db/x",
        "postgresql://db/" + "x" * 64, "postgresql://db/a%00b", "postgresql://db/x?search_path=public",
    ],
)  # fmt: skip
def test_an_address_that_says_anything_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_address(url)
    assert refused.value.param == "store"


async def test_user_and_password_come_from_the_rooms_secret_and_never_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []

    async def connect(**named: Any) -> None:
        seen.append(named)
        raise ConnectionRefusedError

    for name in ("PGUSER", "PGPASSWORD", "PGHOST", "PGDATABASE", "PGSSLMODE"):
        monkeypatch.setenv(name, "the-platforms")
    monkeypatch.setattr(asyncpg, "connect", connect)
    around = surroundings(secret=b'{"user": "theirs", "password": "their word"}', allowed=("10.0.0.7",))
    dialer = await dial(parse_address("postgresql://10.0.0.7/nagaya?sslmode=require"), around)
    with pytest.raises(ConnectionRefusedError):
        await dialer.connect("nagaya")
    assert (seen[0]["user"], seen[0]["password"], seen[0]["host"]) == ("theirs", "their word", "10.0.0.7")
    nameless = surroundings(secret=b'{"user": "theirs"}', allowed=("10.0.0.7",))
    with pytest.raises(ConnectionRefusedError):
        await (await dial(parse_address("postgresql://10.0.0.7/nagaya?sslmode=require"), nameless)).connect("nagaya")
    assert seen[1]["password"] == ""
    assert all(isinstance(named["ssl"], ssl.SSLContext) for named in seen)


async def test_an_address_without_a_user_or_with_a_broken_secret_is_refused() -> None:
    with pytest.raises(InvalidValue, match="postgresql-connection"):
        await dial(parse_address(AWAY), surroundings())
    for broken in (b"no json", b'{"user": 5}'):
        with pytest.raises(InvalidValue, match="JSON"):
            await dial(parse_address(AWAY), surroundings(secret=broken))
    with pytest.raises(InvalidValue, match="PEM"):
        await dial(parse_address(AWAY), surroundings(secret=b'{"user": "u", "ca": "rubbish"}'))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254", "10.0.0.7", "[::1]", "0x7f.1"])
async def test_a_tenants_address_that_points_inside_is_refused_unless_the_operator_allows_it(host: str) -> None:
    dialer = await dial(parse_address(f"postgresql://u@{host}/nagaya"), surroundings(allowed=()))
    with pytest.raises(AddressRefused):
        await dialer.connect("nagaya")


async def test_a_tenants_address_that_names_a_socket_is_refused_unless_the_operator_allows_it(tmp_path: Path) -> None:
    address = parse_address(f"postgresql://u@/nagaya?host={tmp_path}")
    with pytest.raises(AddressRefused):
        await (await dial(address, surroundings(allowed=()))).connect("nagaya")
    with pytest.raises(OSError):
        await (await dial(address, surroundings(allowed=("localhost",)))).connect("nagaya")
    with pytest.raises(OSError):
        await (await dial(address, surroundings("_platform", allowed=()))).connect("nagaya")


async def test_the_platforms_own_store_may_lie_inside() -> None:
    dialer = await dial(parse_address("postgresql://u@127.0.0.1:1/nagaya"), surroundings("_platform", allowed=()))
    with pytest.raises(OSError):
        await dialer.connect("nagaya")


async def test_a_pinned_tenants_address_says_its_region() -> None:
    pinned = surroundings(regions=("ap-northeast-1",))
    for url in ("postgresql://u@db.example.com/x", "postgresql://u@db.example.com/x?region=us-east-1"):
        with pytest.raises(InvalidValue, match="ap-northeast-1"):
            await dial(parse_address(url), pinned)
    await dial(parse_address("postgresql://u@db.example.com/x?region=ap-northeast-1"), pinned)


async def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    async def connect(*, host: str, **_: Any) -> Any:
        tried.append(host)
        raise ConnectionRefusedError(host)

    async def both(_host: str, _port: int) -> list[str]:
        return ["192.0.2.1", "192.0.2.2"]

    monkeypatch.setattr(asyncpg, "connect", connect)
    policy = EgressPolicy(("db.example.com",), resolver=both)
    dialer = Dialer(parse_address(AWAY), Credentials("u", "p"), policy)
    with pytest.raises(ConnectionRefusedError, match=r"192\.0\.2\.2"):
        await dialer.connect("nagaya")
    assert tried == ["192.0.2.1", "192.0.2.2"]


async def test_connecting_takes_no_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(**_: Any) -> None:
        import asyncio

        await asyncio.sleep(60)

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(TimeoutError):
        await Dialer(parse_address(AWAY), Credentials("u"), None, limit_s=0.05).connect("nagaya")


def test_a_role_with_an_odd_name_is_quoted_in_the_set_up() -> None:
    assert 'TO "odd""; DROP ROLE x"' in set_up_sql('odd"; DROP ROLE x')


def test_the_set_up_is_printed_for_the_owner_to_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["postgres_shared", "nagaya_app"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # imported above, and now run
        runpy.run_module("nagaya.stores.postgres_shared", run_name="__main__")
    assert capsys.readouterr().out == set_up_sql("nagaya_app")


def test_the_connect_limit_is_a_few_seconds() -> None:
    assert postgres_address.CONNECT_S <= 5
