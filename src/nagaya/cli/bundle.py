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
    LANGGRAPH = "langgraph"
    MEM0 = "mem0"


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

    The keys of the tenant's accounts elsewhere, its sign-in, its audit log and its workspaces stay; a workspace has a
    bundle of its own. Servers may run on the folder meanwhile. With --url, --key is an administrator's of that tenant.
    """
    recipient: BundleRecipient | None = None
    if not resume:
        recipient = _passphrase(passphrase, twice=True) if to is None else _public(to)
    if place.url is not None:
        await _download(place, tenant_id, file, recipient)
        return
    from nagaya.wiring import Nagaya

    settings = place.settings()
    if settings.registry is None and not (settings.folder / "registry.db").exists():
        raise NoDataFolder(place=settings.folder)
    async with Nagaya.open(settings=settings) as nagaya:
        if recipient is None:
            done = await nagaya.bundles.resume(tenant_id, file)
        else:
            done = await nagaya.bundles.export(tenant_id, file, recipient)
    place.out.fields(msgspec.to_builtins(done))


async def _download(place: Place, tenant_id: str, file: Path, recipient: BundleRecipient | None) -> None:
    from nagaya.cli.bundle_download import download

    if place.key is None:
        raise typer.BadParameter("--url needs the API key of an administrator of the tenant: --key or NAGAYA_KEY")
    assert place.url is not None
    header = await download(place.url, place.key, tenant_id, file, recipient, language=place.out.language)
    place.out.fields({"bundle": header.bundle, "tenant": header.tenant, "signer": header.signer.hex()})


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
    aes_key: Annotated[
        str | None, typer.Option("--aes-key", metavar="env://NAME", help="langgraph: what its serializer sealed with")
    ] = None,
    conversations: Annotated[
        bool, typer.Option("--conversations", help="langgraph: the messages of threads become conversations too")
    ] = False,
    history: Annotated[
        Path | None, typer.Option("--history", metavar="FILE", help="mem0: the library's history.db")
    ] = None,
) -> None:
    """Make a new tenant from a bundle. It opens when everything has arrived and was compared, or not at all.

    With --from, FILE is another product's, and what is in it goes to --user in --tenant, which is there: openai, the
    conversations.json of a data export; langgraph, the database of a SqliteSaver; mem0, what get_all gives, as JSON
    (--user: whose those become that have no user_id). Each record is compared, and what was not taken is counted by
    kind. May be repeated.
    """
    place.only_here("tenant import")
    from nagaya.wiring import Nagaya

    if origin is not None:
        if tenant is None or (user is None and origin is not Origin.MEM0):
            raise typer.BadParameter("--from needs --tenant and --user")
        key = None if aes_key is None else _secret(aes_key)
        await _import_from(place, origin, file, tenant, user, key=key, conversations=conversations, history=history)
        return

    opener: BundleOpener = _passphrase(passphrase) if identity is None else _private(identity)
    said: dict[str, Any] = {"tier": tier, "models": model, "regions": region}
    said |= {"store": store, "blobs": blobs, "key_service": keys}
    brought = {field: value for field, value in said.items() if value}
    async with Nagaya.open(settings=place.settings()) as nagaya:
        done = await nagaya.bundles.import_(file, opener, tenant_id=as_id, signer=signer, name=name, **brought)
    place.out.fields(msgspec.to_builtins(done))


async def _import_from(
    place: Place,
    origin: Origin,
    file: Path,
    tenant: str,
    user: str | None,
    *,
    key: bytes | None,
    conversations: bool,
    history: Path | None,
) -> None:
    from nagaya.wiring import Nagaya

    content = b"" if origin is Origin.LANGGRAPH else _read(file)
    async with Nagaya.open(settings=place.settings()) as nagaya:
        # Memories belong to many users, and who keeps them for others is an administrator.
        role = "tenant_admin" if origin is Origin.MEM0 else "user"
        token = await nagaya.tenants.mint(tenant, user or "import", role)
        async with nagaya.session(await nagaya.enter(token)) as inside:
            done: msgspec.Struct
            if origin is Origin.OPENAI:
                from nagaya.integrations.openai_export import import_openai

                done = await import_openai(inside, content)
            elif origin is Origin.MEM0:
                from nagaya.integrations.mem0_export import import_mem0

                done = await import_mem0(inside, content, user=user, history=history)
            else:
                from nagaya.integrations.langgraph.sqlite_import import import_checkpoints

                done = await import_checkpoints(inside, file, key=key, conversations=conversations)
            place.out.fields(msgspec.to_builtins(done))


def _secret(reference: str) -> bytes:
    from nagaya.settings import read_reference

    return read_reference(reference).encode()


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
