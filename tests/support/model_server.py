"""An OpenAI-compatible model server on loopback that takes its time, so that a test can act while a stream is open.

The model's name says what it does: ``slow`` sends a word each 0.1 s for a minute, ``quick`` three words at once,
``gate`` three words when the test opens the gate, ``down`` fails quoting its prompt, ``cut`` breaks off mid-answer.
As an embedding model each gives vectors of two numbers, ``held`` not before the test lets it.
``prompts`` keeps what every request brought.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from parts.loopback import on_loopback

WORDS = ("Kato ", "mends ", "roofs.")


class ModelServer:
    """What it was asked, and how many streams are open now."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.keys: list[str] = []
        self.open_streams = 0
        self.gate = threading.Event()
        self.vectors = threading.Event()
        self.port = 0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            ]
        )

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def model(self, name: str) -> str:
        """The address of a model of this server, for ``models=[…]`` of a tenant."""
        return f"openai+http://{self.place}/v1#{name}"

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        prompt = json.dumps(body["messages"], ensure_ascii=False)
        self.prompts.append(prompt)
        self.keys.append(request.headers.get("authorization", ""))
        if body["model"] == "down":
            return JSONResponse({"error": {"message": f"Sorry: {prompt}", "type": "server_error"}}, 500)
        return StreamingResponse(self._stream(body["model"]), media_type="text/event-stream")

    async def _embeddings(self, request: Request) -> Response:
        body = await request.json()
        while body["model"] == "held" and not self.vectors.is_set():
            await asyncio.sleep(0.02)
        rows = [{"object": "embedding", "index": at, "embedding": [0.6, 0.8]} for at in range(len(body["input"]))]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return JSONResponse({"object": "list", "data": rows, "model": body["model"], "usage": usage})

    async def _stream(self, model: str) -> AsyncIterator[bytes]:
        self.open_streams += 1
        try:
            if model == "gate":
                yield _chunk({"role": "assistant", "content": WORDS[0]})
                while not self.gate.is_set():
                    await asyncio.sleep(0.02)
            words = [f"word{number} " for number in range(600)] if model == "slow" else WORDS
            for number, word in enumerate(words):
                if model == "cut" and number == 2:
                    return
                yield _chunk({"content": word})
                if model == "slow":
                    await asyncio.sleep(0.1)
            yield _chunk({}, "stop")
            usage = {"prompt_tokens": 11, "completion_tokens": len(words), "total_tokens": 11 + len(words)}
            last = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": []}
            yield b"data: " + json.dumps({**last, "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        finally:
            self.open_streams -= 1


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "served", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@contextmanager
def running_model() -> Iterator[ModelServer]:
    """The server in a thread of its own."""
    server = ModelServer()
    with on_loopback(server.app) as server.port:
        try:
            yield server
        finally:
            server.gate.set()
            server.vectors.set()
