"""A chat-completions server of the tests' own, over a real socket: streams, usage, tool calls, and every way to fail.

What it does is chosen by the model's name. ``hits`` counts requests, ``seen`` keeps headers and bodies, ``open_streams``
the answers that are being sent; ``abandoned`` those whose reader went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from parts.loopback import on_loopback

ANSWER = "The roof of the old warehouse was mended by Kato Roofing in spring. 屋根は加藤屋根工業。"
KEY = "sk-tenant-secret"


class ChatServer:
    def __init__(self) -> None:
        self.hits = 0
        self.seen: list[tuple[dict[str, str], Any]] = []
        self.open_streams = 0
        self.abandoned = 0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            ]
        )
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def reset(self) -> None:
        self.hits = 0
        self.seen.clear()
        self.abandoned = 0

    def admits(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") == f"Bearer {KEY}"

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.hits += 1
        self.seen.append((dict(request.headers), body))
        model = body["model"]
        if model != "keyless" and not self.admits(dict(request.headers)):
            return _error(401, "invalid_api_key", f"Incorrect API key provided: {request.headers.get('authorization')}")
        failing = self._failure(model, body)
        if failing is not None:
            return failing
        return StreamingResponse(self._stream(model, body), media_type="text/event-stream")

    def _failure(self, model: str, body: Any) -> Response | None:
        prompt = str(body["messages"])
        match model:
            case "limited":
                return _error(429, "rate_limit_exceeded", f"Slow down: {prompt}", {"Retry-After": "90"})
            case "limited-once" if self.hits == 1:
                return _error(429, "rate_limit_exceeded", "Slow down", {"Retry-After": "0"})
            case "broke":
                return _error(429, "insufficient_quota", "You exceeded your current quota")
            case "down":
                return _error(500, "server_error", f"Sorry: {prompt}")
            case "down-once" if self.hits == 1:
                return _error(503, None, "Overloaded")
            case "long":
                return _error(400, "context_length_exceeded", f"This model's maximum context length is 8: {prompt}")
            case "long-uncoded":
                return _error(400, None, "prompt exceeds the available context size of 4096 tokens")
            case "huge":
                return _error(413, None, "Payload too large")
            case "filtered":
                return _error(400, "content_filter", f"Filtered: {prompt}")
            case "refused":
                return _error(400, "unsupported_parameter", f"Refused: {prompt}")
            case "forbidden":
                return _error(403, None, "Not for you")
            case "absent":
                return _error(404, "model_not_found", "No such model")
            case "teapot":
                return Response(f"<html>{prompt}</html>", 418)
            case "busy":
                return _error(409, None, "Busy")
            case "zipped":
                return Response(gzip.compress(b"0" * 10_000_000), headers={"Content-Encoding": "gzip"})
            case "flood":
                return Response(b"x" * 3_000_000, 400)
            case "redirect":
                return RedirectResponse("http://169.254.169.254/latest/meta-data/", 307)
        return None

    async def _stream(self, model: str, body: Any) -> AsyncIterator[bytes]:
        self.open_streams += 1
        ended = False
        try:
            async for part in self._parts(model, body):
                yield part
            ended = True
        finally:
            self.open_streams -= 1
            self.abandoned += not ended

    async def _parts(self, model: str, body: Any) -> AsyncIterator[bytes]:
        if model == "silent":
            await asyncio.sleep(3600)
        yield b": a comment, as some servers send\n\n"
        yield _chunk({"content": "another choice"}, index=1)
        yield _chunk({"role": "assistant", "content": ""})
        if body.get("tool_choice") == "required":
            name = body["tools"][0]["function"]["name"]
            called = {"index": 0, "id": "call_9", "type": "function", "function": {"name": name, "arguments": ""}}
            yield _chunk({"tool_calls": [called]})
            for piece in ('{"q":', '"roof"}'):
                yield _chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            yield _chunk({}, "stop" if model == "says-stop" else "tool_calls")
            yield _usage() + b"data: [DONE]\n\n"
            return
        text, reason = ANSWER, "stop"
        if body.get("response_format"):
            text = json.dumps({"answer": ANSWER})
        words = text.replace(" ", " \0").split("\0")
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        if limit and len(words) > limit:
            words, reason = words[:limit], "length"
        for mark in body.get("stop") or ():
            words = ["".join(words).partition(mark)[0]]
        if model == "filters-midway":
            words, reason = words[:3], "content_filter"
        for number, word in enumerate(words):
            if number == 3:
                match model:
                    case "cut":
                        raise ConnectionResetError
                    case "hang":
                        await asyncio.sleep(3600)
                    case "no-end":
                        return
                    case "error-midway" | "limited-midway":
                        code = "rate_limit_exceeded" if model == "limited-midway" else None
                        error = {"message": f"boom {body['messages']}", "type": "server_error", "code": code}
                        yield b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
                        return
                    case "endless-line":
                        for _ in range(40):
                            yield b"x" * 1_000_000
                            await asyncio.sleep(0)
                    case "garbage":
                        yield b"data: {not json\n\n"
                    case "not-chat":
                        yield b'data: {"choices": [17]}\n\n'
            yield _chunk({"content": word})
            await asyncio.sleep(0)
        yield _chunk({}, reason)
        if model != "no-usage":
            yield _usage(len(words))
        yield b"data: [DONE]\n\n"

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        self.hits += 1
        self.seen.append((dict(request.headers), body))
        if body["model"] == "refused":
            return _error(400, None, "Not this text")
        size = 3 if body["model"] == "wrong-size" else 4
        rows = [
            {"object": "embedding", "index": at, "embedding": [3.0, 4.0, float(len(text) % 7), 0.0][:size]}
            for at, text in enumerate(body["input"])
        ]
        tokens = {"prompt_tokens": sum(map(len, body["input"])), "total_tokens": 0}
        return JSONResponse({"object": "list", "data": rows[::-1], "model": body["model"], "usage": tokens})


def _chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "served", "choices": [choice]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def _usage(completion: int = 5) -> bytes:
    usage = {
        "prompt_tokens": 40, "completion_tokens": completion, "total_tokens": 40 + completion,
        "prompt_tokens_details": {"cached_tokens": 8}, "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    chunk = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "served",
        "choices": [],
        "usage": usage,
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": code}}, status, headers)


S = TypeVar("S", bound=ChatServer)


@contextlib.contextmanager
def running(kind: type[S] = ChatServer) -> Iterator[S]:  # type: ignore[assignment]  # mypy has no default of a variable
    """The server on a free port of the loopback, in a thread of its own."""
    server = kind()
    with on_loopback(server.app) as server.port:
        yield server
