"""What an operator does to a tenant's keys, tokens and issuers, over a real folder: what holds, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.context.items import Message
from nagaya.errors import (
    AddressRefused,
    InvalidValue,
    KeyDestroyed,
    KeyDisabled,
    KeyGone,
    NagayaError,
    NotFound,
    TokenRefused,
)
from nagaya.keys.keyring import new_version
from nagaya.keys.versions import KeyVersion
from nagaya.lifecycle import tenants
from nagaya.lifecycle.bundle_format import Passphrase
from nagaya.records.sealed_store import Partition
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding, Revocation
from nagaya.tenancy.changes import LONGEST_TOKEN_S
from nagaya.tenancy.principal import Provider, Role
from nagaya.wiring import Nagaya
from support.killed import killed_after_a_change

DIRECTORY = "6babcaad-604b-40ac-a9d7-9fd97c0b7777"
V2 = f"https://login.microsoftonline.com/{DIRECTORY}/v2.0"


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    settings = Settings(data=str(tmp_path / "data"), allowed_hosts=("10.0.0.9:8443", "keys.corp.example"))
    async with Nagaya.open(settings=settings) as opened:
        await opened.tenants.create("acme", name="Acme")
        yield opened


async def kept(nagaya: Nagaya, text: str) -> str:
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))) as tenant:
        chat = await tenant.conversations.create()
        await tenant.conversations.append(chat.id, Message.user(text))
        return chat.id


async def read(nagaya: Nagaya, chat: str) -> list[str]:
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))) as tenant:
        return [item.text for item in await tenant.conversations.items(chat) if isinstance(item, Message)]


# --- keys ---


async def test_a_key_that_is_gone_is_never_silently_replaced_by_a_rotation(nagaya: Nagaya, tmp_path: Path):
    chat = await kept(nagaya, "the roof")
    file = tmp_path / "data" / "keys" / "keys" / "acme.key"
    secret = file.read_bytes()
    file.unlink()
    before = await nagaya.registry.key_versions("acme")
    with pytest.raises(KeyGone, match="acme"):
        await nagaya.tenants.rotate_key("acme")
    assert not file.exists()
    assert await nagaya.registry.key_versions("acme") == before
    file.write_bytes(secret)
    file.chmod(0o600)
    assert len((await nagaya.tenants.rotate_key("acme")).versions) == 2
    assert await read(nagaya, chat) == ["the roof"]


async def test_another_key_in_the_place_of_a_tenants_key_does_not_rotate(nagaya: Nagaya, tmp_path: Path):
    file = tmp_path / "data" / "keys" / "keys" / "acme.key"
    file.write_bytes(b"\x07" * 32)
    with pytest.raises(KeyGone):
        await nagaya.tenants.rotate_key("acme")
    assert len(await nagaya.registry.key_versions("acme")) == 1


async def test_a_disabled_or_destroyed_key_does_not_rotate(nagaya: Nagaya):
    await nagaya.tenants.revoke_key("acme")
    with pytest.raises(KeyDisabled):
        await nagaya.tenants.rotate_key("acme")
    await nagaya.tenants.restore_key("acme")
    # As after a deletion that was cut off in its middle: the key service would still make a new key.
    await nagaya.registry.destroy_key_versions("acme")
    with pytest.raises(KeyDestroyed):
        await nagaya.tenants.rotate_key("acme")
    assert len(await nagaya.registry.key_versions("acme")) == 1
    with pytest.raises(NotFound):
        await nagaya.tenants.rotate_key("nobody")


# --- revocations ---


async def test_a_rotation_beside_a_deletion_leaves_no_living_key(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch):
    async def made(*given: Any, **more: Any) -> KeyVersion:
        version = await new_version(*given, **more)
        await nagaya.tenants.delete("acme")
        return version

    monkeypatch.setattr(tenants, "new_version", made)
    with pytest.raises(KeyDestroyed):
        await nagaya.tenants.rotate_key("acme")
    assert not any(version.wrapped for version in await nagaya.registry.key_versions("acme"))


async def test_the_platform_keeps_nothing_that_opens_or_names_what_was_deleted(nagaya: Nagaya, tmp_path: Path):
    await nagaya.tenants.create("globex", name="Globex")
    for name in ("acme", "globex"):
        for user in ("mio", "ren"):
            entrance = await nagaya.gate.enter(await nagaya.tenants.mint(name, user), purpose="login")
            await nagaya.sign_in.begin(entrance)
        token = await nagaya.tenants.mint(name, "mio", "tenant_admin")
        async with nagaya.session(await nagaya.enter(token)) as tenant:
            sent = await nagaya.bundles.send(tenant.session, Passphrase("a long passphrase of it"))
            await sent.pieces.aclose()

    async def kept(partition: Partition) -> int:
        return len(await nagaya._platform.query(partition, limit=100))

    unfinished = Partition("bundle", "unfinished")
    assert (await kept(Partition("session", "acme")), await kept(unfinished)) == (2, 2)
    await nagaya.tenants.delete("acme")
    assert (await kept(Partition("session", "acme")), await kept(unfinished)) == (0, 1)
    assert await kept(Partition("session", "globex")) == 2
    await nagaya.tenants.delete("globex")
    assert await kept(unfinished) == 0


@pytest.fixture
def revoked(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch) -> list[Revocation]:
    made: list[Revocation] = []
    really = nagaya.registry.revoke

    async def revoke(revocation: Revocation) -> None:
        made.append(revocation)
        await really(revocation)

    monkeypatch.setattr(nagaya.registry, "revoke", revoke)
    return made


async def test_a_revocation_is_kept_as_long_as_any_token_it_refuses_may_live(nagaya: Nagaya, revoked: list[Revocation]):
    for subject in ({"user": "mio"}, {"session": "s-1"}, {"token": "j-1"}):
        # Also where the tenant allows no long tokens today: tomorrow it may, and a token asks only for its own end.
        await nagaya.tenants.revoke_tokens("acme", **subject)
    await nagaya.tenants.change("acme", {"max_token_lifetime_s": LONGEST_TOKEN_S})
    await nagaya.tenants.revoke_tokens("acme", user="ren")
    assert [each.kind for each in revoked] == ["user", "session", "token", "user"]
    for each in revoked:
        assert each.expires_at_us >= nagaya.clock.now_us() + LONGEST_TOKEN_S * 1_000_000
    with pytest.raises(InvalidValue):
        await nagaya.tenants.change("acme", {"max_token_lifetime_s": LONGEST_TOKEN_S + 1})


@pytest.mark.parametrize("whole", [True, False], ids=["the token itself", "its id"])
async def test_one_token_is_refused_and_no_other_of_its_user(nagaya: Nagaya, whole: bool):
    lost, other = [await nagaya.tenants.mint("acme", "mio") for _ in range(2)]
    entrance = await nagaya.enter(lost)
    token_id = entrance.principal.token_id
    assert token_id is not None
    assert await nagaya.tenants.revoke_tokens("acme", token=lost if whole else token_id) == (token_id,)
    assert not nagaya.gate.is_current(entrance)
    with pytest.raises(TokenRefused):
        await nagaya.enter(lost)
    await nagaya.enter(other)
    await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
    await nagaya.audit.flush()
    entries = await nagaya.audit.read("acme", limit=1000)
    assert [entry.target for entry in entries if entry.action == "token.revoke"] == [token_id]
    assert all(lost not in str(entry) for entry in entries)


@pytest.mark.parametrize("whole", [True, False])
async def test_an_api_key_named_as_a_token_is_refused_for_good(nagaya: Nagaya, whole: bool):
    issued = await nagaya.tenants.create_api_key("acme", name="k", user="bot")
    await nagaya.enter(issued.api_key)
    named = issued.api_key if whole else issued.key_id
    assert await nagaya.tenants.revoke_tokens("acme", token=named) == (issued.key_id,)
    with pytest.raises(TokenRefused):
        await nagaya.enter(issued.api_key)
    # Not by a list that is shortened one day: a key may live for ten years.
    assert (await nagaya.tenants.api_keys("acme"))[0].revoked_at_us is not None


async def test_what_an_api_key_began_ends_with_it_where_the_process_ends_in_the_middle(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
):
    issued = await nagaya.tenants.create_api_key("acme", name="k", user="mio")
    entrance = await nagaya.enter(issued.api_key)
    with killed_after_a_change(nagaya, monkeypatch):
        await nagaya.tenants.revoke_api_key(issued.key_id, tenant_id="acme")
    assert not nagaya.gate.is_current(entrance)
    with pytest.raises(TokenRefused):
        await nagaya.enter(issued.api_key)


@pytest.mark.parametrize("token", ["", "\n", "x" * 501, "eyJhbGciOiJub25lIn0.e30.AA" + "A" * 600])
async def test_what_is_no_token_and_no_id_is_not_revoked(nagaya: Nagaya, revoked: list[Revocation], token: str):
    with pytest.raises(InvalidValue):
        await nagaya.tenants.revoke_tokens("acme", token=token)
    assert revoked == []


async def test_a_user_whose_id_could_not_be_revoked_gets_no_token(nagaya: Nagaya):
    await nagaya.tenants.mint("acme", "x" * 500)
    await nagaya.tenants.revoke_tokens("acme", user="x" * 500)
    with pytest.raises(InvalidValue):
        await nagaya.tenants.mint("acme", "x" * 501)


# --- issuers ---


def binding(**fields: Any) -> IssuerBinding:
    plain: dict[str, Any] = {
        "tenant_id": "acme", "issuer": "https://idp.example", "provider": Provider.OIDC, "audiences": ("api",),
        "jwks_url": "https://idp.example/keys",
    }  # fmt: skip
    return IssuerBinding(**(plain | fields))


ENTRA = {"provider": Provider.ENTRA, "issuer": V2, "directory": DIRECTORY}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"algorithms": ("ES256", "EdDSA", "Ed25519", "PS256", "RS256"), "required_scope": "chat"},
        {"provider": Provider.COGNITO, "role_claims": {"staff": Role.MEMBER}},
        ENTRA,
        {**ENTRA, "issuer": f"https://sts.windows.net/{DIRECTORY}/"},
        {"jwks_url": "http://127.0.0.1:8080/keys"},
        {"jwks_url": "https://10.0.0.9:8443/keys"},
        {"jwks_url": "http://keys.corp.example/keys"},
    ],
)
async def test_a_binding_that_tokens_can_match_is_made(nagaya: Nagaya, fields: dict[str, Any]):
    await nagaya.tenants.bind_issuer(binding(**fields))
    assert await nagaya.tenants.issuers("acme") == (binding(**fields),)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"provider": Provider.LOCAL}, "cognito, entra or oidc"),
        ({"provider": Provider.API_KEY}, "cognito, entra or oidc"),
        ({"issuer": "https://nagaya.local/acme"}, "this platform's own"),
        ({"issuer": "https://idp.example\n"}, "printable"),
        ({"issuer": ""}, "1 to 500"),
        ({"issuer": "https://idp.example#mio"}, "fragment"),
        ({"audiences": ()}, "client id"),
        ({"audiences": ("",)}, "1 to 500"),
        ({"audiences": ("api", "\0")}, "printable"),
        ({"algorithms": ()}, "at least one"),
        ({"algorithms": ("HS256",)}, "RS256, PS256, ES256"),
        ({"algorithms": ("RS256", "none")}, "RS256, PS256, ES256"),
        ({"provider": Provider.COGNITO, "algorithms": ("ES256",)}, "Cognito.*RS256"),
        ({**ENTRA, "algorithms": ("PS256",)}, "Entra.*RS256"),
        ({**ENTRA, "directory": None}, "`tid`"),
        ({**ENTRA, "directory": "common"}, "`tid`"),
        ({**ENTRA, "directory": DIRECTORY.upper()}, "`tid`"),
        ({**ENTRA, "issuer": V2 + "/"}, "no other"),
        ({**ENTRA, "issuer": "https://login.microsoftonline.com/common/v2.0"}, "no other"),
        ({"directory": DIRECTORY}, "only Entra"),
        ({"required_scope": ""}, "1 to 500"),
        ({"required_scope": "chat read"}, "one scope"),
        ({"default_role": Role.OPERATOR}, "operators"),
        ({"role_claims": {"boss": Role.OPERATOR}}, "operators"),
        ({"role_claims": {"": Role.MEMBER}}, "1 to 500"),
        ({"jwks_url": "http://idp.example/keys"}, "over https"),
        ({"jwks_url": "ftp://idp.example/keys"}, "https://"),
        ({"jwks_url": "idp.example/keys"}, "https://"),
        ({"jwks_url": "https://u:p@idp.example/keys"}, "password"),
        ({"jwks_url": "http://10.0.0.1/keys"}, "over https"),
        ({"jwks_url": "https://10.0.0.1/keys"}, "points inside"),
        ({"jwks_url": "https://169.254.169.254/latest"}, "points inside"),
        ({"jwks_url": "https://2852039166/latest"}, "points inside"),
        ({"jwks_url": "https://metadata.google.internal/"}, "points inside"),
        ({"jwks_url": "https://[fe80::1]/keys"}, "points inside"),
    ],
)
async def test_a_binding_that_could_never_let_anybody_in_is_refused_with_the_rule(
    nagaya: Nagaya, fields: dict[str, Any], rule: str
):
    with pytest.raises(NagayaError, match=rule) as refused:
        await nagaya.tenants.bind_issuer(binding(**fields))
    assert isinstance(refused.value, InvalidValue | AddressRefused)
    assert refused.value.status == 400
    assert await nagaya.tenants.issuers("acme") == ()
