"""Attack 29: an address that points inside is refused, however it is spelled and whenever it is resolved."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

import pytest

from nagaya.errors import AddressRefused
from nagaya.kernel import egress
from nagaya.kernel.egress import EgressPolicy, is_inside, literal_address, plain_host

INSIDE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:a00:1", "::ffff:169.254.169.254", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2002:7f00:1::1", "2002:a9fe:a9fe::", "2001:db8::1", "2001::1", "100::1", "3fff::1",
    "2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "0177.0.0.1", "[::1]", "0", "10.1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8",
           "64:ff9b::808:808", "2002:808:808::1", "134744072"]  # fmt: skip
NAMES = ["localhost", "LOCALHOST.", "foo.localhost", "metadata.google.internal", "printer.local", "ｌｏｃａｌｈｏｓｔ",
         "localhost。", "router.home.arpa", "x.localdomain"]  # fmt: skip


@pytest.mark.parametrize("host", [*INSIDE, *NAMES])
async def test_a_host_that_points_inside_is_refused_without_a_look_up(host: str) -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        raise AssertionError("asked for " + name)

    policy = EgressPolicy(resolver=resolver)
    with pytest.raises(AddressRefused):
        policy.check(host, 443)
    with pytest.raises(AddressRefused):
        await policy.addresses(host, 443)


@pytest.mark.parametrize("host", OUTSIDE)
async def test_a_public_address_passes_as_it_is(host: str) -> None:
    assert await EgressPolicy().addresses(host, 443) == [str(literal_address(host))]


@pytest.mark.parametrize("text", INSIDE)
async def test_a_name_that_resolves_inside_is_refused(text: str) -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        return [text]

    with pytest.raises(AddressRefused):
        await EgressPolicy(resolver=resolver).addresses("models.example", 443)


async def test_one_inside_address_among_public_ones_refuses_the_name() -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        return ["8.8.8.8", "127.0.0.1"]

    with pytest.raises(AddressRefused):
        await EgressPolicy(resolver=resolver).addresses("models.example", 443)


async def test_a_resolver_that_answers_nonsense_is_refused() -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        return ["nonsense"]

    with pytest.raises(AddressRefused):
        await EgressPolicy(resolver=resolver).addresses("models.example", 443)


async def test_a_name_without_an_address_is_an_os_error() -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        return []

    with pytest.raises(OSError, match="no address"):
        await EgressPolicy(resolver=resolver).addresses("models.example", 443)


async def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "RESOLVE_S", 0.01)

    async def resolver(name: str, port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    with pytest.raises(TimeoutError):
        await EgressPolicy(resolver=resolver).addresses("models.example", 443)


async def test_an_operator_allows_a_host_or_a_host_and_port() -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        return ["10.0.0.9", "10.0.0.9"]

    policy = EgressPolicy(
        ["Models.Corp.example", "127.0.0.1:8080", "[::1]:9", "10.0.0.7", "fd00::5"], resolver=resolver
    )
    assert await policy.addresses("models.corp.example.", 443) == ["10.0.0.9"]
    assert await policy.addresses("127.1", 8080) == ["127.0.0.1"]
    assert await policy.addresses("[::1]", 9) == ["::1"]
    policy.check("10.0.0.7", 1)
    policy.check("fd00::5", 1)
    for host, port in (("127.0.0.1", 8081), ("::1", 10), ("10.0.0.8", 1), ("evil-models.corp.example.localhost", 443)):
        with pytest.raises(AddressRefused):
            policy.check(host, port)


@pytest.mark.parametrize(
    "host", ["", ".", "a b", "a/b", "a@b", "a?b", "a#b", "a\\b", "a%2eb", "\ud800", "a\0b", "é" * 80]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused):
        plain_host(host)


def test_a_host_has_one_plain_form() -> None:
    assert plain_host("Ｅxample．COM.") == "example.com"
    assert plain_host("[2001:DB8::1]") == "2001:db8::1"


async def test_the_machines_own_resolver_is_asked_by_default() -> None:
    assert "127.0.0.1" in await egress.resolve("localhost", 80) or "::1" in await egress.resolve("localhost", 80)


def test_every_special_range_of_the_standard_library_is_inside() -> None:
    for address in (ipaddress.ip_address(text) for text in ("192.0.2.9", "198.51.100.9", "2001:db8::9")):
        assert is_inside(address)
