"""Two tenants with a canary each: one unique text, planted wherever a tenant can put words."""

from __future__ import annotations

import json
from typing import Any

import httpx

from nagaya.tenancy.names import room_of
from support.server import RunningServer


class Planted:
    """A tenant, or a workspace of one that is there, with canaries. ``canary`` stands in its content and secrets, ``name_canary`` in what the registry may
    know: user ids and the names of API keys."""

    def __init__(self, server: RunningServer, tenant_id: str) -> None:
        self.server = server
        self.id = tenant_id
        tenant, slash, workspace = tenant_id.partition("/")
        self.host = f"{tenant}.example"
        self.admin_path = f"/admin/tenants/{tenant}" + (f"/workspaces/{workspace}" if slash else "")
        name = tenant_id.replace("/", "--")
        self.canary = f"zq-canary-of-{name}-7f3a9c51-苔"
        self.name_canary = f"zq-person-of-{name}-51d2"
        self.user = f"{self.name_canary}-mio"
        self.other_user = f"{self.name_canary}-ren"
        models = ["builtin://", f"openai+http://127.0.0.1:9/v1#far-{name}"]
        server.tenant(tenant_id, hosts=[] if slash else [self.host], models=models)
        name = f"{self.name_canary} key"
        self.user_key = server.key(tenant_id, self.user, "user", name)
        self.other_key = server.key(tenant_id, self.other_user, "user", name)
        self.member_key = server.key(tenant_id, f"{self.name_canary}-yui", "member", name)
        self.admin_key = server.key(tenant_id, f"{self.name_canary}-aoi", "tenant_admin", name)
        self.as_user = self.client(self.user_key)
        self.as_other = self.client(self.other_key)
        self.as_member = self.client(self.member_key)
        self.as_admin = self.client(self.admin_key)
        server.operate("PUT", f"{self.admin_path}/model-key", {"api_key": f"sk-{self.canary}"})
        self._plant()

    def client(self, key: str) -> httpx.Client:
        """A client that comes to the tenant's own host."""
        return self.server.client(key, host=self.host)

    def _plant(self) -> None:
        made = self.post(
            "/v1/conversations",
            {"title": self.canary, "metadata": {"topic": self.canary}, "items": [said(f"{self.canary} first")]},
        )
        self.conversation = made["id"]
        items = self.post(f"/v1/conversations/{self.conversation}/items", {"items": [said(self.canary)] * 3})
        self.items = [item["id"] for item in items["data"]]
        response = self.post("/v1/responses", {"conversation": self.conversation, "input": f"Say {self.canary}"})
        self.response = response["id"]
        self.lone_response = self.post("/v1/responses", {"input": f"{self.canary}?", "user": self.canary})["id"]
        for number in range(3):
            self.post("/v1/conversations", {"metadata": {"number": str(number), "topic": self.canary}})
        listed = self.as_user.get("/v1/conversations", params={"limit": 2}).json()
        self.cursor = listed["next_cursor"]
        assert self.cursor

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """A POST of the tenant's user; its answer. Fails the test where it is refused."""
        reply = self.as_user.post(path, json=body, headers=headers)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def store_bytes(self) -> bytes:
        """Every byte of the tenant's files on disk."""
        folder = self.server.data / "tenants" / room_of(self.id)
        return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def said(text: str, role: str = "user") -> dict[str, Any]:
    """A message to append."""
    return {"type": "message", "role": role, "content": text}


def forms(text: str) -> list[bytes]:
    """How a text may stand in bytes: UTF-8, JSON-escaped, UTF-16, hex, percent-encoded."""
    escaped = json.dumps(text)[1:-1]
    percent = "".join(letter if letter.isascii() else "".join(f"%{b:02X}" for b in letter.encode()) for letter in text)
    return [text.encode(), escaped.encode(), text.encode("utf-16-le"), text.encode().hex().encode(), percent.encode()]


def assert_no_canary(shown: str | bytes, *, of: Planted, content_only: bool = False) -> None:
    """Fail where any of the tenant's canaries stands in ``shown``, in whatever form.

    ``content_only``: names of users and keys may stand there, as they do in the registry.
    """
    data = shown.encode("utf-8", "surrogatepass") if isinstance(shown, str) else shown
    for canary in (of.canary,) if content_only else (of.canary, of.name_canary):
        for form in forms(canary):
            at = data.find(form)
            assert at < 0, f"a canary of {of.id} leaked: …{data[max(0, at - 80) : at + 80]!r}…"


def assert_error(reply: httpx.Response, status: int | None = None, code: str | None = None) -> dict[str, Any]:
    """The reply is an error in the error shape, below 500 unless ``status`` says otherwise; its inside."""
    if status is None:
        assert 400 <= reply.status_code < 500, f"{reply.status_code}: {reply.text[:300]}"
    else:
        assert reply.status_code == status, f"{reply.status_code}: {reply.text[:300]}"
    assert reply.headers.get("x-request-id")
    body = reply.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in reply.text
    if code is not None:
        assert error["code"] == code, reply.text
    return error
