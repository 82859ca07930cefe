"""One way to open every model, whoever's it is; and nothing of a vendor is loaded before it is wanted."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from nagaya.errors import AddressRefused, InvalidValue, MissingExtra, RegionRefused
from nagaya.models import address as addresses
from nagaya.models.address import check_model_address, parse_model_address
from nagaya.models.builtin import BuiltinModel
from nagaya.models.embeddings import BuiltinEmbeddings
from nagaya.models.model import Embeddings
from nagaya.models.openai_compatible import OpenAICompatibleEmbeddings
from nagaya.models.opening import open_embeddings, open_model
from nagaya.testing.models import ScriptedEmbeddings, ScriptedModel
from parts.aws import surroundings


async def test_every_kind_of_address_opens_and_closes_again() -> None:
    assert isinstance(await open_model("builtin://", surroundings(), api_key=None), BuiltinModel)
    for url, kind in (
        ("openai://gpt-5-mini", "OpenAICompatibleModel"),
        ("openai+https://models.example/v1#m", "OpenAICompatibleModel"),
        ("azure-openai://acme/gpt", "OpenAICompatibleModel"),
        ("bedrock://ap-northeast-1/acme.good", "BedrockModel"),
    ):
        model = await open_model(url, surroundings(), api_key="sk-x")
        assert type(model).__name__ == kind
        await model.close()
        await model.close()


async def test_embeddings_open_by_their_size() -> None:
    assert isinstance(await open_embeddings("builtin://", surroundings(), api_key=None), BuiltinEmbeddings)
    driver = await open_embeddings("openai://small?dimensions=8", surroundings(), api_key="sk-x")
    assert isinstance(driver, OpenAICompatibleEmbeddings)
    assert driver.dimensions == 8
    await Embeddings(driver).close()
    await Embeddings(ScriptedEmbeddings()).close()
    with pytest.raises(InvalidValue, match="dimensions"):
        await open_embeddings("openai://small", surroundings(), api_key=None)
    with pytest.raises(InvalidValue, match="embedding"):
        await open_model("openai://small?dimensions=8", surroundings(), api_key=None)


async def test_an_address_is_checked_again_when_it_is_opened() -> None:
    with pytest.raises(AddressRefused):
        await open_model("openai+https://169.254.169.254/v1#m", surroundings(), api_key=None)
    with pytest.raises(RegionRefused):
        await open_model("openai://gpt-5-mini", surroundings(regions=("japaneast",)), api_key=None)


async def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("nagaya.models.bedrock", "nagaya.clouds.aws"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiobotocore.config", None)
    with pytest.raises(MissingExtra, match=r"nagaya\[aws\]"):
        await open_model("bedrock://ap-northeast-1/m", surroundings(), api_key=None)


async def test_a_module_of_our_own_that_is_missing_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nagaya.models.bedrock", raising=False)
    monkeypatch.setitem(sys.modules, "nagaya.models.bedrock_body", None)
    with pytest.raises(ModuleNotFoundError):
        await open_model("bedrock://ap-northeast-1/m", surroundings(), api_key=None)
    monkeypatch.setitem(sys.modules, "nagaya.models.openai_compatible", None)
    with pytest.raises(ModuleNotFoundError):
        await open_model("openai://m", surroundings(), api_key=None)


async def opened_by_others(url: str, given: object) -> ScriptedModel:
    return ScriptedModel(name=url)


async def test_an_adapter_of_others_is_found_by_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = EntryPoint("parrot", f"{__name__}:opened_by_others", "nagaya.models")

    def entry_points(*, group: str, name: str = "parrot") -> EntryPoints:
        return EntryPoints([mine] if (group, name) == ("nagaya.models", "parrot") else [])

    monkeypatch.setattr(EntryPoint, "load", lambda self: opened_by_others)
    monkeypatch.setattr(addresses, "entry_points", entry_points)
    monkeypatch.setattr("nagaya.adapters.entry_points", entry_points)
    url = "parrot://grey?region=japaneast&colour=red"
    address = parse_model_address(url)
    assert (address.kind, address.region, address.account) == ("other", "japaneast", "")
    check_model_address(address, surroundings().egress)
    model = await open_model(url, surroundings(regions=("japaneast",)), api_key=None)
    assert model.name == url
    with pytest.raises(RegionRefused):
        await open_model("parrot://grey", surroundings(regions=("japaneast",)), api_key=None)
    with pytest.raises(InvalidValue):
        parse_model_address("parakeet://green")


def test_no_vendor_is_loaded_before_it_is_wanted() -> None:
    asked = "import sys, nagaya.models.opening; print([n for n in ('openai','azure','aiobotocore','botocore') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
