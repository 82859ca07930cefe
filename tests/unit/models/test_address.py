"""Model addresses: one clear form each, and never a secret in one."""

from __future__ import annotations

import pytest

from nagaya.errors import AddressRefused, InvalidValue
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.address import ModelAddress, check_model_address, parse_model_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("builtin://", ModelAddress("builtin", "", "", "", 0)),
        ("builtin://?dimensions=512", ModelAddress("builtin", "", "", "", 0, 512)),
        (
            "openai://gpt-5-mini",
            ModelAddress("openai", "gpt-5-mini", "https://api.openai.com/v1", "api.openai.com", 443),
        ),
        (
            "openai://ft:gpt-4o:Acme::X1",
            ModelAddress("openai", "ft:gpt-4o:Acme::X1", "https://api.openai.com/v1", "api.openai.com", 443),
        ),
        (
            "openai://text-embedding-3-small?dimensions=256",
            ModelAddress("openai", "text-embedding-3-small", "https://api.openai.com/v1", "api.openai.com", 443, 256),
        ),
        (
            "openai+https://Models.Example:8443/v1/#meta-llama/Llama-3",
            ModelAddress("openai", "meta-llama/Llama-3", "https://models.example:8443/v1", "models.example", 8443),
        ),
        (
            "https://models.example/v1#m",
            ModelAddress("openai", "m", "https://models.example/v1", "models.example", 443),
        ),
        ("openai+http://127.0.0.1/v1#m", ModelAddress("openai", "m", "http://127.0.0.1/v1", "127.0.0.1", 80)),
        ("openai+http://[::1]:11434/v1#m", ModelAddress("openai", "m", "http://[::1]:11434/v1", "::1", 11434)),
    ],
)
def test_an_address_is_taken_apart(url: str, address: ModelAddress) -> None:
    assert parse_model_address(url) == address
    assert address.is_openai is (address.host == "api.openai.com")


@pytest.mark.parametrize(
    "url",
    [
        "", "gpt-5", "openai:", "openai://", "openai://m#x", "ftp://host/v1#m", "builtin://x", "builtin:///x#y",
        "openai+https://host/v1", "openai+https:///v1#m", "openai+https://host/v1#", "openai+https://host/v1#a b",
        "openai+https://host:99999/v1#m", "openai+https://host:port/v1#m", "openai+https://[::1/v1#m",
        "openai+https://user:hunter2@host/v1#m", "openai://hunter2@m", "openai+https://host/v1?api_key=hunter2#m",
        "openai://m?dimensions=0", "openai://m?dimensions=99999", "openai://m?dimensions=x", "openai://m?dimensions=٣",
        "openai://m?dimensions=1&key=hunter2", "openai://" + "m" * 3000, "openai://m\n", "openai://m\0",
        "openai+https://ho%73t/v1#m", "openai+https://\ud800/v1#m",
    ],
)  # fmt: skip
def test_a_bad_address_is_refused_with_a_reason_and_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        parse_model_address(url)
    assert "hunter2" not in raised.value.message("en") + raised.value.message("ja")


@pytest.mark.parametrize(
    "url", ["openai+https://169.254.169.254/v1#m", "openai+http://localhost:8080/v1#m", "https://2130706433/v1#m"]
)
def test_an_address_that_points_inside_is_refused_when_it_is_set(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_model_address(parse_model_address(url), EgressPolicy())


def test_a_key_does_not_travel_in_clear() -> None:
    address = parse_model_address("openai+http://models.example/v1#m")
    with pytest.raises(InvalidValue, match="in clear"):
        check_model_address(address, EgressPolicy())
    check_model_address(address, EgressPolicy(["models.example"]))


@pytest.mark.parametrize("url", ["builtin://", "openai://gpt-5", "openai+https://models.example/v1#m"])
def test_a_good_address_passes(url: str) -> None:
    check_model_address(parse_model_address(url), EgressPolicy())
