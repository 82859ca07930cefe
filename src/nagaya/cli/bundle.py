"""``nagaya tenant export`` and ``import``: a tenant into one sealed file, and such a file into a new tenant."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from nagaya.cli.place import Place, command
from nagaya.errors import BundleKeyRefused, InvalidValue, NoDataFolder

if TYPE_CHECKING:
    from nagaya.lifecycle.bundle_format import BundleOpener, BundleRecipient, Passphrase

_File = Annotated[Path, typer.Argument(metavar="FILE", help="The bundle")]
_Passphrase = Annotated[
    str | None, typer.Option("--passphrase", metavar="env://NAME", help="Where the passphrase is; asked for if neither")
]


class Origin(StrEnum):
    OPENAI = "openai"


def add_to(app: typer.Typer) -> None:
    """Register the commands in the group ``nagaya tenant``."""
    command(app, "export")(export)
    command(app, "import")(import_)


async def export(
    place: Place,
    tenant_id: Annotated[str, typer.Argument(metavar="ID", help="The tenant's id, or tenant/workspace")],
    file: _File,
    passphrase: _Passphrase = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="PEM", help="The X25519 public key of who alone may open it")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export that was interrupted")] = False,
) -> None:
    """Write everything of a tenant into one file, encrypted and signed.

    The keys of the tenant's accounts elsewhere, its settings, sign-in and audit log stay. Works on a data folder;
    servers may run on it meanwhile.
    """
    place.only_here("tenant export")
    from nagaya.wiring import Nagaya

    recipient: BundleRecipient | None = None
    if not resume:
        recipient = _passphrase(passphrase, twice=True) if to is None else _public(to)
    settings = place.settings()
    if settings.registry is None and not (settings.folder / "registry.db").exists():
        raise NoDataFolder(place=settings.folder)
    async with Nagaya.open(settings=settings) as nagaya:
        if recipient is None:
            done = await nagaya.bundles.resume(tenant_id, file)
        else:
            done = await nagaya.bundles.export(tenant_id, file, recipient)
    place.out.fields(msgspec.to_builtins(done))


async def import_(
    place: Place,
    file: _File,
    as_id: Annotated[
        str | None, typer.Option("--as", metavar="ID", help="The new tenant's id  [default: the one it had]")
    ] = None,
    passphrase: _Passphrase = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", metavar="PEM", help="The X25519 private key it was locked for")
    ] = None,
    signer: Annotated[
        str | None, typer.Option("--signer", metavar="HEX", help="Who must have signed it, as its export said")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The name that people read")] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="As for tenant create")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="URL", help="As for tenant create")] = None,
    region: Annotated[list[str] | None, typer.Option("--region", help="As for tenant create")] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URL", help="As for tenant create")] = None,
    blobs: Annotated[str | None, typer.Option("--blobs", metavar="URL", help="As for tenant create")] = None,
    keys: Annotated[str | None, typer.Option("--keys", metavar="URL", help="As for tenant create")] = None,
    origin: Annotated[
        Origin | None, typer.Option("--from", help="Another product's export, into a tenant that is there")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="ID", help="With --from: into which tenant")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="USER", help="With --from: whose it becomes")] = None,
) -> None:
    """Make a new tenant from a bundle. It opens when everything has arrived and was compared, or not at all.

    With --from openai, FILE is the conversations.json of an OpenAI data export; its conversations become those of
    --user in --tenant, compared one by one, and what was not taken is counted by kind. May be repeated.
    """
    place.only_here("tenant import")
    from nagaya.wiring import Nagaya

    if origin is not None:
        if tenant is None or user is None:
            raise typer.BadParameter("--from needs --tenant and --user")
        await _import_openai(place, file, tenant, user)
        return

    opener: BundleOpener = _passphrase(passphrase) if identity is None else _private(identity)
    said: dict[str, Any] = {"tier": tier, "models": model, "regions": region}
    said |= {"store": store, "blobs": blobs, "key_service": keys}
    brought = {field: value for field, value in said.items() if value}
    async with Nagaya.open(settings=place.settings()) as nagaya:
        done = await nagaya.bundles.import_(file, opener, tenant_id=as_id, signer=signer, name=name, **brought)
    place.out.fields(msgspec.to_builtins(done))


async def _import_openai(place: Place, file: Path, tenant: str, user: str) -> None:
    from nagaya.integrations.openai_export import import_openai
    from nagaya.wiring import Nagaya

    content = _read(file)
    async with Nagaya.open(settings=place.settings()) as nagaya:
        token = await nagaya.tenants.mint(tenant, user)
        async with nagaya.session(await nagaya.enter(token)) as inside:
            place.out.fields(msgspec.to_builtins(await import_openai(inside, content)))


def _passphrase(reference: str | None, *, twice: bool = False) -> Passphrase:
    from nagaya.lifecycle.bundle_format import Passphrase
    from nagaya.settings import read_reference

    if reference is not None:
        return Passphrase(read_reference(reference))
    if not sys.stdin.isatty():
        return Passphrase(sys.stdin.readline().rstrip("\n"))
    from getpass import getpass

    text = getpass("passphrase: ")
    if twice and getpass("again: ") != text:
        raise BundleKeyRefused("other")
    return Passphrase(text)


def _public(file: Path) -> BundleRecipient:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(file))
    except (ValueError, TypeError):
        raise BundleKeyRefused("form") from None
    if not isinstance(key, X25519PublicKey):
        raise BundleKeyRefused("form")
    return key


def _private(file: Path) -> BundleOpener:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(file), password=None)
    except (ValueError, TypeError):
        raise BundleKeyRefused("form") from None
    if not isinstance(key, X25519PrivateKey):
        raise BundleKeyRefused("form")
    return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as failed:
        raise InvalidValue(at=str(file), detail=failed.strerror or type(failed).__name__) from None
