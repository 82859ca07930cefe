"""Tenants and bindings as rows: to and from, and the statements that need more than one line. Each function works
inside the caller's transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, delete, func, insert, or_, select, update

from nagaya.errors import (
    Conflict,
    InvalidValue,
    KeyDestroyed,
    NotFound,
    RegistryDamaged,
    RegistryNotReady,
    TenantExists,
    TenantLookAlike,
    TenantNotOpen,
)
from nagaya.keys.versions import KeyVersion, KeyVersionState
from nagaya.tenancy import schema
from nagaya.tenancy.bell import CHANNEL
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Member, Revocation
from nagaya.tenancy.changes import check_within
from nagaya.tenancy.names import skeleton
from nagaya.tenancy.principal import Role
from nagaya.tenancy.tenant import OPEN_STATES, Tenant, TenantState

S = TypeVar("S", bound=msgspec.Struct)

NOBODY: Final = "-"
"""Whose host a name is that no tenant has, and in whose name is noted what counts as added; no tenant's id looks like
this."""

MOST_WORKSPACES: Final = 1_000
"""In one tenant: its administrator makes them without asking an operator."""

WORKSPACES_SINCE: Final = 2
"""The release that must be the oldest running for workspaces to be made: those before do not ask for the tenant."""

_SOURCE_GONE_US: Final = 7 * 86_400 * 1_000_000
_SHA256_BYTES: Final = 32
_GIVEN_UP: Final = b"given up "
"""Before the hash of the maker's token, once it undoes what it made."""

_ENDING: Final = frozenset({TenantState.OFFBOARDING.value, TenantState.DELETED.value})
_JSON = frozenset({"models", "regions", "hosts", "audiences", "algorithms", "role_claims", "scopes"})


class ChangeNote(NamedTuple):
    """That something of a tenant changed (None: of the platform), and what: ``tenant``, ``deleted``, ``issuers``,
    ``api_keys``, ``members``, ``keys``, ``revocations``. ``subject`` is the issuer, the API key's id or the member."""

    tenant_id: str | None
    kind: str
    subject: str = ""


class Numbered(NamedTuple):
    """A change and its number."""

    serial: int
    note: ChangeNote


def storable(text: str, limit: int) -> bool:
    """Whether a text can be in the registry at all: not too long, no NUL (PostgreSQL), no lone surrogate."""
    return len(text) <= limit and "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def require_storable(at: str, text: str, limit: int) -> None:
    """Raise ``InvalidValue`` unless the text has 1 to ``limit`` characters that a database can hold."""
    if not text or not storable(text, limit):
        raise InvalidValue(param=at, at=at, detail=f"it has 1 to {limit} characters, none of them NUL")


def to_row(thing: msgspec.Struct) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(thing, builtin_types=(bytes,))
    return {
        name: msgspec.json.encode(value).decode() if name in _JSON and value is not None else value
        for name, value in row.items()
    }


def from_row(row: RowMapping, kind: type[S], place: str) -> S:
    """The object in a row. Raises ``RegistryDamaged`` where it holds no such thing."""
    try:
        fields = {
            name: msgspec.json.decode(row[name]) if name in _JSON else row[name] for name in kind.__struct_fields__
        }
        return msgspec.convert(fields, kind, strict=False)
    except (msgspec.MsgspecError, TypeError) as wrong:
        raise RegistryDamaged(place=place) from wrong


# --- changes ---------------------------------------------------------------------------------------------------


def note_change(connection: Connection, note: ChangeNote, now_us: int) -> Numbered:
    """Number a change and record it. The update's lock is what puts serials in the order of the commits."""
    table = schema.registry
    connection.execute(update(table).values(serial=table.c.serial + 1))
    serial: int = (connection.execute(select(table.c.serial))).scalar_one()
    connection.execute(insert(schema.changes).values(serial=serial, at_us=now_us, **note._asdict()))
    if connection.dialect.name == "postgresql":
        # Told at the commit, never before, to every server that listens.
        connection.execute(select(func.pg_notify(CHANNEL, str(serial))))
    return Numbered(serial, note)


def changes_after(connection: Connection, serial: int) -> tuple[int, Sequence[ChangeNote] | None]:
    """The newest serial and the changes since ``serial``, or None for them where some are no longer recorded."""
    newest: int = (connection.execute(select(schema.registry.c.serial))).scalar_one()
    if newest == serial:
        return newest, ()
    table = schema.changes
    found = connection.execute(
        select(table.c.tenant_id, table.c.kind, table.c.subject)
        .where(table.c.serial > serial, table.c.serial <= newest)
        .order_by(table.c.serial)
    )
    notes = [ChangeNote(*row) for row in found]
    return newest, notes if len(notes) == newest - serial else None


def forget_old(connection: Connection, *, changes_before_us: int, revocations_before_us: int) -> None:
    """Drop changes that every running process has seen, and revocations of tokens that have ended."""
    connection.execute(delete(schema.changes).where(schema.changes.c.at_us < changes_before_us))
    connection.execute(delete(schema.revocations).where(schema.revocations.c.expires_at_us < revocations_before_us))


def anything_old(connection: Connection, *, changes_before_us: int, revocations_before_us: int) -> bool:
    changes, revocations = schema.changes, schema.revocations
    for old in (
        select(changes.c.serial).where(changes.c.at_us < changes_before_us),
        select(revocations.c.subject).where(revocations.c.expires_at_us < revocations_before_us),
    ):
        if (connection.execute(old.limit(1))).first() is not None:
            return True
    return False


# --- tenants ---------------------------------------------------------------------------------------------------


def find_tenant(connection: Connection, tenant_id: str, place: str) -> Tenant | None:
    """The tenant, or None where there is none or it is deleted."""
    table = schema.tenants
    row = (
        connection.execute(select(table).where(table.c.id == tenant_id, table.c.state != TenantState.DELETED.value))
    ).first()
    return None if row is None else from_row(row._mapping, Tenant, place)


def is_ending(connection: Connection, tenant_id: str) -> bool:
    """Whether the tenant is being deleted, or is none any more."""
    state = connection.execute(select(schema.tenants.c.state).where(schema.tenants.c.id == tenant_id)).scalar()
    return state is None or state in _ENDING


def require_tenant(connection: Connection, tenant_id: str, place: str) -> Tenant:
    tenant = find_tenant(connection, tenant_id, place) if storable(tenant_id, 63) else None
    if tenant is None:
        raise NotFound("tenant")
    return tenant


def refuse_taken(connection: Connection, tenant: Tenant) -> None:
    """Raise ``TenantExists`` or ``TenantLookAlike``; a deleted tenant's id stays taken for ever."""
    table = schema.tenants
    taken = connection.execute(select(table.c.id, table.c.workspace).where(table.c.skeleton == skeleton_of(tenant)))
    other = taken.one_or_none()
    if other is None:
        return
    if other.id == tenant.id:
        raise TenantExists(value=tenant.address)
    raise TenantLookAlike(
        value=tenant.address, other=other.id if tenant.parent is None else f"{tenant.parent}/{other.workspace}"
    )


def skeleton_of(tenant: Tenant) -> str:
    """What must be unique: a workspace is mistaken for others of its tenant alone. No tenant's has a slash."""
    return skeleton(tenant.id) if tenant.parent is None else f"{tenant.parent}/{skeleton(tenant.workspace or '')}"


def require_parent(connection: Connection, tenant: Tenant, place: str) -> None:
    """Raise unless the tenant that a new workspace is to lie in is there, is one, is not about to end, and has room."""
    if tenant.parent is None:
        return
    parent = require_tenant(connection, tenant.parent, place)
    if parent.parent is not None:
        raise NotFound("tenant")
    if parent.state not in OPEN_STATES:
        raise TenantNotOpen(state=parent.state.value)
    check_within(parent.regions, tenant.regions)
    if (connection.execute(select(schema.registry.c.version))).scalar_one() < WORKSPACES_SINCE:
        raise RegistryNotReady
    table = schema.tenants
    inside = (table.c.parent == parent.id) & (table.c.state != TenantState.DELETED.value)
    if connection.execute(select(func.count()).where(inside)).scalar_one() >= MOST_WORKSPACES:
        raise InvalidValue(param="id", at="id", detail=f"a tenant has at most {MOST_WORKSPACES} workspaces")


def insert_tenant(connection: Connection, tenant: Tenant, token: bytes | None) -> None:
    connection.execute(
        insert(schema.tenants).values(
            **to_row(tenant),
            skeleton=skeleton_of(tenant),
            onboarding_sha256=None if token is None else hashlib.sha256(token).digest(),
        )
    )
    put_hosts(connection, tenant)


def find_host_owner(connection: Connection, host: str) -> str:
    """The tenant that has a host name, or ``NOBODY``: an answer that is worth remembering too."""
    table = schema.tenant_hosts
    found = (connection.execute(select(table.c.tenant_id).where(table.c.host == host))).scalar()
    return NOBODY if found is None else str(found)


def put_hosts(connection: Connection, tenant: Tenant) -> None:
    """Make the tenant's host names its own. Raises ``InvalidValue`` where another tenant has one."""
    table = schema.tenant_hosts
    connection.execute(delete(table).where(table.c.tenant_id == tenant.id))
    if not tenant.hosts:
        return
    taken = (connection.execute(select(table.c.host).where(table.c.host.in_(tenant.hosts)))).scalars().first()
    if taken is not None:
        raise InvalidValue(param="hosts", at="hosts", detail=f"{taken} belongs to another tenant")
    connection.execute(insert(table), [{"host": host, "tenant_id": tenant.id} for host in tenant.hosts])


def replace_tenant(connection: Connection, old: Tenant, new: Tenant) -> None:
    """Write ``new`` over exactly ``old``. Raises ``Conflict`` where somebody else changed it meanwhile."""
    table = schema.tenants
    values = to_row(new)
    if new.state.value in _ENDING:
        # A maker that is still at work finds by its token what became of the tenant, and removes what it made; one that
        # is undoing its work has no more say in the row.
        token = table.c.onboarding_sha256
        values["onboarding_sha256"] = case((func.length(token) > _SHA256_BYTES, None), else_=token)
    elif new.state is not TenantState.ONBOARDING:
        values["onboarding_sha256"] = None
    done = connection.execute(update(table).where(table.c.id == old.id, table.c.epoch == old.epoch).values(**values))
    if done.rowcount != 1:
        raise Conflict
    if new.hosts != old.hosts:
        put_hosts(connection, new)
    if new.regions != old.regions:
        _require_nested(connection, new)


def _require_nested(connection: Connection, tenant: Tenant) -> None:
    """Raise ``InvalidValue`` unless workspaces lie in the regions of their tenant, now that these are other ones."""
    table = schema.tenants
    around = select(table.c.regions).where(table.c.id == tenant.parent)
    inside = select(table.c.regions).where(table.c.parent == tenant.id, table.c.state != TenantState.DELETED.value)
    for regions in connection.execute(around).scalars():
        check_within(msgspec.json.decode(regions), tenant.regions)
    for regions in connection.execute(inside).scalars():
        check_within(tenant.regions, msgspec.json.decode(regions))


def raise_epoch(connection: Connection, tenant_id: str | None) -> None:
    table = schema.tenants
    connection.execute(update(table).where(table.c.id == tenant_id).values(epoch=table.c.epoch + 1))


def clear_bindings(connection: Connection, tenant_id: str, now_us: int) -> None:
    """Take from a tenant that ends its host names, its issuers, its members, and the validity of its API keys."""
    keys, members = schema.api_keys, schema.workspace_members
    connection.execute(delete(members).where(members.c.workspace_id == tenant_id))
    connection.execute(delete(schema.tenant_hosts).where(schema.tenant_hosts.c.tenant_id == tenant_id))
    connection.execute(delete(schema.issuers).where(schema.issuers.c.tenant_id == tenant_id))
    connection.execute(
        update(keys).where(keys.c.tenant_id == tenant_id, keys.c.revoked_at_us.is_(None)).values(revoked_at_us=now_us)
    )


def _onboarding(tenant_id: str, token: bytes) -> tuple[ColumnElement[bool], ...]:
    table = schema.tenants
    return (
        table.c.id == tenant_id,
        table.c.state == TenantState.ONBOARDING.value,
        table.c.onboarding_sha256 == hashlib.sha256(token).digest(),
    )


def has_onboarding(connection: Connection, tenant_id: str, token: bytes) -> bool:
    """Whether a tenant is still being made and ``token`` is its maker's."""
    found = connection.execute(select(schema.tenants.c.id).where(*_onboarding(tenant_id, token)))
    return found.first() is not None


def give_up_onboarding(connection: Connection, tenant_id: str, token: bytes) -> bool:
    """Shut a tenant that is still being made, if ``token`` is its maker's: it never opens, and its id stays taken until
    :func:`delete_onboarding`. True also where it was given up, or its deletion begun, before."""
    table, mine = schema.tenants, hashlib.sha256(token).digest()
    done = connection.execute(
        update(table)
        .where(*_onboarding(tenant_id, token))
        .values(state=TenantState.OFFBOARDING.value, epoch=table.c.epoch + 1, onboarding_sha256=_GIVEN_UP + mine)
    )
    if done.rowcount == 1:
        connection.execute(delete(schema.key_versions).where(schema.key_versions.c.room == tenant_id))
        return True
    ended = select(table.c.id).where(
        table.c.id == tenant_id, table.c.state.in_(_ENDING), table.c.onboarding_sha256.in_((mine, _GIVEN_UP + mine))
    )
    return connection.execute(ended).first() is not None


def delete_onboarding(connection: Connection, tenant_id: str, token: bytes) -> bool:
    """Remove a tenant that is still being made, or was given up, if ``token`` is its maker's."""
    table = schema.tenants
    given_up = and_(
        table.c.id == tenant_id,
        table.c.state == TenantState.OFFBOARDING.value,
        table.c.onboarding_sha256 == _GIVEN_UP + hashlib.sha256(token).digest(),
    )
    done = connection.execute(delete(table).where(or_(and_(*_onboarding(tenant_id, token)), given_up)))
    if done.rowcount != 1:
        return False
    connection.execute(delete(schema.key_versions).where(schema.key_versions.c.room == tenant_id))
    return True


# --- bindings --------------------------------------------------------------------------------------------------


def find_issuers(connection: Connection, place: str, **where: str) -> tuple[IssuerBinding, ...]:
    table = schema.issuers
    found = connection.execute(select(table).filter_by(**where).order_by(table.c.issuer, table.c.tenant_id))
    return tuple(from_row(row._mapping, IssuerBinding, place) for row in found)


def put_issuer(connection: Connection, binding: IssuerBinding) -> None:
    """Record or replace a binding. Raises ``Conflict`` where another tenant has (issuer, audience)."""
    table, audiences = schema.issuers, schema.issuer_audiences
    same = (table.c.issuer == binding.issuer) & (table.c.tenant_id == binding.tenant_id)
    connection.execute(
        delete(audiences).where(audiences.c.issuer == binding.issuer, audiences.c.tenant_id == binding.tenant_id)
    )
    connection.execute(delete(table).where(same))
    taken = connection.execute(
        select(audiences.c.audience).where(
            audiences.c.issuer == binding.issuer, audiences.c.audience.in_(binding.audiences)
        )
    )
    if taken.first() is not None:
        raise Conflict(param="audiences")
    connection.execute(insert(table).values(**to_row(binding)))
    connection.execute(
        insert(audiences),
        [
            {"issuer": binding.issuer, "audience": audience, "tenant_id": binding.tenant_id}
            for audience in binding.audiences
        ],
    )


def find_api_key(connection: Connection, key_id: str, place: str) -> ApiKeyRecord | None:
    row = (connection.execute(select(schema.api_keys).where(schema.api_keys.c.key_id == key_id))).first()
    return None if row is None else from_row(row._mapping, ApiKeyRecord, place)


def find_api_keys(connection: Connection, tenant_id: str | None, place: str) -> Sequence[ApiKeyRecord]:
    table = schema.api_keys
    # `== None` is IS NULL to SQLAlchemy: the operators' own keys.
    found = connection.execute(select(table).where(table.c.tenant_id == tenant_id).order_by(table.c.key_id))
    return [from_row(row._mapping, ApiKeyRecord, place) for row in found]


def revoke_api_key(connection: Connection, key_id: str, tenant_id: str | None, now_us: int) -> None:
    table = schema.api_keys
    mine = (table.c.key_id == key_id) & (table.c.tenant_id == tenant_id)
    if (connection.execute(select(table.c.key_id).where(mine))).first() is None:
        raise NotFound("api key")
    connection.execute(update(table).where(mine, table.c.revoked_at_us.is_(None)).values(revoked_at_us=now_us))


def revoke_keys_of(connection: Connection, tenant_id: str, user_id: str, now_us: int) -> list[str]:
    """Revoke the API keys that speak for a user; gives their ids."""
    table = schema.api_keys
    theirs = (table.c.tenant_id == tenant_id) & (table.c.user_id == user_id) & table.c.revoked_at_us.is_(None)
    found = list(connection.execute(select(table.c.key_id).where(theirs).order_by(table.c.key_id)).scalars())
    connection.execute(update(table).where(theirs).values(revoked_at_us=now_us))
    return found


def find_revocations(
    connection: Connection, place: str, *, tenant_ids: Sequence[str] | None = None
) -> Sequence[Revocation]:
    """Revocations of these tenants, or of all."""
    table = schema.revocations
    query = select(table)
    if tenant_ids is not None:
        query = query.where(table.c.tenant_id.in_(tenant_ids))
    return [from_row(row._mapping, Revocation, place) for row in connection.execute(query)]


# --- workspaces ------------------------------------------------------------------------------------------------


def find_workspaces(connection: Connection, tenant_id: str, place: str) -> Sequence[Tenant]:
    """The workspaces of a tenant by name, the deleted ones left out."""
    table = schema.tenants
    found = connection.execute(
        select(table)
        .where(table.c.parent == tenant_id, table.c.state != TenantState.DELETED.value)
        .order_by(table.c.workspace)
    )
    return [from_row(row._mapping, Tenant, place) for row in found]


def find_members(connection: Connection, place: str, **where: str) -> Sequence[Member]:
    table = schema.workspace_members
    found = connection.execute(select(table).filter_by(**where).order_by(table.c.workspace_id, table.c.user))
    return [from_row(row._mapping, Member, place) for row in found]


def put_member(connection: Connection, member: Member, place: str) -> None:
    """Make somebody a member, or give a member another role. Raises as :func:`remove_member` does."""
    table = schema.workspace_members
    same = (table.c.workspace_id == member.workspace_id) & (table.c.user == member.user)
    before = find_members(connection, place, workspace_id=member.workspace_id, user=member.user)
    if not before:
        connection.execute(insert(table).values(**to_row(member)))
        return
    if member.role is not Role.TENANT_ADMIN:
        _require_other_admin(connection, before[0])
    connection.execute(update(table).where(same).values(role=member.role.value))


def remove_member(connection: Connection, workspace_id: str, user: str, place: str) -> None:
    """Raises ``NotFound`` where there is no such member, ``InvalidValue`` for the last administrator."""
    table = schema.workspace_members
    before = find_members(connection, place, workspace_id=workspace_id, user=user)
    if not before:
        raise NotFound("member")
    _require_other_admin(connection, before[0])
    connection.execute(delete(table).where(table.c.workspace_id == workspace_id, table.c.user == user))


def _require_other_admin(connection: Connection, member: Member) -> None:
    """Nobody but an operator could name another: a workspace keeps its last administrator."""
    if member.role is not Role.TENANT_ADMIN:
        return
    table = schema.workspace_members
    others = select(table.c.user).where(
        table.c.workspace_id == member.workspace_id,
        table.c.role == Role.TENANT_ADMIN.value,
        table.c.user != member.user,
    )
    if (connection.execute(others.limit(1))).first() is None:
        raise InvalidValue(param="user", at="user", detail="the workspace has no other administrator; name one first")


# --- usage -----------------------------------------------------------------------------------------------------


def note_usage(connection: Connection, source: str, at_us: int) -> bool:
    """Note that what a source counted until a moment is added; False where it was added before. Sources of which
    nothing was heard for a week are forgotten when another begins."""
    table = schema.usage
    notes = (table.c.tenant_id == NOBODY) & (table.c.month == "")
    before = connection.execute(select(table.c.value).where(notes, table.c.metric == source)).scalar()
    if before is not None and before >= at_us:
        return False
    if before is None:
        connection.execute(delete(table).where(notes, table.c.value < at_us - _SOURCE_GONE_US))
    note = {"tenant_id": NOBODY, "month": "", "metric": source, "value": at_us}
    connection.execute(schema.upsert(connection.dialect.name, table, [note], highest=("value",)))
    return True


# --- key versions ----------------------------------------------------------------------------------------------


def find_key_versions(connection: Connection, room: str, place: str) -> Sequence[KeyVersion]:
    table = schema.key_versions
    found = connection.execute(select(table).where(table.c.room == room).order_by(table.c.version))
    return [from_row(row._mapping, KeyVersion, place) for row in found]


def add_key_version(connection: Connection, room: str, version: KeyVersion, place: str) -> None:
    """Raises ``Conflict`` unless the version is the next one: of two rotations at once, one wins. Raises
    ``KeyDestroyed`` where the tenant ends: one that was made before would open again what was shredded."""
    existing = find_key_versions(connection, room, place)
    if version.version != (existing[-1].version + 1 if existing else 1):
        raise Conflict
    state = connection.execute(select(schema.tenants.c.state).where(schema.tenants.c.id == room)).scalar()
    if state in _ENDING or any(each.state is KeyVersionState.DESTROYED for each in existing):
        raise KeyDestroyed
    table = schema.key_versions
    if version.state is KeyVersionState.ACTIVE:
        connection.execute(
            update(table)
            .where(table.c.room == room, table.c.state == KeyVersionState.ACTIVE.value)
            .values(state=KeyVersionState.DECRYPT_ONLY.value)
        )
    connection.execute(insert(table).values(room=room, **to_row(version)))
