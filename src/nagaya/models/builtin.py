"""The builtin model: it quotes the conversation it is given, says so, and needs no account and no network."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from nagaya.kernel.tokens import estimate_tokens, weigh
from nagaya.models.driver import Finished, FunctionTool, ModelEvent, ModelRequest, TextDelta, ToolCallDelta, Turn, Usage
from nagaya.models.passages import QUOTE_CHARACTERS, Passage, find_passages, is_japanese, is_question, sentences
from nagaya.models.shapes import chat_response_format, chat_tool_choice, forced_tool, smallest
from nagaya.models.tokens import THREAD_FROM_CHARACTERS, estimate_input, request_characters

BUILTIN_NAME: Final = "nagaya-builtin"
FILE_SEARCH: Final = "file_search"
_HEAD: Final = re.compile(r"^\[([0-9]{1,4})\] (.+)$", re.MULTILINE)
_CHUNK_CHARACTERS: Final = 4
_YIELD_EVERY: Final = 16

_INTRO: Final = {
    "en": "I am not a language model; I only quote this conversation.",
    "ja": "私は言語モデルではなく、この会話を引用するだけのモデルです。",
}
_INTRO_FILES: Final = {
    "en": "I am not a language model; I only quote the documents that were searched.",
    "ja": "私は言語モデルではなく、検索した文書を引用するだけのモデルです。",
}
_FOUND: Final = {"en": "It says:", "ja": "次の記述がありました。"}
_NOTHING: Final = {
    "en": "No passage here shares a word with your question.",
    "ja": "質問と言葉が重なる記述は見つかりませんでした。",
}
_LATEST: Final = {"en": "The latest statements are:", "ja": "直近の発言は次のとおりです。"}
_EMPTY: Final = {
    "en": "There is nothing earlier in it to quote yet. Tell me something, then ask about it.",
    "ja": "まだ引用できる発言がありません。何か伝えてから質問してください。",
}
_ROLES: Final = {
    "en": {"user": "you", "assistant": "assistant", "tool": "tool"},
    "ja": {"user": "あなた", "assistant": "アシスタント", "tool": "ツール"},
}


class _Hit(NamedTuple):
    """A passage of a file, with its number and the name of where it is from."""

    number: int
    source: str
    text: str


class BuiltinModel:
    """Answers the last user turn with the best passages of the other turns, each with a citation such as ``[1]``.

    The same request always gets the same answer. Nothing is quoted that the request did not carry, and what a system
    or developer turn says is never quoted. It keeps nothing between calls, so one object may serve every tenant.
    A function is called where ``tool_choice`` forces it, with the question as its required strings; ``file_search``
    also where it is offered and nothing was searched for this question yet. What it found is quoted by file name.
    """

    quotes_only: Final = True

    def __init__(self, name: str = BUILTIN_NAME) -> None:
        self.name = name

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Answer in pieces of about a word. Usage is Nagaya's estimate."""
        long = request_characters(request) > THREAD_FROM_CHARACTERS
        input_tokens = await asyncio.to_thread(estimate_input, request) if long else estimate_input(request)
        tool = forced_tool(request) or _search_to_make(request)
        if tool is not None:
            arguments = msgspec.json.encode(smallest(tool.parameters or {}, _question(request.turns)[0])).decode()
            yield ToolCallDelta(0, f"call_{len(request.turns)}", tool.name)
            yield ToolCallDelta(0, arguments=arguments)
            used = Usage(input_tokens, estimate_tokens(tool.name) + estimate_tokens(arguments), estimated=True)
            yield Finished("tool_calls", used, self.name)
            return
        text = await asyncio.to_thread(compose, request) if long else compose(request)
        for mark in request.stop:
            text = text.partition(mark)[0] if mark else text
        limit = request.max_output_tokens
        cut = False
        sent = 0.0
        for number, (chunk, weight) in enumerate(_chunks(text)):
            cut = limit is not None and sent + weight > limit
            if cut:
                break
            sent += weight
            yield TextDelta(chunk)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        used = Usage(input_tokens, max(1, round(sent)) if sent else 0, estimated=True)
        yield Finished("length" if cut else "stop", used, self.name)

    async def close(self) -> None:
        """Nothing is held."""


def compose(request: ModelRequest) -> str:
    """The whole answer to a request, in the form its ``response_format`` asks for."""
    text = _answer(request.turns)
    wanted = chat_response_format(request.response_format)
    if wanted is None:
        return text
    if wanted.get("type") == "json_schema":
        return msgspec.json.encode(smallest((wanted.get("json_schema") or {}).get("schema"), text)).decode()
    return msgspec.json.encode({"answer": text}).decode()


def _search_to_make(request: ModelRequest) -> FunctionTool | None:
    """The search that the model makes by itself: offered, not forbidden, and not made since the user's last turn."""
    text, asked_at = _question(request.turns)
    choice = chat_tool_choice(request.tool_choice)
    if not text.strip() or choice not in (None, "auto"):
        return None
    if any(turn.role == "tool" for turn in request.turns[asked_at + 1 :]):
        return None
    return next((tool for tool in request.tools if tool.name == FILE_SEARCH), None)


def _searched(turns: Sequence[Turn], asked_at: int) -> list[_Hit]:
    """The passages that were found since the user's last turn."""
    calls = {call.call_id for turn in turns[asked_at + 1 :] for call in turn.tool_calls if call.name == FILE_SEARCH}
    return [
        _Hit(int(head.group(1)), head.group(2), text.strip())
        for turn in turns[asked_at + 1 :]
        if turn.role == "tool" and turn.tool_call_id in calls
        for head, text in _passages(turn.text)
    ]


def _passages(told: str) -> Iterator[tuple[re.Match[str], str]]:
    heads = list(_HEAD.finditer(told))
    for number, head in enumerate(heads):
        end = heads[number + 1].start() if number + 1 < len(heads) else len(told)
        yield head, told[head.end() : end]


def _quote_files(question: str, hits: Sequence[_Hit], language: str) -> str:
    """The best sentences of what was found; where none shares a word, as across languages, how the best begin."""
    best = find_passages(question, [(at, hit.text) for at, hit in enumerate(hits)])
    if not best:
        best = [
            Passage(at, part[:QUOTE_CHARACTERS], 0.0)
            for at, hit in enumerate(hits[:2])
            for part in sentences(hit.text)[:1]
        ]
    lines = [_INTRO_FILES[language] + _gap(language) + _FOUND[language], ""]
    for passage in best:
        hit = hits[passage.turn]
        if language == "ja":
            lines.append(f"「{passage.text}」[{hit.number}]（{hit.source}）")
        else:
            lines.append(f'"{passage.text}" [{hit.number}] ({hit.source})')
    return "\n".join(lines)


def _question(turns: Sequence[Turn]) -> tuple[str, int]:
    """The last user turn's question and that turn's place (-1 where no user spoke)."""
    for at in range(len(turns) - 1, -1, -1):
        if turns[at].role == "user":
            return turns[at].text, at
    return "", -1


def _answer(turns: Sequence[Turn]) -> str:
    text, asked_at = _question(turns)
    language = "ja" if is_japanese(text) else "en"
    hits = _searched(turns, asked_at)
    if hits:
        return _quote_files(_apart(text)[0], hits, language)
    spoken = [
        (at, turn.text)
        for at, turn in enumerate(turns)
        if at != asked_at and turn.role not in ("system", "developer") and not _own(turn)
    ]
    question, pasted = _apart(text)
    if pasted:
        spoken = sorted([*spoken, (asked_at, pasted)])
    found = find_passages(question, spoken)
    if found:
        return _quote([_INTRO[language] + _gap(language) + _FOUND[language]], found, turns, language)
    latest = _latest(spoken)
    if not latest:
        return _INTRO[language] + _gap(language) + _EMPTY[language]
    head = [_INTRO[language] + _gap(language) + _NOTHING[language] + _gap(language) + _LATEST[language]]
    return _quote(head, latest, turns, language)


def _own(turn: Turn) -> bool:
    """Whether a turn is an earlier answer of this model: quoting a quotation says nothing new."""
    return turn.role == "assistant" and turn.text.startswith((*_INTRO.values(), *_INTRO_FILES.values()))


def _apart(text: str) -> tuple[str, str]:
    """A user's turn as its question and the document pasted with it, which may be quoted."""
    parts = sentences(text)
    if len(parts) < 4:
        return text, ""
    asking = [part for part in parts if is_question(part)] or parts[-1:]
    return "\n".join(asking), "\n".join(part for part in parts if part not in asking)


def _latest(spoken: Sequence[tuple[int, str]]) -> list[Passage]:
    statements = [
        Passage(at, part[:400], 0.0)
        for at, text in reversed(spoken)
        for part in sentences(text)[-1:]
        if not is_question(part)
    ]
    return statements[:2]


def _quote(head: list[str], passages: Sequence[Passage], turns: Sequence[Turn], language: str) -> str:
    numbers = {
        at: place
        for place, at in enumerate((at for at, turn in enumerate(turns) if turn.role not in ("system", "developer")), 1)
    }
    lines, notes = [*head, ""], []
    for number, passage in enumerate(passages, 1):
        role = _ROLES[language].get(turns[passage.turn].role, turns[passage.turn].role)
        if language == "ja":
            lines.append(f"「{passage.text}」[{number}]")
            notes.append(f"[{number}] {numbers[passage.turn]} 番目の発言（{role}）")
        else:
            lines.append(f'"{passage.text}" [{number}]')
            notes.append(f"[{number}] message {numbers[passage.turn]} ({role})")
    return "\n".join([*lines, "", *notes])


def _gap(language: str) -> str:
    return "" if language == "ja" else " "


def _chunks(text: str) -> Iterator[tuple[str, float]]:
    """The text in word-ish pieces with their token weights; long runs without a space are cut every few characters."""
    for piece, weight in weigh(text):
        if len(piece) <= 2 * _CHUNK_CHARACTERS or piece.isascii():
            yield piece, weight
            continue
        share = weight / len(piece)
        for at in range(0, len(piece), _CHUNK_CHARACTERS):
            part = piece[at : at + _CHUNK_CHARACTERS]
            yield part, share * len(part)
