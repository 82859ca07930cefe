"""Two servers and a load balancer over one folder and one DynamoDB table: nothing tells them, and none serves longer
than it may."""

from __future__ import annotations

import base64
import math
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from nagaya.usage.shared_limits import credit_of, stock_of
from parts.aws import REGION
from parts.ministack import Ministack, running
from support.planted import assert_error
from support.two_servers import AT_WORST_S, House, sign_in, until
from support.two_servers import house as two_servers

pytest_plugins = ["parts.ministack"]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Ministack]:
    """A stand-in of this module's own, for it is taken away at the end."""
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, cloud: Ministack) -> Iterator[House]:
    environment = {
        "NAGAYA_REDIS": f"dynamodb://{REGION}/shared", "AWS_ENDPOINT_URL": cloud.url, "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with two_servers(tmp_path_factory.mktemp("two"), environment) as opened:
        until(lambda: cloud.call("DynamoDB_20120810", "ListTables")["TableNames"] == ["shared"], within_s=AT_WORST_S)
        yield opened


def test_signed_out_on_one_server_is_refused_on_the_other(house: House) -> None:
    one, other = house.servers
    with house.browser(one) as here, house.browser(other) as there:
        session = sign_in(here)
        there.cookies = here.cookies
        assert there.get("/v1/session").json()["created_at"] == session["created_at"]
        bearer = {"authorization": f"Bearer {here.cookies['access_token']}"}
        assert here.delete("/v1/session").status_code == 200
        assert_error(here.get("/v1/me", headers=bearer), 401)
        took_s = until(lambda: there.get("/v1/me", headers=bearer).status_code == 401, within_s=AT_WORST_S)
        print(f"refused on the other server after {took_s * 1000:.0f} ms")


def test_a_suspension_on_one_server_is_seen_on_the_other(house: House) -> None:
    one, other = house.servers
    one.tenant("changing")
    bearer = {"authorization": f"Bearer {one.key('changing')}"}
    with house.browser(other) as there:
        until(lambda: there.get("/v1/me", headers=bearer).status_code == 200, within_s=AT_WORST_S)
        one.operate("POST", "/admin/tenants/changing/suspend")
        took_s = until(lambda: there.get("/v1/me", headers=bearer).status_code == 403, within_s=AT_WORST_S)
        print(f"suspension seen on the other server after {took_s * 1000:.0f} ms")


def test_a_limit_holds_over_both_servers(house: House) -> None:
    limit = 30
    house.servers[0].tenant("limited")
    house.servers[0].operate("PATCH", "/admin/tenants/limited", {"requests_per_minute": limit})
    bearer = {"authorization": f"Bearer {house.servers[0].key('limited')}"}
    seen: Counter[int] = Counter()
    with house.browser() as browser:
        until(lambda: browser.get("/v1/me", headers=bearer).status_code == 200, within_s=AT_WORST_S)
        began_s = time.monotonic()
        for _ in range(90):
            seen[browser.get("/v1/me", headers=bearer).status_code] += 1
    minutes = math.ceil((time.monotonic() - began_s) / 60)
    passed = seen[200] + 1
    print(f"limit {limit}: {passed} passed on two servers")
    assert seen[429] > 0
    assert limit - 2 * stock_of(limit) <= passed <= minutes * (limit + 2 * (stock_of(limit) + credit_of(limit)))


def test_what_lies_in_the_table_names_nobody(house: House, cloud: Ministack) -> None:
    with house.browser() as browser:
        sign_in(browser, "canary-user")
    whole = b""
    for item in cloud.call("DynamoDB_20120810", "Scan", TableName="shared")["Items"]:
        for name, value in item.items():
            ((kind, content),) = value.items()
            # In base64 a short word would stand now and then.
            whole += name.encode() + (base64.b64decode(content) if kind == "B" else str(content).encode())
    assert b"ends" in whole
    for word in (b"canary", b"acme", b"sess_", b"limited", b"issuer"):
        assert word not in whole.lower()


def test_with_the_table_gone_everybody_works_on_and_what_is_revoked_is_refused(house: House, cloud: Ministack) -> None:
    # The last of this module: it leaves the house without a table.
    one, other = house.servers
    with house.browser(one) as here, house.browser(other) as there:
        sign_in(here)
        there.cookies = here.cookies
        bearer = {"authorization": f"Bearer {here.cookies['access_token']}"}
        cloud.stop()
        for browser in (here, there):
            assert browser.get("/v1/me").status_code == 200
        with house.browser(one) as late:
            sign_in(late, "late")
            assert late.get("/v1/session").json()["created_at"] is None
        assert here.delete("/v1/session").status_code == 200
        until(lambda: there.get("/v1/me", headers=bearer).status_code == 401, within_s=AT_WORST_S)
    for server in house.servers:
        assert "Traceback" not in server.log()
