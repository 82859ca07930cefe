"""A Key Vault for tests: keys with real RSA-OAEP-256, and secrets with soft delete, behind a 401 challenge."""

from __future__ import annotations

import base64
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

PAGE = 25
MAX_VALUE = 25_600
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _error(status: int, code: str, inner: str | None = None) -> web.Response:
    more = {"innererror": {"code": inner}} if inner else {}
    return web.json_response({"error": {"code": code, "message": f"{code} {inner or ''}", **more}}, status=status)


class Key:
    """One key with its versions."""

    def __init__(self) -> None:
        self.versions: dict[str, rsa.RSAPrivateKey] = {}
        self.enabled = True
        self.state = "there"
        self.rotate()

    def rotate(self) -> None:
        self.versions[secrets.token_hex(16)] = rsa.generate_private_key(65537, 2048)


class KeyVault:
    """``holder`` says whose a token is; clients in ``denied`` may do nothing. ``seen`` counts requests."""

    def __init__(self, holder: Callable[[str, str], str | None]) -> None:
        self._holder = holder
        self.keys: dict[str, Key] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.deleted: dict[str, dict[str, Any]] = {}
        self.region: str | None = "japaneast"
        self.denied: set[str] = set()
        self.failing: list[int] = []
        self.seen: Counter[str] = Counter()
        self.slow_polls = 0

    async def answer(self, request: web.Request) -> web.Response:
        port = request.host.partition(":")[2]
        resource = f"https://vault.test:{port}"
        client = self._holder(request.headers.get("authorization", "").removeprefix("Bearer "), resource)
        if client is None:
            from parts.entra import TENANT

            challenge = f'Bearer authorization="https://login.test:{port}/{TENANT}", resource="{resource}"'
            return web.json_response({}, status=401, headers={"www-authenticate": challenge})
        parts = request.path.strip("/").split("/")
        self.seen[f"{request.method} {parts[0]}{'/' + parts[-1] if len(parts) == 4 else ''}"] += 1
        if self.failing:
            status = self.failing.pop(0)
            made = _error(status, "Unavailable")
            if status >= 429:
                made.headers["retry-after"] = "0"
        elif client in self.denied:
            made = _error(403, "Forbidden", "ForbiddenByRbac")
        elif parts[0] in ("keys", "deletedkeys"):
            made = await self._key(request, parts)
        else:
            made = await self._secret(request, parts)
        if self.region is not None:
            made.headers["x-ms-keyvault-region"] = self.region
        return made

    async def _key(self, request: web.Request, parts: list[str]) -> web.Response:
        name = parts[1]
        key = self.keys.get(name)
        if parts[0] == "deletedkeys":
            shown = {"key": {"kid": f"https://{request.host}/keys/{name}/0123"}, "attributes": {}}
            return web.json_response(shown) if key and key.state == "deleted" else _error(404, "KeyNotFound")
        if key is None or key.state != "there":
            return _error(404, "KeyNotFound")
        version = parts[2] if len(parts) > 2 and parts[2] else list(key.versions)[-1]
        if version not in key.versions:
            return _error(404, "KeyNotFound")
        if not key.enabled:
            return _error(403, "Forbidden", "KeyDisabled")
        private = key.versions[version]
        kid = f"https://{request.host}/keys/{name}/{version}"
        if request.method == "GET":
            numbers = private.public_key().public_numbers()
            jwk = {
                "kid": kid, "kty": "RSA", "key_ops": ["wrapKey", "unwrapKey"], "n": _number(numbers.n),
                "e": _number(numbers.e),
            }  # fmt: skip
            return web.json_response({"key": jwk, "attributes": {"enabled": True, "created": 1, "updated": 1}})
        asked = await request.json()
        if asked["alg"] != "RSA-OAEP-256":
            return _error(400, "BadParameter")
        try:
            plain = private.decrypt(_bytes(asked["value"]), _OAEP)
        except ValueError:
            return _error(400, "BadParameter")
        return web.json_response({"kid": kid, "value": _text(plain)})

    async def _secret(self, request: web.Request, parts: list[str]) -> web.Response:
        if len(parts) == 1:
            return self._list(request)
        name = parts[1].lower()
        if parts[0] == "deletedsecrets":
            if name not in self.deleted:
                return _error(404, "SecretNotFound")
            if request.method == "POST":
                self.secrets[name] = self.deleted.pop(name)
                return web.json_response(self._shown(request, name, self.secrets[name]))
            return web.json_response(self._shown(request, name, self.deleted[name]))
        if request.method == "PUT":
            sent = await request.json()
            if name in self.deleted:
                return _error(409, "Conflict", "ObjectIsDeletedButRecoverable")
            if not sent["value"] or len(sent["value"]) > MAX_VALUE or len(name) > 127:
                return _error(400, "BadParameter")
            self.secrets[name] = {**sent, "at": time.time()}
        elif name not in self.secrets:
            return _error(404, "SecretNotFound")
        elif request.method == "DELETE":
            self.deleted[name] = self.secrets.pop(name)
            recovery = {"recoveryId": f"https://{request.host}/deletedsecrets/{name}", "deletedDate": 1}
            return web.json_response(self._shown(request, name, self.deleted[name]) | recovery)
        elif self.secrets[name].get("attributes", {}).get("enabled") is False:
            return _error(403, "Forbidden", "SecretDisabled")
        return web.json_response(self._shown(request, name, self.secrets[name]))

    def _list(self, request: web.Request) -> web.Response:
        names = sorted(self.secrets)
        start = int(request.query.get("$skiptoken", 0))
        shown = [self._shown(request, name, self.secrets[name]) for name in names[start : start + PAGE]]
        for each in shown:
            each["id"] = each["id"].rpartition("/")[0]
            del each["value"]
        more = f"https://{request.host}/secrets?api-version=7.5&$skiptoken={start + PAGE}"
        return web.json_response({"value": shown, "nextLink": more if start + PAGE < len(names) else None})

    @staticmethod
    def _shown(request: web.Request, name: str, held: dict[str, Any]) -> dict[str, Any]:
        return {
            "value": held["value"], "id": f"https://{request.host}/secrets/{name}/0123", "attributes": {"enabled": True},
            "contentType": held.get("contentType"), "tags": held.get("tags") or {},
        }  # fmt: skip
