"""A Bedrock Runtime of the tests' own over a real socket: Converse, ConverseStream in AWS's event-stream encoding,
Titan's embeddings, an STS that grants roles, and every way to fail, chosen by the model's id.

``seen`` keeps paths, headers and bodies; ``open_streams`` counts answers being sent, ``abandoned`` those whose reader
went away; ``policies`` are the session policies that roles were granted with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from parts.loopback import on_loopback

ANSWER = "The roof of the old warehouse was mended by Kato Roofing in spring. 屋根は加藤屋根工業。"
PROMPT = "my diagnosis is private"
USAGE = {"inputTokens": 30, "outputTokens": 5, "totalTokens": 35, "cacheReadInputTokens": 8, "cacheWriteInputTokens": 2}
_REFUSED_ACTION = (
    "User: arn:aws:sts::123456789012:assumed-role/x/y is not authorized to perform: "
    "bedrock:InvokeModelWithResponseStream on resource: arn:aws:bedrock:ap-northeast-1::foundation-model/denied"
)
FAILURES = {
    "throttled": (429, "ThrottlingException", f"Too many requests: {PROMPT}"),
    "quota": (400, "ServiceQuotaExceededException", "Your quota is used up"),
    "long": (400, "ValidationException", f"Input is too long for requested model. {PROMPT}"),
    "long-prompt": (400, "ValidationException", "prompt is too long: 215000 tokens > 200000 maximum"),
    "refused": (400, "ValidationException", f"The value at temperature is wrong: {PROMPT}"),
    "unknown": (400, "ValidationException", "The provided model identifier is invalid."),
    "on-demand": (400, "ValidationException", "Invocation of model ID x with on-demand throughput isn't supported."),
    "absent": (404, "ResourceNotFoundException", "Could not resolve the foundation model"),
    "denied": (403, "AccessDeniedException", _REFUSED_ACTION),
    "not-granted": (403, "AccessDeniedException", "You don't have access to the model with the specified model ID."),
    "expired": (403, "ExpiredTokenException", "The security token included in the request is expired"),
    "down": (503, "ServiceUnavailableException", f"Sorry: {PROMPT}"),
    "broken": (500, "InternalServerException", "Sorry"),
    "model-error": (424, "ModelErrorException", "The model failed"),
    "not-ready": (429, "ModelNotReadyException", "The model is being made ready"),
    "slow-model": (408, "ModelTimeoutException", "The model took too long"),
    "huge": (413, "RequestEntityTooLargeException", "Payload too large"),
    "oddly": (418, "Odd code with spaces", "?"),
}
MIDWAY = {
    "stream-error": ("modelStreamErrorException", "The model failed midway"),
    "throttled-midway": ("throttlingException", "Too many tokens per minute"),
    "down-midway": ("serviceUnavailableException", "Sorry"),
    "broken-midway": ("internalServerException", "Sorry"),
    "long-midway": ("validationException", "Input is too long for requested model."),
    "refused-midway": ("validationException", f"Wrong: {PROMPT}"),
}


class BedrockServer:
    def __init__(self) -> None:
        self.app = Starlette(
            routes=[
                Route("/model/{model:path}/converse-stream", self.converse_stream, methods=["POST"]),
                Route("/model/{model:path}/converse", self.converse, methods=["POST"]),
                Route("/model/{model:path}/invoke", self.invoke, methods=["POST"]),
                Route("/", self.sts, methods=["POST"]),
            ]
        )
        self.port = 0
        self.open_streams = 0
        self.reset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        self.hits = self.abandoned = self.roles = 0
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.policies: list[Any] = []
        self.expired_keys: set[str] = set()

    async def _begin(self, request: Request) -> tuple[str, Any, Response | None]:
        body = json.loads(await request.body())
        self.hits += 1
        self.seen.append((request.scope["raw_path"].decode(), dict(request.headers), body))
        model = request.path_params["model"]
        if any(key in request.headers.get("authorization", "") for key in self.expired_keys):
            return model, body, _refusal(*FAILURES["expired"])
        if model == "throttled-once" and self.hits == 1:
            return model, body, _refusal(*FAILURES["throttled"], {"Retry-After": "0"})
        if model == "throttled-long":
            return model, body, _refusal(*FAILURES["throttled"], {"Retry-After": "90"})
        if model == "down-once" and self.hits == 1:
            return model, body, _refusal(*FAILURES["down"])
        return model, body, _refusal(*FAILURES[model]) if model in FAILURES else None

    async def converse_stream(self, request: Request) -> Response:
        model, body, failing = await self._begin(request)
        if model == "unstreamed":
            failing = _refusal(400, "ValidationException", "This model doesn't support tool use in streaming mode.")
        if failing is not None:
            return failing
        return StreamingResponse(self._stream(model, body), media_type="application/vnd.amazon.eventstream")

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
        if model == "at-once":
            yield _exception(*MIDWAY["throttled-midway"])
            return
        yield _event("messageStart", {"role": "assistant"})
        if model == "thinks":
            thought = {"reasoningContent": {"text": "Hm."}}
            yield _event("contentBlockDelta", {"delta": thought, "contentBlockIndex": 0})
            yield _event("contentBlockStop", {"contentBlockIndex": 0})
        pieces, reason = _answer(model, body)
        for at, (kind, word) in enumerate(pieces):
            if at == 3 and kind == "text":
                if model in MIDWAY:
                    yield _exception(*MIDWAY[model])
                    return
                match model:
                    case "cut":
                        raise ConnectionResetError
                    case "hang":
                        await asyncio.sleep(3600)
                    case "no-end":
                        return
                    case "garbage":
                        yield b"\0\0\0\x20" + b"this is no event at all, is it?"
                    case "wrong-sum":
                        yield _event("contentBlockDelta", {"delta": {"text": "x"}})[:-1] + b"\0"
                    case "not-json":
                        yield _event("contentBlockDelta", b"{not json")
                    case "half-event":
                        yield _event("contentBlockDelta", {"delta": {"text": word}})[:20]
                        return
            if kind == "start":
                yield _event("contentBlockStart", {"start": {"toolUse": word}, "contentBlockIndex": 1})
            elif kind == "input":
                yield _event("contentBlockDelta", {"delta": {"toolUse": {"input": word}}, "contentBlockIndex": 1})
            else:
                yield _event("contentBlockDelta", {"delta": {"text": word}, "contentBlockIndex": 0})
            await asyncio.sleep(0)
        yield _event("contentBlockStop", {"contentBlockIndex": 1 if pieces[0][0] == "start" else 0})
        yield _event("messageStop", {"stopReason": reason})
        if model != "no-usage":
            counted = USAGE | {"outputTokens": min(len(pieces), USAGE["outputTokens"])}
            yield _event("metadata", {"usage": counted, "metrics": {"latencyMs": 1}})

    async def converse(self, request: Request) -> Response:
        model, body, failing = await self._begin(request)
        if failing is not None:
            return failing
        pieces, reason = _answer(model, body)
        content: list[Any] = [{"text": "".join(word for kind, word in pieces if kind == "text")}]
        if pieces[0][0] == "start":
            content = [{"toolUse": pieces[0][1] | {"input": {"q": "roof"}}}]
        message = {"role": "assistant", "content": content}
        return JSONResponse({"output": {"message": message}, "stopReason": reason, "usage": USAGE, "metrics": {}})

    async def invoke(self, request: Request) -> Response:
        model, body, failing = await self._begin(request)
        if failing is not None:
            return failing
        if not body["inputText"]:
            return _refusal(400, "ValidationException", "expected minLength: 1")
        if model.endswith("titan-embed-text-not-json"):
            return Response("{not json", media_type="application/json")
        if model.endswith("titan-embed-text-cut"):
            return StreamingResponse(_cut(), media_type="application/json")
        size = 3 if "wrong-size" in model else 4
        vector = [3.0, 4.0, float(len(body["inputText"]) % 7), 0.0][:size]
        return JSONResponse({"embedding": vector, "inputTextTokenCount": len(body["inputText"])})

    async def sts(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode())
        self.policies.append(json.loads(form["Policy"][0]))
        self.roles += 1
        granted = (
            f"<AccessKeyId>ASIAROLE{self.roles:08d}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            "<SessionToken>t</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration>"
        )
        answer = f"<Credentials>{granted}</Credentials>"
        return Response(
            f'<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>{answer}'
            "</AssumeRoleResult></AssumeRoleResponse>",
            media_type="text/xml",
        )


async def _cut() -> AsyncIterator[bytes]:
    yield b'{"embed'
    await asyncio.sleep(0)
    raise ConnectionResetError


def _answer(model: str, body: Any) -> tuple[list[tuple[str, Any]], str]:
    """The pieces of an answer (kind, content), and why it ended."""
    config = body.get("toolConfig", {})
    choice = config.get("toolChoice", {})
    if choice:
        name = choice.get("tool", {}).get("name") or config["tools"][0]["toolSpec"]["name"]
        started = ("start", {"toolUseId": "tooluse_9", "name": name})
        return [started, *([] if model == "no-arguments" else [("input", '{"q":'), ("input", '"roof"}')])], "tool_use"
    text, reason = ANSWER, "end_turn"
    if "outputConfig" in body or any("JSON" in part["text"] for part in body.get("system", ())):
        text = json.dumps({"answer": ANSWER})
    words = text.replace(" ", " \0").split("\0")
    config = body.get("inferenceConfig", {})
    limit = config.get("maxTokens")
    if limit and len(words) > limit:
        words, reason = words[:limit], "max_tokens"
    for mark in config.get("stopSequences", ()):
        words, reason = ["".join(words).partition(mark)[0]], "stop_sequence"
    ends = {
        "guarded": "guardrail_intervened",
        "full": "model_context_window_exceeded",
        "malformed": "malformed_tool_use",
    }
    return [("text", word) for word in words], ends.get(model, reason)


def _message(headers: dict[str, str], payload: bytes) -> bytes:
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    head = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return head + struct.pack("!I", zlib.crc32(head))


def _event(kind: str, content: Any) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return _message(headers, content if isinstance(content, bytes) else json.dumps(content).encode())


def _exception(kind: str, words: str) -> bytes:
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return _message(headers, json.dumps({"message": words}).encode())


def _refusal(status: int, code: str, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"message": words}, status, {"x-amzn-ErrorType": code, **(headers or {})})


@contextlib.contextmanager
def running() -> Iterator[BedrockServer]:
    """The server on a free port of the loopback, in a thread of its own."""
    server = BedrockServer()
    with on_loopback(server.app) as server.port:
        yield server
