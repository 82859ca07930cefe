"""The OpenAPI document of every route, made from the same structs that decode the bodies."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from nagaya import __version__
from nagaya.context.chat import ChatCompletion, ChatIn
from nagaya.context.conversations import Conversation
from nagaya.context.embedding import EmbeddingList, EmbeddingsIn
from nagaya.context.found import FoundPage
from nagaya.context.library.files import PURPOSES, FileObject
from nagaya.context.library.stores import VectorStore, VectorStoreFile, VectorStoreFileBatch
from nagaya.context.memory_shapes import Memory
from nagaya.context.response_records import ResponseContext
from nagaya.context.response_shapes import Response, ResponseIn
from nagaya.context.search import MAX_QUERY_CHARACTERS, TYPES
from nagaya.lifecycle.workspaces import MemberShown, WorkspaceShown
from nagaya.server import admin, memories, sign_in, workspaces
from nagaya.server.mcp.door import McpMessage
from nagaya.server.mcp.resource import METADATA, PATH
from nagaya.server.mem0 import shapes as mem0
from nagaya.server.mem0.routes import MEM0_ROUTES
from nagaya.server.openai import vector_stores
from nagaya.server.openai.conversations import ConversationChange, ConversationIn, ForkIn, ItemsIn
from nagaya.server.openai.responses import ReplayIn
from nagaya.server.routes import ROUTES, WORKSPACE

_BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/chat/completions"): ChatIn,
    ("POST", "/v1/embeddings"): EmbeddingsIn,
    ("POST", "/v1/conversations"): ConversationIn,
    ("POST", "/v1/conversations/{}"): ConversationChange,
    ("POST", "/v1/conversations/{}/fork"): ForkIn,
    ("POST", "/v1/conversations/{}/items"): ItemsIn,
    ("POST", "/v1/responses"): ResponseIn,
    ("POST", "/v1/responses/{}/replay"): ReplayIn,
    ("POST", "/v1/vector_stores"): vector_stores.VectorStoreIn,
    ("POST", "/v1/vector_stores/{}"): vector_stores.VectorStoreChange,
    ("POST", "/v1/vector_stores/{}/search"): vector_stores.SearchIn,
    ("POST", "/v1/vector_stores/{}/files"): vector_stores.StoreFileIn,
    ("POST", "/v1/vector_stores/{}/files/{}"): vector_stores.StoreFileChange,
    ("POST", "/v1/vector_stores/{}/file_batches"): vector_stores.FileBatchIn,
    ("POST", "/v1/memories"): memories.MemoryIn,
    ("POST", "/v1/memories/search"): memories.MemoryQuestion,
    ("POST", "/v1/memories/{}"): memories.MemoryChange,
    ("PUT", "/v1/memories/{}"): memories.MemoryChange,
    ("POST", "/v3/memories/add/"): mem0.Mem0AddIn,
    ("POST", "/v3/memories/"): mem0.Mem0ListIn,
    ("POST", "/v3/memories/search/"): mem0.Mem0SearchIn,
    ("PUT", "/v1/memories/{}/"): mem0.Mem0ChangeIn,
    ("PUT", "/v1/batch/"): mem0.Mem0BatchIn,
    ("DELETE", "/v1/batch/"): mem0.Mem0BatchIn,
    ("POST", "/v1/session"): sign_in.SessionIn,
    ("POST", "/v1/workspaces"): workspaces.WorkspaceIn,
    ("POST", "/v1/workspaces/{}/members"): workspaces.MemberIn,
    ("POST", PATH): McpMessage,
    ("POST", "/admin/tenants"): admin.TenantIn,
    ("POST", "/admin/tenants/{}/members"): admin.MemberIn,
    ("PATCH", "/admin/tenants/{}"): dict[str, Any],
    ("PUT", "/admin/tenants/{}/model-key"): admin.SecretIn,
    ("PUT", "/admin/tenants/{}/connections/{}"): dict[str, Any],
    ("POST", "/admin/tenants/{}/tokens"): admin.TokenIn,
    ("POST", "/admin/tenants/{}/revocations"): admin.RevocationIn,
    ("POST", "/admin/tenants/{}/issuers"): admin.IssuerIn,
    ("POST", "/admin/api-keys"): admin.ApiKeyIn,
}
_ANSWERS: dict[tuple[str, str], Any] = {
    ("POST", "/v1/chat/completions"): ChatCompletion,
    ("POST", "/v1/embeddings"): EmbeddingList,
    ("POST", "/v1/conversations"): Conversation,
    ("GET", "/v1/conversations/{}"): Conversation,
    ("POST", "/v1/conversations/{}"): Conversation,
    ("POST", "/v1/files"): FileObject,
    ("GET", "/v1/files/{}"): FileObject,
    ("POST", "/v1/responses"): Response,
    ("GET", "/v1/responses/{}"): Response,
    ("GET", "/v1/responses/{}/context"): ResponseContext,
    ("POST", "/v1/responses/{}/replay"): Response,
    ("POST", "/v1/conversations/{}/fork"): Conversation,
    ("POST", "/v1/conversations/{}/restore"): Conversation,
    ("POST", "/v1/vector_stores"): VectorStore,
    ("GET", "/v1/vector_stores/{}"): VectorStore,
    ("POST", "/v1/vector_stores/{}"): VectorStore,
    ("POST", "/v1/vector_stores/{}/search"): vector_stores.SearchPage,
    ("POST", "/v1/vector_stores/{}/files"): VectorStoreFile,
    ("GET", "/v1/vector_stores/{}/files/{}"): VectorStoreFile,
    ("POST", "/v1/vector_stores/{}/files/{}"): VectorStoreFile,
    ("POST", "/v1/vector_stores/{}/file_batches"): VectorStoreFileBatch,
    ("GET", "/v1/vector_stores/{}/file_batches/{}"): VectorStoreFileBatch,
    ("POST", "/v1/vector_stores/{}/file_batches/{}/cancel"): VectorStoreFileBatch,
    ("POST", "/v1/memories"): memories.MemoryList,
    ("GET", "/v1/memories"): memories.MemoryList,
    ("DELETE", "/v1/memories"): memories.MemoriesDeleted,
    ("POST", "/v1/memories/search"): memories.MemoryHits,
    ("GET", "/v1/memories/{}"): Memory,
    ("POST", "/v1/memories/{}"): Memory,
    ("PUT", "/v1/memories/{}"): Memory,
    ("DELETE", "/v1/memories/{}"): memories.MemoryDeleted,
    ("GET", "/v1/memories/{}/history"): memories.MemoryHistory,
    ("GET", "/v1/ping/"): mem0.Mem0Pong,
    ("POST", "/v3/memories/add/"): mem0.Mem0AddOut,
    ("POST", "/v3/memories/"): mem0.Mem0Page,
    ("POST", "/v3/memories/search/"): mem0.Mem0Found,
    ("GET", "/v1/memories/{}/"): mem0.Mem0Memory,
    ("PUT", "/v1/memories/{}/"): mem0.Mem0Memory,
    ("DELETE", "/v1/memories/{}/"): mem0.Mem0Done,
    ("GET", "/v1/memories/{}/history/"): list[mem0.Mem0Event],
    ("DELETE", "/v1/memories/"): mem0.Mem0Done,
    ("PUT", "/v1/batch/"): mem0.Mem0Done,
    ("DELETE", "/v1/batch/"): mem0.Mem0Done,
    ("GET", "/v1/entities/"): mem0.Mem0Entities,
    ("DELETE", "/v2/entities/{}/{}/"): mem0.Mem0Done,
    ("GET", "/v1/search"): FoundPage,
    ("POST", "/v1/session"): sign_in.Session,
    ("GET", "/v1/session"): sign_in.Session,
    ("GET", "/v1/workspaces"): workspaces.WorkspaceList,
    ("POST", "/v1/workspaces"): WorkspaceShown,
    ("GET", "/v1/workspaces/{}"): WorkspaceShown,
    ("POST", "/v1/workspaces/{}/archive"): WorkspaceShown,
    ("POST", "/v1/workspaces/{}/reopen"): WorkspaceShown,
    ("GET", "/v1/workspaces/{}/members"): workspaces.MemberList,
    ("POST", "/v1/workspaces/{}/members"): MemberShown,
}
_FORMS: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/files"): {
        "type": "object",
        "required": ["file", "purpose"],
        "additionalProperties": False,
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": list(PURPOSES)},
            "shared": {"enum": ["true", "false"]},
            "expires_after[anchor]": {"enum": ["created_at"]},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
        },
    },
}
_NUMBER = {"type": "integer", "minimum": 1, "maximum": 100}
_STORE_PAGES: dict[str, dict[str, Any]] = {
    "after": {"type": "string"}, "before": {"type": "string"}, "limit": _NUMBER, "order": {"enum": ["asc", "desc"]},
}  # fmt: skip
_STATUS = {"enum": ["in_progress", "completed", "failed", "cancelled"]}
_MARKS: dict[str, dict[str, Any]] = {
    "scope": {"enum": ["user", "tenant"]},
    **{name: {"type": "string"} for name in ("user", "agent_id", "run_id", "app_id", "category")},
}
_QUERIES: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("GET", "/v1/conversations"): {
        "after": {"type": "string"}, "limit": _NUMBER, "order": {"enum": ["asc", "desc"]}, "user": {"type": "string"},
        "shared": {"enum": ["true", "false"]}, "archived": {"enum": ["true", "false"]},
        "deleted": {"enum": ["true", "false"]},
    },
    ("DELETE", "/v1/conversations/{}"): {"permanent": {"enum": ["true", "false"]}},
    ("GET", "/v1/conversations/{}/items"): {
        "after": {"type": "string"}, "limit": _NUMBER, "order": {"enum": ["asc", "desc"]},
    },
    ("GET", "/v1/files"): {
        "after": {"type": "string"}, "limit": {"type": "integer", "minimum": 1, "maximum": 10000},
        "order": {"enum": ["asc", "desc"]}, "purpose": {"type": "string"}, "user": {"type": "string"},
        "shared": {"enum": ["true", "false"]},
    },
    ("GET", "/v1/responses/{}"): {"stream": {"enum": ["true", "false"]}, "starting_after": {"type": "integer"}},
    ("GET", "/v1/responses/{}/input_items"): {
        "after": {"type": "string"}, "limit": _NUMBER, "order": {"enum": ["asc", "desc"]},
    },
    ("GET", "/v1/vector_stores"): {**_STORE_PAGES, "shared": {"enum": ["true", "false"]}},
    ("GET", "/v1/vector_stores/{}/files"): {**_STORE_PAGES, "filter": _STATUS},
    ("GET", "/v1/vector_stores/{}/file_batches/{}/files"): {**_STORE_PAGES, "filter": _STATUS},
    ("GET", "/v1/memories"): {
        "after": {"type": "string"}, "limit": _NUMBER, "order": {"enum": ["asc", "desc"]}, **_MARKS,
    },
    ("DELETE", "/v1/memories"): _MARKS,
    ("POST", "/v3/memories/"): {
        "page": {"type": "integer", "minimum": 1}, "page_size": {"type": "integer", "minimum": 1, "maximum": 200},
    },
    ("DELETE", "/v1/memories/{}/"): {"delete_linked": {"enum": ["true", "false"]}},
    ("DELETE", "/v1/memories/"): {
        name: {"type": "string"} for name in ("user_id", "agent_id", "app_id", "run_id", "filters")
    },
    ("GET", "/v1/search"): {
        "q": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS},
        "types": {"type": "string", "default": ",".join(TYPES)}, "limit": _NUMBER, "after": {"type": "string"},
    },
    ("GET", "/v1/events"): {"from": {"enum": ["latest", "earliest"]}},
    ("GET", "/v1/usage"): {"month": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}},
    ("GET", "/v1/export"): {"recipient": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    ("GET", "/v1/audit"): {"after": {"type": "integer"}, "limit": _NUMBER},
    ("GET", "/v1/workspaces"): {"all": {"enum": ["true", "false"]}},
    ("DELETE", "/v1/workspaces/{}/members"): {"user": {"type": "string"}},
    ("DELETE", "/admin/tenants/{}/members"): {"user": {"type": "string"}},
    ("GET", "/admin/tenants"): {"after": {"type": "string"}, "limit": _NUMBER},
    ("GET", "/admin/tenants/{}/usage"): {"month": {"type": "string"}},
    ("DELETE", "/admin/tenants/{}/issuers"): {"issuer": {"type": "string"}},
    ("GET", "/admin/api-keys"): {"tenant": {"type": "string"}},
    ("DELETE", "/admin/api-keys/{}"): {"tenant": {"type": "string"}},
    ("GET", "/admin/audit/verify"): {"tenant": {"type": "string"}},
}  # fmt: skip
_NAMES = {
    "conversations": ["conversation_id", "item_id"],
    "files": ["file_id"],
    "memories": ["memory_id"],
    "responses": ["response_id"],
    "models": ["model"],
    "vector_stores": ["vector_store_id", "part_id"],
    "workspaces": ["workspace"],
    "entities": ["entity_type", "entity_name"],
}
_MEM0 = {(method, pattern) for method, pattern, _ in MEM0_ROUTES}
_CHOOSES_WORKSPACE = {
    "name": "X-Workspace-Id",
    "in": "header",
    "required": False,
    "description": "A workspace of the caller's tenant that the caller is a member of: its name or `tenant/workspace`.",
    "schema": {"type": "string"},
}
_HEADERS = {
    ("GET", "/v1/export"): {
        "X-Bundle-Passphrase": "Instead of `recipient`: a passphrase that is to open the bundle, in UTF-8 and Base64.",
        "X-Bundle-Mark": "Instead of both: the last mark of what has arrived, in Base64; the answer is what follows.",
    },
}
_OPEN = {"/healthz", "/readyz", "/metrics", "/.well-known/jwks.json", METADATA, METADATA + PATH}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MCP_ERROR = {
    "type": "object",
    "required": ["jsonrpc", "id", "error"],
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["integer", "string", "null"]},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": {}},
        },
    },
}


@cache
def document() -> dict[str, Any]:
    """The document. Made once a process."""
    types = [*_BODIES.values(), *_ANSWERS.values()]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    bodies = dict(zip(_BODIES, schemas, strict=False))
    answers = dict(zip(_ANSWERS, schemas[len(_BODIES) :], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, pattern, handler in ROUTES:
        names = _names(pattern)
        path = pattern
        for name in names:
            path = path.replace("{}", f"{{{name}}}", 1)
        # A workspace's route takes and gives what its tenant's does.
        place = method, pattern.replace(WORKSPACE, "") if pattern.startswith("/admin/") else pattern
        operation: dict[str, Any] = {
            "operationId": f"{method.lower()}{path.translate(_PLAIN)}",
            "summary": (handler.__doc__ or "").partition("\n")[0],
            "tags": [_tag(method, pattern)],
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
            + ([_CHOOSES_WORKSPACE] if _is_tenants(pattern) and place != ("POST", "/v1/session") else [])
            + [
                {"name": name, "in": "query", "required": False, "schema": schema}
                for name, schema in _QUERIES.get(place, {}).items()
            ]
            + [
                {"name": name, "in": "header", "required": False, "description": told, "schema": {"type": "string"}}
                for name, told in _HEADERS.get(place, {}).items()
            ],
            "responses": _responses(place, answers),
        }
        if pattern not in _OPEN and place != ("POST", "/v1/session"):
            operation["security"] = [{"bearer": []}]
        if place in bodies:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": bodies[place]}}}
        if place in _FORMS:
            operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORMS[place]}}}
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nagaya",
            "version": __version__,
            "description": "A multi-tenant context platform. `/v1` speaks the OpenAI API, `/mcp` the Model Context "
            "Protocol; `/admin` is for operators.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR, "McpError": _MCP_ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


_PLAIN = str.maketrans({"/": "_", "{": None, "}": None, ".": "_", "-": "_"})


def _tag(method: str, pattern: str) -> str:
    if pattern in _OPEN:
        return "health"
    return "mem0" if (method, pattern) in _MEM0 else pattern.split("/")[1]


def _is_tenants(pattern: str) -> bool:
    return pattern not in _OPEN and not pattern.startswith("/admin/")


def _names(pattern: str) -> list[str]:
    count = pattern.count("{}")
    collection = pattern.split("/")[2] if _is_tenants(pattern) and pattern != PATH else ""
    if WORKSPACE in pattern and pattern.startswith("/admin/"):
        return ["id", "workspace", "part"][:count]
    return _NAMES.get(collection, ["id", "part"])[:count]


def _responses(place: tuple[str, str], answers: dict[tuple[str, str], Any]) -> dict[str, Any]:
    kind = "text/plain" if place[1] == "/metrics" else "application/json"
    if place == ("GET", "/v1/events"):
        kind = "text/event-stream"
    if place in (("GET", "/v1/files/{}/content"), ("GET", "/v1/export")):
        kind = "application/octet-stream"
    content: dict[str, Any] = {kind: {"schema": answers.get(place, {"type": "object"}) if kind != "text/plain" else {}}}
    if place in (
        ("POST", "/v1/responses"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/responses/{}"),
        ("POST", PATH),
    ):
        content["text/event-stream"] = {"schema": {"type": "string"}}
    done = (
        "201"
        if place[0] == "POST"
        and place[1]
        in ("/v1/session", "/v1/workspaces", "/admin/tenants", "/admin/api-keys", "/admin/tenants/{}/issuers")
        else "200"
    )
    shape = "McpError" if place == ("POST", PATH) else "Error"
    refused = {
        "description": "Refused",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}},
    }
    made: dict[str, Any] = {done: {"description": "Done", "content": content}}
    if place == ("POST", PATH):
        made["202"] = {"description": "A notification was taken note of"}
    return made | {"default": refused}
