"""An Azure OpenAI of the tests' own: deployments, keys, tokens, its content filter, and its own ways to refuse."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from parts.chat_server import KEY, ChatServer

TOKEN = "entra-token"
PRINCIPAL = "8a6b0c6e-0000-4000-8000-000000000001"
_LACKS = (
    f"The principal `{PRINCIPAL}` lacks the required data action "
    "`Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action` to perform "
    "`POST /openai/deployments/{deployment-id}/chat/completions` operation."
)
_FILTER = {"hate": {"filtered": False, "severity": "safe"}}


class AzureOpenAIServer(ChatServer):
    """As a resource in Azure: a path per deployment, a version per call, ``api-key`` or a token."""

    def __init__(self) -> None:
        super().__init__()
        place = "/openai/deployments/{deployment}"
        self.app = Starlette(
            routes=[
                Route(place + "/chat/completions", self.chat, methods=["POST"]),
                Route(place + "/embeddings", self.embeddings, methods=["POST"]),
            ]
        )
        self.tokens = {TOKEN}
        self.queries: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        super().reset()
        self.tokens = {TOKEN}
        self.queries.clear()

    def admits(self, headers: dict[str, str]) -> bool:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return headers.get("api-key") == KEY or bearer in self.tokens

    async def chat(self, request: Request) -> Response:
        self.queries.append(request.url.query)
        return await super().chat(request)

    def _failure(self, model: str, body: Any) -> Response | None:
        prompt = str(body["messages"])
        match model:
            case "filtered-here":
                inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": _FILTER}
                return _refusal(400, None, f"The response was filtered: {prompt}", innererror=inner)
            case "no-deployment":
                return _refusal(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
            case "no-role":
                return _refusal(401, "PermissionDenied", _LACKS)
            case "no-role-unsaid":
                return _refusal(403, "PermissionDenied", "Principal does not have access to API/Operation.")
            case "firewall":
                return _refusal(403, "AccessDenied", "Access denied due to Virtual Network/Firewall rules.")
            case "limited-ms":
                return _refusal(429, "429", "Requests have exceeded the call rate limit", {"retry-after-ms": "42100"})
        return super()._failure(model, body)

    async def _parts(self, model: str, body: Any) -> AsyncIterator[bytes]:
        if model == "beside":
            # The filter's word on the prompt comes first, with no choice; its word on the answer in empty ones.
            told = [{"prompt_index": 0, "content_filter_results": _FILTER}]
            yield _line({"choices": [], "prompt_filter_results": told})
            yield _line({"choices": [{"index": 0, "finish_reason": None, "content_filter_results": _FILTER}]})
        async for part in super()._parts(model, body):
            yield part

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        if request.path_params["deployment"] == "first-generation" and "dimensions" in body:
            self.hits += 1
            return _refusal(400, None, "This model does not support specifying dimensions.")
        if request.path_params["deployment"] == "refused":
            return _refusal(400, None, "Not this text.")
        return await super().embeddings(request)


def _line(chunk: dict[str, Any]) -> bytes:
    head = {"id": "", "object": "", "created": 0, "model": ""}
    return b"data: " + json.dumps(head | chunk).encode() + b"\n\n"


def _refusal(
    status: int, code: str | None, message: str, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    return JSONResponse({"error": {"code": code, "message": message} | more}, status, headers)
