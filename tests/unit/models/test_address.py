"""Model addresses: one clear form each, and never a secret in one."""

from __future__ import annotations

import pytest

from nagaya.errors import AddressRefused, InvalidValue, RegionRefused
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
        (
            "openai+https://models.example/v1?region=Tokyo#m",
            ModelAddress("openai", "m", "https://models.example/v1", "models.example", 443, region="tokyo"),
        ),
        (
            "azure-openai://acme-jp/gpt-here",
            ModelAddress(
                "azure-openai",
                "gpt-here",
                "https://acme-jp.openai.azure.com",
                "acme-jp.openai.azure.com",
                443,
                api_version="2024-10-21",
            ),
        ),
        (
            "azure-openai://acme.openai.azure.cn:444/e/?region=Japan%20East&dimensions=8&api-version=2025-04-01-preview",
            ModelAddress(
                "azure-openai",
                "e",
                "https://acme.openai.azure.cn:444",
                "acme.openai.azure.cn",
                444,
                8,
                "japaneast",
                "2025-04-01-preview",
            ),
        ),
        (
            "azure-openai+http://[::1]:8080/gpt",
            ModelAddress(
                "azure-openai",
                "gpt",
                "http://[::1]:8080",
                "::1",
                8080,
                api_version="2024-10-21",
            ),
        ),
        (
            "bedrock://ap-northeast-1/amazon.nova-lite-v1:0",
            ModelAddress(
                "bedrock",
                "amazon.nova-lite-v1:0",
                "",
                "bedrock-runtime.ap-northeast-1.amazonaws.com",
                443,
                region="ap-northeast-1",
            ),
        ),
        (
            "bedrock://cn-north-1/amazon.titan-embed-text-v2:0?dimensions=1024",
            ModelAddress(
                "bedrock",
                "amazon.titan-embed-text-v2:0",
                "",
                "bedrock-runtime.cn-north-1.amazonaws.com.cn",
                443,
                1024,
                "cn-north-1",
            ),
        ),
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
        "openai://m?region=", "openai://m?region=a/b", "openai://m?region=a&region=b", "openai://m?api-version=2024-10-21",
        "azure-openai://acme", "azure-openai:///gpt", "azure-openai://acme/gpt/4", "azure-openai://acme/g%20pt",
        "azure-openai://acme/gpt#m", "azure-openai://acme:443/gpt", "azure-openai://-acme/gpt", "azure-openai://a_b/gpt",
        "azure-openai://acme/gpt?api-version=latest", "azure-openai://acme/gpt?api-version=2024-10-21&key=hunter2",
        "azure-openai://acme/gpt?dimensions=x", "azure-openai://hunter2@acme/gpt",
        "bedrock://ap-northeast-1", "bedrock:///m", "bedrock://tokyo/m", "bedrock://ap-northeast-1:443/m",
        "bedrock://ap-northeast-1/m#x", "bedrock://ap-northeast-1//m", "bedrock://ap-northeast-1/m?region=eu-west-1",
        "bedrock://ap-northeast-1/arn:aws:s3:::bucket", "bedrock://ap-northeast-1/arn:aws:bedrock:x",
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


@pytest.mark.parametrize(
    ("url", "account"),
    [
        ("builtin://", ""),
        ("openai://gpt-5", "api.openai.com:443"),
        ("openai+https://models.example:8443/v1#m", "models.example:8443"),
        ("azure-openai://acme/gpt", "acme.openai.azure.com:443"),
        ("bedrock://ap-northeast-1/m", ""),
    ],
)
def test_a_key_belongs_to_one_host_and_bedrock_takes_none(url: str, account: str) -> None:
    assert parse_model_address(url).account == account


PROFILE_ARN = "arn:aws:bedrock:ap-northeast-1:123456789012:inference-profile/jp.acme.good"
APPLICATION_ARN = "arn:aws:bedrock:ap-northeast-1:123456789012:application-inference-profile/a1b2"
MODEL_ARN = "arn:aws:bedrock:{}::foundation-model/acme.good"


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("builtin://", None),
        ("openai://gpt-5", "unknown"),
        ("openai://gpt-5?region=us", "us"),
        ("openai+https://models.example/v1?region=ap-northeast-1#m", None),
        ("azure-openai://acme/gpt", "unknown"),
        ("azure-openai://acme/gpt?region=ap-northeast-1", None),
        ("bedrock://ap-northeast-1/acme.good", None),
        ("bedrock://us-east-1/acme.good", "us-east-1"),
        # A profile may have the call answered in another region than the one that it is made in.
        ("bedrock://ap-northeast-1/jp.acme.good", None),
        ("bedrock://ap-northeast-1/au.acme.good", "ap-southeast-2"),
        ("bedrock://ap-northeast-1/apac.acme.good", "all of apac"),
        ("bedrock://ap-northeast-1/global.acme.good", "all of global"),
        ("bedrock://ap-northeast-1/zz.acme.good", "all of zz"),
        (f"bedrock://ap-northeast-1/{PROFILE_ARN}", None),
        (f"bedrock://ap-northeast-1/{APPLICATION_ARN}", "all of a1b2"),
        (f"bedrock://ap-northeast-1/{MODEL_ARN.format('ap-northeast-1')}", None),
        (f"bedrock://ap-northeast-1/{MODEL_ARN.format('us-east-1')}", "us-east-1"),
    ],
)
def test_a_tenant_pinned_to_regions_gets_only_what_is_known_to_answer_there(url: str, refused: str | None) -> None:
    address = parse_model_address(url)
    check_model_address(address, EgressPolicy())
    if refused is None:
        check_model_address(address, EgressPolicy(), ("ap-northeast-1", "ap-northeast-3"))
        return
    with pytest.raises(RegionRefused, match=f"'{refused}'"):
        check_model_address(address, EgressPolicy(), ("ap-northeast-1", "ap-northeast-3"))


@pytest.mark.parametrize("url", ["azure-openai://169.254.169.254/gpt", "azure-openai://x.internal/gpt"])
def test_a_resource_that_points_inside_is_refused_when_it_is_set(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_model_address(parse_model_address(url), EgressPolicy())


def test_a_key_of_azure_does_not_travel_in_clear() -> None:
    with pytest.raises(InvalidValue, match="in clear"):
        check_model_address(parse_model_address("azure-openai+http://models.example/gpt"), EgressPolicy())
