"""What the demo shows, over the OpenAI client as its makers ship it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from nagaya.context.places import HEAD, partition_of
from nagaya.errors import ServerRefused, TenantExists
from nagaya.stores.driver import Delete, Put

if TYPE_CHECKING:
    from nagaya.cli.output import Output
    from nagaya.wiring import Nagaya

KEY_NAME: Final = "demo"
_REFUSALS: Final = frozenset({401, 403, 404})


class Company(NamedTuple):
    """A tenant of the demo: what its person tells the assistant, then asks it."""

    id: str
    name: str
    user: str
    title: str
    told: str
    asked: str
    answer_holds: str


ACME: Final = Company(
    "acme",
    "Acme KK",
    "mia",
    "The roof",
    "Kato Roofing mended the roof of our Osaka warehouse in March. Their invoice of 480,000 yen is due on 30 April.",
    "Who mended the roof of the warehouse?",
    "Kato Roofing",
)
GLOBEX: Final = Company(
    "globex",
    "Globex 株式会社",
    "haruto",
    "倉庫の鍵",
    "新しい倉庫の鍵は総務の田中さんが預かっています。防犯カメラの点検は毎月第二金曜日です。",
    "倉庫の鍵は誰が預かっていますか？",
    "田中",
)


class Place(NamedTuple):
    """What one company has after its conversation."""

    company: Company
    api_key: str
    model: str
    conversation: str
    response: str
    answer: str


class Attempt(NamedTuple):
    """One reach for another tenant's things, and what came back. ``status`` 0: no refusal, it was answered."""

    what: str
    status: int
    code: str
    message: str
    refused: bool


class Outcome(NamedTuple):
    places: list[Place]
    attempts: list[Attempt]

    @property
    def isolated(self) -> bool:
        """Whether every attempt was refused and every answer was made of its own conversation."""
        return all(attempt.refused for attempt in self.attempts) and all(
            place.company.answer_holds in place.answer for place in self.places
        )


class Scenario:
    """The demo's story over a running server. Operators' acts go to ``nagaya``, everything else over HTTP."""

    def __init__(self, nagaya: Nagaya, out: Output, url: str) -> None:
        self._nagaya = nagaya
        self._out = out
        self._url = url
        self._console: Any = None
        if not out.as_json:
            from rich.console import Console

            self._console = Console(highlight=False, markup=False, soft_wrap=True)

    async def play(self) -> Outcome:
        """Tell the story once, and show it."""
        pick = self._out.pick
        self._heading(pick("Two companies, one server", "二つの会社、一つのサーバー"))
        keys = [await self._move_in(company) for company in (ACME, GLOBEX)]
        places = []
        for company, key in zip((ACME, GLOBEX), keys, strict=True):
            self._heading(
                pick(
                    f"{company.name}: a conversation, streamed over the OpenAI client",
                    f"{company.name}: OpenAI クライアントでのストリーミング会話",
                )
            )
            try:
                places.append(await self._converse(company, key))
            except APIStatusError as refusal:
                # A tenant of that name was here before and is suspended, or lets nobody in by an API key.
                raise ServerRefused(_words(refusal), shape=_shape(refusal)) from None
        self._heading(pick("Globex reaches for what is Acme's", "Globex が Acme のものに手を伸ばすと"))
        outcome = Outcome(places, await self._attempts(*places))
        self._show_attempts(outcome.attempts)
        self._finish(outcome)
        return outcome

    # --- moving in ---

    async def _move_in(self, company: Company) -> str:
        """The tenant, made or found, and a fresh key; the keys of earlier demos end here."""
        office, pick = self._nagaya.tenants, self._out.pick
        try:
            await office.create(company.id, name=company.name)
            made = pick("made: its own store, its own key", "作成しました（専用のストアと鍵）")
        except TenantExists:
            made = pick("is here already", "は既にあります")
        for old in await office.api_keys(company.id):
            if old.name == KEY_NAME and old.revoked_at_us is None:
                await office.revoke_api_key(old.key_id, tenant_id=company.id)
        issued = await office.create_api_key(company.id, name=KEY_NAME, user=company.user, role="tenant_admin")
        self._line(f"  {company.id:<8}{company.name}  {made}")
        return issued.api_key

    def _client(self, key: str) -> AsyncOpenAI:
        language = {"Accept-Language": self._out.language}
        # The server is this process: a proxy that the environment names would look for it elsewhere.
        return AsyncOpenAI(
            base_url=f"{self._url}/v1",
            api_key=key,
            max_retries=0,
            timeout=30.0,
            default_headers=language,
            http_client=DefaultAsyncHttpxClient(trust_env=False),
        )

    # --- talking ---

    async def _converse(self, company: Company, key: str) -> Place:
        async with self._client(key) as client:
            model = (await client.models.list()).data[0].id
            conversation = await client.conversations.create(metadata={"title": company.title})
            # A second one, so that the list has two pages and a cursor between them.
            await client.conversations.create(metadata={"title": f"{company.title} (2)"})
            told = await client.responses.create(model=model, conversation=conversation.id, input=company.told)
            self._line(f"  {company.user}> {company.told}")
            self._line(f"  {company.user}> {company.asked}")
            self._write("  nagaya> ")
            answer, response = "", told.id
            stream = await client.responses.create(
                model=model, conversation=conversation.id, input=company.asked, stream=True
            )
            async for event in stream:
                if event.type == "response.output_text.delta":
                    answer += event.delta
                    self._write(event.delta.replace("\n", "\n          "))
                    if self._console is not None and self._console.is_terminal:
                        await asyncio.sleep(0.012)
                elif event.type == "response.completed":
                    response = event.response.id
            self._line("")
        return Place(company, key, model, conversation.id, response, answer)

    # --- reaching ---

    async def _attempts(self, acme: Place, globex: Place) -> list[Attempt]:
        pick = self._out.pick
        async with self._client(acme.api_key) as own, self._client(globex.api_key) as foreign:
            page: Any = await own.get("/conversations", cast_to=object, options={"params": {"limit": 1}})
            conversations = foreign.conversations
            item: Any = {"type": "message", "role": "user", "content": "…"}
            return [
                await _attempt(
                    pick("Read Acme's conversation by its id", "Acme の会話を ID で読む"),
                    lambda: conversations.retrieve(acme.conversation),
                ),
                await _attempt(
                    pick("Write a message into it", "その会話にメッセージを書き込む"),
                    lambda: conversations.items.create(acme.conversation, items=[item]),
                ),
                await _attempt(
                    pick(
                        "Continue Acme's answer (previous_response_id)", "Acme の応答を続ける（previous_response_id）"
                    ),
                    lambda: foreign.responses.create(model=globex.model, input="?", previous_response_id=acme.response),
                ),
                await _attempt(
                    pick("Say X-Tenant-Id: acme with Globex's key", "Globex のキーで X-Tenant-Id: acme を名乗る"),
                    lambda: conversations.retrieve(globex.conversation, extra_headers={"X-Tenant-Id": acme.company.id}),
                ),
                await _attempt(
                    pick("Turn the page with Acme's cursor", "Acme のカーソルでページをめくる"),
                    lambda: foreign.get(
                        "/conversations", cast_to=object, options={"params": {"after": page["next_cursor"]}}
                    ),
                ),
                await self._plant(acme, globex, foreign),
            ]

    async def _plant(self, acme: Place, globex: Place, foreign: AsyncOpenAI) -> Attempt:
        """Copy a stored record of Acme's, as it lies on disk, into Globex's own file, and let Globex read it."""
        collection, name = partition_of(acme.conversation)
        partition = f"{collection}/{name}"
        source = await self._nagaya.house.open(acme.company.id)
        target = await self._nagaya.house.open(globex.company.id)
        try:
            row = await source.get(partition, HEAD)
            assert row is not None
            await target.write(partition, [Put(HEAD, row.body)])
            try:
                return await _attempt(
                    self._out.pick(
                        "Copy Acme's stored bytes into Globex's file", "Acme の保存バイト列を Globex のファイルに移す"
                    ),
                    lambda: foreign.conversations.retrieve(acme.conversation),
                    also="seal_broken",
                )
            finally:
                await target.write(partition, [Delete(HEAD, 1)])
        finally:
            await source.close()
            await target.close()

    # --- showing ---

    def _show_attempts(self, attempts: list[Attempt]) -> None:
        if self._console is None:
            return
        from rich.table import Table
        from rich.text import Text

        pick = self._out.pick
        table = Table(header_style="bold", expand=False)
        table.add_column(pick("attempt", "試み"), no_wrap=True)
        table.add_column(pick("refused with", "拒否"), no_wrap=True)
        if self._console.width >= 120:
            table.add_column(pick("in words", "理由"))
        for attempt in attempts:
            verdict = Text(f"{attempt.status} {attempt.code}", style="green")
            if not attempt.refused:
                verdict = Text(pick("NOT REFUSED", "拒否されず"), style="bold red")
            table.add_row(*[Text(attempt.what), verdict, Text(attempt.message)][: len(table.columns)])
        self._console.print(table)

    def _finish(self, outcome: Outcome) -> None:
        pick = self._out.pick
        if self._console is None:
            self._out.document(
                {
                    "url": f"{self._url}/v1",
                    "tenants": [
                        {
                            "id": place.company.id,
                            "name": place.company.name,
                            "api_key": place.api_key,
                            "conversation": place.conversation,
                            "answer": place.answer,
                        }
                        for place in outcome.places
                    ],
                    "attempts": [attempt._asdict() for attempt in outcome.attempts],
                    "isolated": outcome.isolated,
                }
            )
            return
        refused = sum(attempt.refused for attempt in outcome.attempts)
        self._line(
            pick(
                f"  {refused} of {len(outcome.attempts)} attempts were refused.",
                f"  {len(outcome.attempts)} 件中 {refused} 件の試みが拒否されました。",
            )
        )
        self._heading(pick("Try it yourself", "ご自分でどうぞ"))
        self._line(f"  {pick('OpenAI base URL', 'OpenAI の base URL')}  {self._url}/v1")
        self._line(f"  {pick('API documents', 'API ドキュメント')}  {self._url}/docs")
        for place in outcome.places:
            self._line(f"  {pick('API key of', 'API キー:')} {place.company.id:<8}{place.api_key}")
        self._line("")

    def _heading(self, text: str) -> None:
        if self._console is not None:
            self._console.print(f"\n{text}", style="bold")

    def _line(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text)

    def _write(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, end="", style="cyan")


async def _attempt(what: str, reach: Callable[[], Awaitable[object]], *, also: str = "") -> Attempt:
    """Reach for something; note the refusal, or that there was none. ``also``: a code that refuses at any status."""
    try:
        await reach()
    except APIStatusError as refusal:
        code = refusal.code or ""
        refused = refusal.status_code in _REFUSALS or bool(also and code == also)
        return Attempt(what, refusal.status_code, code, _words(refusal), refused)
    return Attempt(what, 0, "", "", False)


def _shape(refusal: APIStatusError) -> dict[str, object]:
    return dict(refusal.body) if isinstance(refusal.body, dict) else {"message": refusal.message}


def _words(refusal: APIStatusError) -> str:
    return str(_shape(refusal).get("message", refusal.message))
