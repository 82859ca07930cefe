"""docs/howto/one-file.md, done as it says: one file, two servers, nothing kept in either."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from docs_support.pages import ROOT
from docs_support.reader import Reader
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


def test_the_page_is_done_as_it_stands(
    tmp_path: Path, addresses: dict[str, str], cloud: dict[str, str], ministack: Ministack, postgres: Postgres
) -> None:
    reader = Reader(tmp_path)
    try:
        for name, value in (addresses | cloud).items():
            assert reader._run(f"export {name}='{value}'")[1] == 0
        assert reader.follow(page(ministack), "docs/howto/one-file.md") == 4
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
