"""One HTTP call and its reply, as the routes see them."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from nagaya.context.decode import decode
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import (
    BodyTooLarge,
    CsrfRefused,
    InvalidRequest,
    InvalidValue,
    MediaTypeRefused,
    NagayaError,
    TooSlow,
    Unauthenticated,
    UnknownParameter,
)
from nagaya.gate.enter import Named
from nagaya.kernel.deadline import within
from nagaya.tenancy.principal import Entrance, Role
from nagaya.tenancy.principal import Scope as Needs

if TYPE_CHECKING:
    from nagaya.wiring import Nagaya

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
T = TypeVar("T")

JSON: Final = (b"content-type", b"application/json")
SSE: Final = (b"content-type", b"text/event-stream; charset=utf-8")
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_TENANT_NAMES: Final = frozenset({"tenant", "tenantid", "xtenantid"})
_SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"x-tenant-id",
        b"x-workspace-id",
        b"x-csrf-token",
    }
)
_SLOWEST_BYTES_S: Final = 1024
_UPLOAD_S: Final = 4 * 3600.0
"""How long a body that is read piece by piece may take. Bytes without a file are removed a day after they began."""
encode: Final = msgspec.json.Encoder().encode


class Reply(NamedTuple):
    """A whole answer. ``body`` is JSON unless the headers say otherwise."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


class Disconnected(Exception):
    """The client went away before its request was whole."""


class Call:
    """One request. The body is read when asked for, within the limits."""

    __slots__ = (
        "_body",
        "_headers",
        "_receive",
        "language",
        "method",
        "nagaya",
        "params",
        "path",
        "request_id",
        "route",
        "scope",
        "stream_of",
    )

    language: str
    """``en`` or ``ja``, as the door understood ``Accept-Language``."""

    def __init__(self, scope: Scope, receive: Receive, nagaya: Nagaya, request_id: str) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.nagaya = nagaya
        self.request_id = request_id
        self.params: tuple[str, ...] = ()
        self.route = ""
        self.stream_of: Entrance | None = None
        self._receive = receive
        self._body: bytes | None = None
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        self._headers = dict(pairs)
        if len(self._headers) != len(pairs):
            self._refuse_doubled(pairs)

    def _refuse_doubled(self, pairs: list[tuple[bytes, bytes]]) -> None:
        # Two different Authorization headers are read differently by every proxy on the way: refuse both.
        seen: set[bytes] = set()
        for name, _ in pairs:
            if name in seen and name in _SINGLE:
                self._headers = {}
                raise InvalidRequest(
                    f"The header {name.decode()!r} is sent twice; send it once.",
                    f"ヘッダー {name.decode()!r} が 2 回送られています。1 回だけ送ってください。",
                )
            seen.add(name)

    def header(self, name: bytes) -> str | None:
        """A header's value (the name in lower case), or None. Bytes beyond ASCII are kept as Latin-1."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    # --- who ---

    def credential(self) -> str:
        """The bearer token or API key, or the ``access_token`` cookie with its CSRF check. mem0's clients call the
        scheme ``Token``."""
        given = self._headers.get(b"authorization")
        if given is not None:
            kind, _, token = given.partition(b" ")
            if kind.lower() not in (b"bearer", b"token") or not token.strip():
                raise Unauthenticated
            return token.strip().decode("latin-1")
        cookie = self.header(b"cookie")
        if cookie is None:
            raise Unauthenticated
        try:
            cookies = SimpleCookie(cookie)
        except CookieError:
            raise Unauthenticated from None
        if "access_token" not in cookies:
            raise Unauthenticated
        if self.method not in _SAFE_METHODS:
            wanted, given_csrf = cookies.get("csrf_token"), self.header(b"x-csrf-token")
            if not wanted or not wanted.value or given_csrf is None:
                raise CsrfRefused
            if not hmac.compare_digest(wanted.value.encode(), given_csrf.encode()):
                raise CsrfRefused
        return cookies["access_token"].value

    def named(self) -> Named:
        """What headers and host say of the tenant. They confirm, or choose among what is the caller's; they never
        decide."""
        host = self.header(b"host")
        return Named(
            self.header(b"x-tenant-id"),
            host.partition(":")[0].lower() if host else None,
            workspace=self.header(b"x-workspace-id"),
        )

    async def enter(self, needs: Needs | None = None, *roles: Role) -> Entrance:
        """The caller's entrance, as :meth:`admit` asks for it; nothing is opened yet."""
        if needs is None:
            needs = Needs.READ if self.method in _SAFE_METHODS else Needs.WRITE
        gate = self.nagaya.gate
        return await self._confirmed(await gate.enter(self.credential(), self.asked(), needs=needs, roles=roles))

    async def enter_unread(self) -> Entrance:
        """As :meth:`enter`, for a body that is read as it arrives. Whoever reads it has :meth:`confirm` look at the
        tenants that it names."""
        needs = Needs.READ if self.method in _SAFE_METHODS else Needs.WRITE
        entrance = await self.nagaya.gate.enter(self.credential(), self.asked(), needs=needs)
        self.nagaya.metrics.admitted(entrance.tenant.address)
        return entrance

    def confirm(self, entrance: Entrance, named: Collection[str]) -> None:
        """Raise ``TenantMismatch`` where a body names another tenant than the entrance's."""
        self.nagaya.gate.confirm(entrance, named)

    def asked(self) -> Named:
        """As :meth:`named`, with the tenants that the query names."""
        asked = self.named()
        raw: bytes = self.scope["query_string"]
        if raw:
            asked.also = tenants_in_query(raw)
        return asked

    async def _confirmed(self, entrance: Entrance) -> Entrance:
        if self.method in _WITH_BODY and self._headers.get(b"content-length") != b"0":
            # Read before the room is opened: a body that names another tenant opens nothing.
            named = tenants_in_body(await self.body())
            if named:
                self.nagaya.gate.confirm(entrance, named)
        self.nagaya.metrics.admitted(entrance.tenant.address)
        return entrance

    async def admit(self, needs: Needs | None = None, *roles: Role) -> TenantContext:
        """The caller inside its tenant, to be closed by the route; or an error of the gate.

        Without ``needs`` a method that only reads needs ``nagaya.read``, and any other ``nagaya.write``.
        """
        return await self.nagaya.inside(await self.enter(needs, *roles))

    async def admit_anybody(self) -> TenantContext:
        """As :meth:`admit`, whatever the caller's scopes: for what says no more than who the caller is."""
        entrance = await self.nagaya.gate.enter(self.credential(), self.asked())
        return await self.nagaya.inside(await self._confirmed(entrance))

    def open_stream(self, context: TenantContext) -> None:
        """Count the reply among the tenant's open streams until it is sent. Raises ``RateLimited`` for one too many."""
        self.nagaya.open_streams.take(context.session.entrance)
        self.stream_of = context.session.entrance

    # --- what ---

    async def body(self) -> bytes:
        """The whole body, at most ``body_limit_bytes``, within ``body_deadline_s``. May be asked for again."""
        if self._body is not None:
            return self._body
        settings = self.nagaya.settings
        limit = settings.body_limit_bytes
        length = self._headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise BodyTooLarge(limit_bytes=limit)
        kind = self._headers.get(b"content-type")
        if kind is not None and kind.partition(b";")[0].strip().lower() != b"application/json":
            raise MediaTypeRefused
        try:
            self._body = await within(settings.body_deadline_s, self._read(limit))
            return self._body
        except TimeoutError:
            raise TooSlow(limit_s=int(settings.body_deadline_s)) from None

    async def pieces(self, limit_bytes: int, too_large: NagayaError) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, never held whole. To be read once.

        Raises ``too_large`` for more than ``limit_bytes``, before the first piece where that is declared; ``TooSlow``
        for a piece that takes longer than ``body_deadline_s``, or a body slower than 1 KiB a second since then, or
        longer than 4 hours; ``Disconnected`` where the client went away before the end.
        """
        length = self._headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit_bytes:
            raise too_large
        patience_s = self.nagaya.settings.body_deadline_s
        size, waited_s, more = 0, 0.0, True
        while more:
            began_s = time.monotonic()
            try:
                message = await within(patience_s, _coroutine(self._receive))
            except TimeoutError:
                raise TooSlow(limit_s=int(patience_s)) from None
            # Only what the client lets us wait: a storage that takes its time is not its fault.
            waited_s += time.monotonic() - began_s
            if message["type"] != "http.request":
                raise Disconnected
            piece: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(piece)
            if size > limit_bytes:
                raise too_large
            if waited_s > min(_UPLOAD_S, patience_s + size / _SLOWEST_BYTES_S):
                raise TooSlow(limit_s=int(waited_s))
            if piece:
                yield piece

    async def _read(self, limit: int) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise Disconnected
        first: bytes = message.get("body", b"")
        pieces, size = [first], len(first)
        while message.get("more_body") and size <= limit:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Disconnected
            piece: bytes = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
        if size > limit:
            raise BodyTooLarge(limit_bytes=limit)
        return first if len(pieces) == 1 else b"".join(pieces)

    def let_go(self) -> None:
        """Hold the body and the headers no longer, the credential among them: an answer may stream for many minutes.

        Only once the answer's head was sent: until then others may want to look at the headers.
        """
        self._body, self._headers = None, {}
        headers = self.scope["headers"]
        if isinstance(headers, list):
            headers.clear()

    def decode(self, body: bytes, type_: type[T]) -> T:
        """The body as ``type_``; an ``invalid_request_error`` naming the parameter where it is not one."""
        return decode(body or b"{}", type_, depth_limit=self.nagaya.settings.body_depth_limit)

    async def json(self, type_: type[T]) -> T:
        """Read and decode the body."""
        return self.decode(await self.body(), type_)

    def query(self, known: Mapping[str, str]) -> dict[str, str]:
        """The query parameters among ``known`` (name → default). An unknown or repeated one is refused."""
        raw: bytes = self.scope["query_string"]
        values = dict(known)
        if not raw:
            return values
        try:
            pairs = _pairs(raw)
        except (ValueError, UnicodeError):
            raise InvalidRequest(
                "The query string is not valid UTF-8 percent-encoding.",
                "クエリ文字列が正しい UTF-8 のパーセントエンコーディングではありません。",
            ) from None
        seen: set[str] = set()
        for name, value in pairs:
            if name.removesuffix("[]") == "include":
                # OpenAI's extras (log probabilities and such); there are none to include here.
                continue
            if name not in known:
                raise UnknownParameter(name[:64])
            if name in seen:
                raise InvalidValue(param=name, at=name, detail="given more than once")
            seen.add(name)
            values[name] = value
        return values


def _parse(raw: bytes) -> list[tuple[str, str]]:
    return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=64, errors="strict")


_parse_once = lru_cache(256)(_parse)


def _pairs(raw: bytes) -> list[tuple[str, str]]:
    """A query's names and values. Short ones, such as ``limit=50``, come again and again."""
    return _parse_once(raw) if len(raw) <= 64 else _parse(raw)


async def _coroutine(receive: Receive) -> dict[str, Any]:
    return await receive()


def names_a_tenant(name: str) -> bool:
    lowered = name.lower()
    return "enant" in lowered and lowered.replace("_", "").replace("-", "") in _TENANT_NAMES


def tenants_in_query(raw: bytes) -> tuple[str, ...]:
    """The tenants that a query string names, in whatever spelling (``tenant``, ``tenant_id``, ``tenantId``, …)."""
    try:
        return tuple([value for name, value in _pairs(raw) if names_a_tenant(name)])
    except (ValueError, UnicodeError):
        # No query at all; whoever reads it says so.
        return ()


def tenants_in_body(body: bytes) -> tuple[str, ...]:
    """The tenants that a JSON body names at its top; deeper down, as in ``metadata``, a name is just a word."""
    if b"enant" not in body:
        return ()
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        values = [msgspec.json.decode(value) for name, value in fields.items() if names_a_tenant(name)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # No object of JSON; whoever decodes it says so.
        return ()
    return tuple([value for value in values if isinstance(value, str)])


def number_of(text: str, at: str, *, lowest: int, highest: int) -> int:
    """A whole number in range, or ``InvalidValue``. ASCII digits only: ``int`` would also take other scripts'."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and lowest <= int(text) <= highest):
        raise InvalidValue(param=at, at=at, detail=f"expected a whole number from {lowest} to {highest}")
    return int(text)


def order_of(text: str) -> Literal["asc", "desc"]:
    if text == "asc":
        return "asc"
    if text == "desc":
        return "desc"
    raise InvalidValue(param="order", at="order", detail="expected 'asc' or 'desc'")


class Identified(Protocol):
    """What a list holds."""

    @property
    def id(self) -> Any: ...


def listed(data: Sequence[Identified], *, has_more: bool, **more: Any) -> Reply:
    """A page of a list, as OpenAI writes it."""
    ends = {"first_id": data[0].id if data else "", "last_id": data[-1].id if data else ""}
    return Reply(encode({"object": "list", "data": data, **ends, "has_more": has_more, **more}))


def flag_of(text: str, at: str) -> bool | None:
    """``true``, ``false``, or None for an empty text."""
    if text in ("", "true", "false"):
        return None if not text else text == "true"
    raise InvalidValue(param=at, at=at, detail="expected 'true' or 'false'")


def language_of(accept: str | None, default: str) -> str:
    """``ja`` or ``en`` by the first language of ``Accept-Language`` that is one of them."""
    for part in (accept or "").split(",")[:16]:
        tag = part.partition(";")[0].strip().lower()
        if tag == "ja" or tag.startswith("ja-"):
            return "ja"
        if tag == "en" or tag.startswith("en-"):
            return "en"
    return default


def error_reply(error: NagayaError, language: str, *, more: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """The error shape of every route."""
    headers = [JSON, *more]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    retry_s = error.retry_after_s or (5 if error.status in (429, 503) else None)
    if retry_s is not None:
        headers.append((b"retry-after", str(retry_s).encode()))
    return Reply(encode({"error": error_shape(error, language)}), error.status, tuple(headers))


def error_shape(error: NagayaError, language: str) -> dict[str, str | None]:
    """What stands under ``error`` wherever something is refused."""
    return {"message": error.message(language), "type": error.type, "param": error.param, "code": error.code}


Handler = Callable[[Call], Awaitable["Reply | Stream"]]


def frame_of(event: str | None, data: bytes) -> bytes:
    """One server-sent event. JSON data has no line feeds, so one ``data:`` line holds it."""
    return b"data: %b\n\n" % data if event is None else b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def error_frame(problem: NagayaError, language: str = "en") -> bytes:
    """What ends a stream that cannot go on, as chat completions say it."""
    return frame_of(None, encode({"error": error_shape(problem, language)}))


class Stream(NamedTuple):
    """A streamed answer: server-sent events, already framed. ``leave`` is called when the reader goes away.

    ``framed`` False: plain bytes instead. Nothing is put between them, and where they cannot go on the connection is
    cut, so that nobody takes the half for the whole.

    ``ends_with_reader``: the frames are cancelled as soon as the reader is gone, since nothing is kept of them.
    ``last_word`` makes the frame that says why there are no more.
    """

    frames: AsyncGenerator[bytes, None]
    is_current: Callable[[], bool]
    leave: Callable[[], None]
    headers: tuple[tuple[bytes, bytes], ...] = (SSE,)
    ends_with_reader: bool = False
    last_word: Callable[[NagayaError], bytes] = error_frame
    framed: bool = True


_Route = tuple[tuple[str, ...], tuple[int, ...], tuple[tuple[int, str], ...], str, dict[str, Handler]]


class Router:
    """Finds the handler of a path by its literal segments; ``{}`` stands for one segment."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[int, str], list[_Route]] = {}

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Let ``handler`` answer this method of this pattern."""
        parts = tuple(pattern.split("/"))
        routes = self._by_shape.setdefault((len(parts), parts[min(2, len(parts) - 1)]), [])
        for known, *_, handlers in routes:
            if known == parts:
                handlers[method] = handler
                return
        places = tuple(at for at, part in enumerate(parts) if part == "{}")
        literal = tuple((at, part) for at, part in enumerate(parts) if at not in places)
        routes.append((parts, places, literal, pattern, {method: handler}))
        # Literal segments win over parameters.
        routes.sort(key=lambda route: len(route[1]))

    def find(self, path: str, raw_path: bytes = b"") -> tuple[str, dict[str, Handler], tuple[str, ...]] | None:
        """The pattern, its handlers by method, and the parameters; None where no route has this path.

        ``raw_path`` is the path as it was sent: a slash that is percent-encoded in it belongs to a parameter, as in the
        names of many models.
        """
        if b"%2F" in raw_path or b"%2f" in raw_path:
            given = [unquote(part) for part in raw_path.decode("latin-1").split("/")]
        else:
            given = path.split("/")
        count = len(given)
        for _, places, literal, pattern, handlers in self._by_shape.get((count, given[2 if count > 2 else -1]), ()):
            for at, part in literal:
                if given[at] != part:
                    break
            else:
                return pattern, handlers, tuple([given[at] for at in places])
        return None
