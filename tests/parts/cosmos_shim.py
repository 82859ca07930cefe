"""Makes ``@vercel/cosmosdb-server`` behave as Cosmos DB where a tenant's data depends on it.

It checks keys and tokens, keeps a query inside its partition, undoes a batch that fails, applies patches with their
conditions, refuses what is too large, and breaks on purpose where a test asks for it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web

KEY = base64.b64encode(b"k" * 64).decode()
MAX_REQUEST = 2 * 1024 * 1024
_PK = "x-ms-documentdb-partitionkey"
_CONDITION = re.compile(r"FROM c WHERE c\.(\w+) = (\d+)")
_QUERY = re.compile(r"(?P<head>SELECT .* FROM c) WHERE (?P<where>.*?)(?P<tail> ORDER BY .*)?", re.S)
_ABSENT = {"code": "NotFound", "message": "Entity with the specified id does not exist in the system."}
Answer = tuple[int, Any, dict[str, str]]


class Fault:
    """What is to happen to the next requests of a kind: ``429``, ``503``, ``503-after``, ``cut``, ``cut-after``,
    ``hang``, ``twice``, ``behind`` (a replica that has not heard of this session's writes). ``kind`` is as :meth:`CosmosShim.kind` says; ``*`` is all."""

    def __init__(self, what: str, kind: str = "*", *, times: int = 1, wait_s: float = 0.05) -> None:
        self.what = what
        self.kind = kind
        self.times = times
        self.wait_s = wait_s


class CosmosShim:
    """In front of the server at ``upstream``. ``holder`` says whose a token is; ``denied`` clients may do nothing."""

    def __init__(self, upstream: str, holder: Callable[[str, str], str | None]) -> None:
        self._upstream = upstream
        self._holder = holder
        self._lock = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._fields: dict[str, str] = {}
        self.denied: set[str] = set()
        self.faults: list[Fault] = []
        self.seen: Counter[str] = Counter()
        self.regions = ["Japan East"]
        self.consistency = "BoundedStaleness"
        self.writes_everywhere = False
        self.page_items = 1000

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @staticmethod
    def kind(request: web.Request) -> str:
        """``account``, ``query``, ``batch``, or method and type such as ``POST docs``, ``GET colls``."""
        if request.path == "/":
            return "account"
        if request.headers.get("x-ms-documentdb-isquery", "").lower() == "true":
            return "query"
        if request.headers.get("x-ms-cosmos-is-batch-request", "").lower() == "true":
            return "batch"
        parts = request.path.strip("/").split("/")
        return f"{request.method} {parts[-1] if len(parts) % 2 else parts[-2]}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        kind = self.kind(request)
        self.seen[kind] += 1
        body = await request.read()
        fault = next((each for each in self.faults if each.kind in (kind, "*") and each.times), None)
        if fault is not None:
            fault.times -= 1
            if fault.what == "429":
                wait = {"x-ms-retry-after-ms": str(round(fault.wait_s * 1000))}
                return web.json_response({"code": "TooManyRequests"}, status=429, headers=wait)
            if fault.what == "behind":
                return web.json_response({"code": "NotFound"}, status=404, headers={"x-ms-substatus": "1002"})
            if fault.what == "503":
                return web.json_response({"code": "ServiceUnavailable"}, status=503)
            if fault.what == "hang":
                await asyncio.sleep(fault.wait_s)
            if fault.what == "cut":
                return self._cut(request)
            if fault.what == "twice":
                await self._decide(request, kind, body)
        status, found, headers = await self._decide(request, kind, body)
        if fault is not None and fault.what == "cut-after":
            return self._cut(request)
        if fault is not None and fault.what == "503-after":
            return web.json_response({"code": "ServiceUnavailable"}, status=503)
        if status == 204 or (status < 300 and "minimal" in request.headers.get("prefer", "")):
            return web.Response(status=status, headers=headers)
        return web.json_response(found, status=status, headers={"x-ms-request-charge": "1", **headers})

    def _cut(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    # --- who may ----------------------------------------------------------------------------------------------

    def _refusal(self, request: web.Request, kind: str) -> Answer | None:
        given = dict(
            part.split("=", 1) for part in unquote(request.headers.get("authorization", "")).split("&") if part
        )
        if given.get("type") == "aad":
            client = self._holder(given.get("sig", ""), f"https://{request.host.partition(':')[0]}")
            if client is None:
                return 401, {"code": "Unauthorized"}, {}
            if client in self.denied:
                return 403, {"code": "Forbidden"}, {"x-ms-substatus": "5301"}
            if kind in ("POST dbs", "POST colls", "DELETE colls", "PUT colls"):
                return 403, {"code": "Forbidden", "message": "cannot be authorized by AAD token in data plane"}, {
                    "x-ms-substatus": "5300"
                }  # fmt: skip
            return None
        parts = [part for part in request.path.split("/") if part]
        of_type = parts[-1] if len(parts) % 2 else (parts[-2] if parts else "")
        link = "/".join(parts[:-1] if len(parts) % 2 else parts)
        date = request.headers.get("x-ms-date", "").lower()
        text = f"{request.method.lower()}\n{of_type}\n{unquote(link)}\n{date}\n\n"
        signed = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        if given.get("sig") != base64.b64encode(signed).decode():
            return 401, {"code": "Unauthorized"}, {}
        return None

    # --- what is asked ----------------------------------------------------------------------------------------

    async def _decide(self, request: web.Request, kind: str, body: bytes) -> Answer:
        refused = self._refusal(request, kind)
        if refused is not None:
            return refused
        if len(body) > MAX_REQUEST:
            return 413, {"code": "RequestEntityTooLarge"}, {}
        if kind == "account":
            return 200, self._account(request), {}
        path = unquote(request.path).rstrip("/")
        parts = path.strip("/").split("/")
        async with self._lock:
            if len(parts) > 4:
                field = await self._field("/" + "/".join(parts[:4]))
                if field is None:
                    return 404, _ABSENT, {"x-ms-substatus": "1003"}
                if parts[4] == "docs":
                    return await self._documents(request, kind, path, body, field)
            elif len(parts) > 3 and (await self._forward("GET", "/" + "/".join(parts[:2]), {}))[0] == 404:
                return 404, _ABSENT, {"x-ms-substatus": "1003"}
            if kind == "DELETE colls":
                self._fields.pop(path, None)
            sent = json.loads(body) if body else None
            return await self._forward(request.method, path, self._kept(request), sent)

    async def _field(self, collection: str) -> str | None:
        """What the partition key of a collection is called, or None where there is no such collection."""
        if collection not in self._fields:
            status, found, _ = await self._forward("GET", collection, {})
            if status == 404:
                return None
            self._fields[collection] = found["partitionKey"]["paths"][0].strip("/")
        return self._fields[collection]

    async def _documents(self, request: web.Request, kind: str, path: str, body: bytes, field: str) -> Answer:
        sent = json.loads(body) if body else None
        headers = self._kept(request)
        if kind == "query":
            return await self._query(path, headers, sent, request.headers.get(_PK), field)
        if _PK not in request.headers:
            return 400, {"code": "BadRequest", "message": "PartitionKey is missing"}, {}
        key = json.loads(request.headers[_PK])[0]
        if kind == "batch":
            return await self._batch(path, sent, key, field)
        match request.method:
            case "POST":
                return await self._create(path, sent, key, field)
            case "PATCH":
                return await self._patch(path, sent, key, request.headers.get("if-match"))
            case "DELETE":
                return await self._delete(path, key, request.headers.get("if-match"))
            case "GET":
                return await self._get(path, key)
        return await self._forward(request.method, path, headers, sent)

    def _account(self, request: web.Request) -> dict[str, Any]:
        places = [{"name": name, "databaseAccountEndpoint": f"https://{request.host}/"} for name in self.regions]
        return {
            "_self": "", "id": request.host, "_rid": request.host, "media": "//media/", "addresses": "//addresses/",
            "_dbs": "//dbs/", "writableLocations": places if self.writes_everywhere else places[:1],
            "readableLocations": places, "enableMultipleWriteLocations": self.writes_everywhere,
            "userConsistencyPolicy": {"defaultConsistencyLevel": self.consistency},
            "queryEngineConfiguration": "{}",
        }  # fmt: skip

    @staticmethod
    def _kept(request: web.Request) -> dict[str, str]:
        names = (_PK, "if-match", "x-ms-continuation", "x-ms-max-item-count", "x-ms-documentdb-is-upsert")
        return {name: request.headers[name] for name in names if name in request.headers}

    async def _query(self, path: str, headers: dict[str, str], sent: Any, partition: str | None, field: str) -> Answer:
        """One page. Inside a partition, where one is given: the server alone would answer with everybody's rows."""
        if partition is not None:
            found = _QUERY.fullmatch(sent["query"])
            if found is None:
                return 400, {"code": "BadRequest", "message": "the shim does not know such a query"}, {}
            where = f"(c.{field} = @shim) AND ({found['where']})"
            sent["query"] = f"{found['head']} WHERE {where}{found['tail'] or ''}"
            sent.setdefault("parameters", []).append({"name": "@shim", "value": json.loads(partition)[0]})
        wanted = int(headers.get("x-ms-max-item-count", -1))
        headers["x-ms-max-item-count"] = str(min(wanted if wanted > 0 else self.page_items, self.page_items))
        headers |= {
            "x-ms-documentdb-isquery": "true",
            "x-ms-documentdb-query-enablecrosspartition": "true",
            "content-type": "application/query+json",
        }
        return await self._forward("POST", path, headers, sent)

    async def _get(self, path: str, key: str) -> Answer:
        found = await self._forward("GET", path, {_PK: json.dumps([key])})
        # The server fails with 500 for an item that is not there.
        return (404, _ABSENT, {}) if found[0] in (404, 500) else found

    async def _create(self, path: str, item: Any, key: str, field: str) -> Answer:
        if item.get(field) != key:
            return 400, {"code": "BadRequest", "message": "the partition key is not the document's"}, {}
        return await self._forward("POST", path, {_PK: json.dumps([key])}, item)

    async def _delete(self, path: str, key: str, etag: str | None) -> Answer:
        match = {} if etag is None else {"if-match": etag}
        return await self._forward("DELETE", path, {_PK: json.dumps([key]), **match})

    async def _patch(self, path: str, sent: Any, key: str, etag: str | None = None) -> Answer:
        found = await self._get(path, key)
        if found[0] != 200:
            return found
        item = found[1]
        condition = sent.get("condition")
        if condition is not None:
            asked = _CONDITION.fullmatch(condition)
            assert asked, condition
            if item.get(asked[1]) != int(asked[2]):
                return 412, {"code": "PreconditionFailed"}, {}
        if etag not in (None, item["_etag"]):
            return 412, {"code": "PreconditionFailed"}, {}
        assert len(sent["operations"]) <= 10
        for operation in sent["operations"]:
            name = operation["path"].strip("/")
            if operation["op"] == "move":
                item[name] = item.pop(operation["from"].strip("/"))
            else:
                assert operation["op"] == "set"
                item[name] = operation["value"]
        if len(json.dumps(item)) > MAX_REQUEST:
            return 413, {"code": "RequestEntityTooLarge"}, {}
        return await self._forward("PUT", path, {_PK: json.dumps([key])}, item)

    async def _batch(self, path: str, operations: list[Any], key: str, field: str) -> Answer:
        """One after the other, and all undone where one fails."""
        if len(operations) > 100:
            return 400, {"code": "BadRequest", "message": "more than 100 operations"}, {}
        before: dict[str, Any] = {}
        results: list[Any] = []
        for operation in operations:
            name = operation.get("id") or operation["resourceBody"]["id"]
            there = await self._get(f"{path}/{name}", key)
            before.setdefault(name, there[1] if there[0] == 200 else None)
            status, found, _ = await self._one(path, name, operation, key, field)
            results.append({"statusCode": status, "requestCharge": 1, "resourceBody": found})
            if status >= 400:
                for place, item in before.items():
                    await self._delete(f"{path}/{place}", key, None)
                    if item is not None:
                        await self._forward("POST", path, {_PK: json.dumps([key])}, item)
                given_up = {"statusCode": 424, "requestCharge": 0}
                answers = [given_up] * len(operations)
                answers[len(results) - 1] = {"statusCode": status, "requestCharge": 1}
                return 207, answers, {}
        return 200, results, {}

    async def _one(self, path: str, name: str, operation: Any, key: str, field: str) -> Answer:
        match operation["operationType"]:
            case "Create":
                return await self._create(path, operation["resourceBody"], key, field)
            case "Delete":
                return await self._delete(f"{path}/{name}", key, operation.get("ifMatch"))
            case "Patch":
                return await self._patch(f"{path}/{name}", operation["resourceBody"], key)
        raise AssertionError(operation)

    async def _forward(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(self._upstream)
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, headers=headers, data=data) as answer:
            text = await answer.read()
            kept = {name: answer.headers[name] for name in ("etag", "x-ms-continuation") if name in answer.headers}
            return answer.status, json.loads(text) if text else None, kept
