"""docs/howto/one-file.md, done as it says: one file, two servers, nothing kept in either."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from docs_support.pages import ROOT
from docs_support.reader import Reader
from nagaya import Nagaya
from nagaya.errors import SettingsInvalid
from nagaya.settings import Settings
from parts.postgres import APP, Postgres, done
from parts.valkey import Valkey

if TYPE_CHECKING:
    from parts.ministack import Ministack

pytest_plugins = ["parts.postgres_server", "parts.valkey_server", "parts.ministack"]

PAGE = ROOT / "docs" / "howto" / "one-file.md"
_OWN_MARK = re.compile(r"<!-- not run: it needs [^\n]*; test_one_file does it -->\n")


@pytest.fixture
def addresses(postgres: Postgres, valkey: Valkey) -> Iterator[dict[str, str]]:
    """Three databases and a cache, as the page's environment names them."""
    databases = {name: done(postgres.new_database()) for name in ("REGISTRY_URL", "PLATFORM_URL", "TENANTS_URL")}
    done(postgres.run(f"GRANT CREATE ON SCHEMA public TO {APP}", database=databases["REGISTRY_URL"]))
    urls = {name: postgres.url(database, user=APP) for name, database in databases.items()}
    urls["TENANTS_URL"] += "?region=ap-northeast-1"
    yield urls | {"CACHE_URL": valkey.url()}
    for database in databases.values():
        done(postgres.drop_database(database))


@pytest.fixture
def cloud(ministack: Ministack) -> dict[str, str]:
    """An environment that leads to the stand-in and nowhere else."""
    return {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": ministack.url,
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


def page(ministack: Ministack) -> str:
    """The page with the stand-in's key in place of its own."""
    key = ministack.call("kms", "CreateKey")["KeyMetadata"]["Arn"]
    text = PAGE.read_text("utf-8")
    assert "awskms://alias/nagaya?" in text
    return _OWN_MARK.sub("", text).replace("awskms://alias/nagaya?", f"awskms://{key}?")


def what_is_done_on_one_holds_on_the_other(one: str, two: str, operator: str) -> None:
    """Signing in and out, a token's revocation and a tenant's suspension."""
    with httpx.Client(headers={"Authorization": f"Bearer {operator}"}, timeout=30) as admin:
        assert admin.post(f"{one}/admin/tenants", json={"id": "globex", "name": "Globex"}).status_code == 201
        token = admin.post(f"{two}/admin/tenants/globex/tokens", json={"user": "mio"}).json()["token"]
        signed_in = httpx.post(f"{one}/v1/session", json={"id_token": token}, timeout=30)
        assert signed_in.status_code == 201, signed_in.text
        kept = [cookie.partition(";")[0] for cookie in signed_in.headers.get_list("set-cookie")]
        assert all("Secure" in cookie for cookie in signed_in.headers.get_list("set-cookie"))
        browser = {"Cookie": "; ".join(kept), "X-CSRF-Token": signed_in.json()["csrf_token"]}
        bearer = {"Authorization": f"Bearer {token}"}
        for server in (one, two):
            assert httpx.get(f"{server}/v1/me", headers=browser).json()["user"] == "mio"
        assert httpx.delete(f"{two}/v1/session", headers=browser).status_code == 200
        soon_refused(one, browser, "invalid_api_key")
        assert httpx.get(f"{one}/v1/me", headers=bearer).status_code == 200
        assert admin.post(f"{one}/admin/tenants/globex/suspend").status_code == 200
        soon_refused(two, bearer, "tenant_suspended")


def soon_refused(server: str, headers: dict[str, str], code: str) -> None:
    until_s = time.monotonic() + 30.0
    while (reply := httpx.get(f"{server}/v1/me", headers=headers)).status_code == 200:
        assert time.monotonic() < until_s
        time.sleep(0.02)
    assert reply.json()["error"]["code"] == code


def test_the_page_is_done_as_it_stands(
    tmp_path: Path, addresses: dict[str, str], cloud: dict[str, str], ministack: Ministack, postgres: Postgres
) -> None:
    reader = Reader(tmp_path)
    try:
        for name, value in (addresses | cloud).items():
            assert reader._run(f"export {name}='{value}'")[1] == 0
        assert reader.follow(page(ministack), "docs/howto/one-file.md") == 4
        one, two = (f"http://127.0.0.1:{reader._own(port)}" for port in ("8701", "8702"))
        operator = reader._run("printenv OPERATOR")[0].strip()
        what_is_done_on_one_holds_on_the_other(one, two, operator)
    finally:
        reader.close()
    for folder in ("one", "two", "ops"):
        assert not (tmp_path / folder / "registry.db").exists()
        assert not list((tmp_path / folder).glob("tenants/*"))
        assert not list((tmp_path / folder).glob("keys/keys/*"))
    passwords = [value for value in addresses.values() if value.startswith("postgresql")]
    for log in (*tmp_path.glob(".background-*.log"), *tmp_path.rglob("*.toml")):
        text = log.read_text("utf-8")
        assert not [url for url in passwords if url in text]
        assert "correct" not in text


async def test_a_server_with_a_folder_of_its_own_and_local_keys_does_not_start_beside_others(
    tmp_path: Path, addresses: dict[str, str]
) -> None:
    shared = {"registry": addresses["REGISTRY_URL"], "platform_store": addresses["PLATFORM_URL"]}
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "one"), **shared)) as first:
        await first.tenants.create("acme", name="Acme")
        with pytest.raises(SettingsInvalid, match="platform_keys"):
            async with Nagaya.open(settings=Settings(data=str(tmp_path / "two"), **shared)):
                pass
        # The first server has lost nothing by it.
        assert (await first.tenants.key_status("acme")).service == "enabled"


async def test_an_address_from_an_environment_that_has_none_stops_the_start_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REGISTRY_URL", raising=False)
    for name in ("registry", "platform_store", "default_store"):
        with pytest.raises(SettingsInvalid, match=f"{name}.*no variable REGISTRY_URL"):
            Nagaya.open(settings=Settings(data=str(tmp_path), **{name: "env://REGISTRY_URL"}))
