"""Signing in and out of a browser: ``/v1/session``. The token lies in a cookie that no script can read."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from nagaya.audit.entry import Chain
from nagaya.errors import MediaTypeRefused, NotFound, TokenRefused
from nagaya.identity.sign_in import is_session
from nagaya.server.calls import JSON, Call, Reply, encode, error_reply
from nagaya.tenancy.principal import Principal


class SessionIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/session``."""

    id_token: str


class Session(msgspec.Struct):
    """A sign-in session. ``csrf_token`` is given once, with the cookies; send it as ``X-CSRF-Token`` with every request
    that changes something."""

    id: str
    user: str
    expires_at: int
    created_at: int | None = None
    last_seen_at: int | None = None
    csrf_token: str | None = None
    object: str = "session"


async def begin(call: Call) -> Reply:
    """Exchange an id token for a session in cookies."""
    if call.header(b"content-type") is None:
        # A foreign page may send a body without a type, though not one of type JSON: it must not sign anybody in.
        raise MediaTypeRefused
    given = await call.json(SessionIn)
    nagaya = call.nagaya
    asked = call.asked()
    # Somebody signs in to the tenant; each request then says in which of its workspaces it works.
    asked.workspace = None
    entrance = await nagaya.gate.enter(given.id_token, asked, purpose="login")
    nagaya.metrics.admitted(entrance.tenant.address)
    session, token, csrf_token = await nagaya.sign_in.begin(entrance)
    _note(call, entrance.principal, "session.begin", session.id)
    life_s = (session.expires_at_us - session.created_at_us) // 1_000_000
    shown = Session(
        id=session.id,
        user=session.user,
        created_at=session.created_at_us // 1_000_000,
        last_seen_at=session.seen_at_us // 1_000_000,
        expires_at=session.expires_at_us // 1_000_000,
        csrf_token=csrf_token,
    )
    return Reply(encode(shown), HTTPStatus.CREATED, (JSON, *_cookies(call, token, csrf_token, life_s)))


async def show(call: Call) -> Reply:
    """The session that the caller's token belongs to."""
    async with await call.admit_anybody() as context:
        principal = context.session.entrance.home
        if principal.session_id is None or not is_session(principal):
            raise NotFound("session")
        session = await call.nagaya.sign_in.current(principal)
        shown = Session(
            id=principal.session_id,
            user=principal.user_key,
            expires_at=principal.expires_at_us // 1_000_000,
        )
        if session is not None:
            shown.created_at = session.created_at_us // 1_000_000
            shown.last_seen_at = session.seen_at_us // 1_000_000
            shown.expires_at = session.expires_at_us // 1_000_000
        return Reply(encode(shown))


async def end(call: Call) -> Reply:
    """Sign out: the session's token is refused from now on, on every server."""
    token = call.credential()
    gone = _cookies(call, "", "", 0)
    try:
        principal = await call.nagaya.sign_in.end(token)
    except TokenRefused as refused:
        # It is over anyway, and no script could take this cookie away.
        return error_reply(refused, call.language, more=gone)
    _note(call, principal, "session.end", principal.session_id or "")
    body = {"id": principal.session_id, "object": "session.deleted", "deleted": True}
    return Reply(encode(body), headers=(JSON, *gone))


def _note(call: Call, principal: Principal, action: str, session_id: str) -> None:
    call.nagaya.audit.record(
        Chain(principal.tenant_id or ""),
        actor=principal.user_id,
        role=principal.role.value,
        action=action,
        target=session_id,
        request_id=call.request_id,
    )


def _cookies(call: Call, token: str, csrf_token: str, life_s: int) -> tuple[tuple[bytes, bytes], ...]:
    public_url = call.nagaya.settings.public_url or ""
    is_https = call.scope.get("scheme") == "https" or public_url.startswith("https://")
    ends = f"; Path=/; Max-Age={life_s}; SameSite=Lax" + ("; Secure" if is_https else "")
    return (
        (b"set-cookie", f"access_token={token}{ends}; HttpOnly".encode()),
        (b"set-cookie", f"csrf_token={csrf_token}{ends}".encode()),
    )
