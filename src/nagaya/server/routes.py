"""Every route of the door, in one table."""

from __future__ import annotations

from nagaya.server import admin, events, export, health, memories, search, sign_in, tenant, workspaces
from nagaya.server.admin import on_workspace, operators_only
from nagaya.server.calls import Handler, Router
from nagaya.server.mcp import door, resource
from nagaya.server.mem0.routes import MEM0_ROUTES
from nagaya.server.openai import chat, conversations, files, responses, vector_stores
from nagaya.tenancy.principal import Scope

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/models", chat.models),
    ("GET", "/v1/models/{}", chat.model),
    ("POST", "/v1/chat/completions", chat.create),
    ("POST", "/v1/embeddings", chat.embeddings),
    ("POST", "/v1/conversations", conversations.create),
    ("GET", "/v1/conversations", conversations.listing),
    ("GET", "/v1/conversations/{}", conversations.retrieve),
    ("POST", "/v1/conversations/{}", conversations.update),
    ("DELETE", "/v1/conversations/{}", conversations.delete),
    ("POST", "/v1/conversations/{}/restore", conversations.restore),
    ("POST", "/v1/conversations/{}/fork", conversations.fork),
    ("POST", "/v1/conversations/{}/items", conversations.create_items),
    ("GET", "/v1/conversations/{}/items", conversations.list_items),
    ("GET", "/v1/conversations/{}/items/{}", conversations.retrieve_item),
    ("DELETE", "/v1/conversations/{}/items/{}", conversations.delete_item),
    ("POST", "/v1/files", files.create),
    ("GET", "/v1/files", files.listing),
    ("GET", "/v1/files/{}", files.retrieve),
    ("DELETE", "/v1/files/{}", files.delete),
    ("GET", "/v1/files/{}/content", files.content),
    ("POST", "/v1/responses", responses.create),
    ("GET", "/v1/responses/{}", responses.retrieve),
    ("DELETE", "/v1/responses/{}", responses.delete),
    ("POST", "/v1/responses/{}/cancel", responses.cancel),
    ("GET", "/v1/responses/{}/context", responses.context),
    ("POST", "/v1/responses/{}/replay", responses.replay_on),
    ("GET", "/v1/responses/{}/input_items", responses.input_items),
    ("POST", "/v1/vector_stores", vector_stores.create),
    ("GET", "/v1/vector_stores", vector_stores.listing),
    ("GET", "/v1/vector_stores/{}", vector_stores.retrieve),
    ("POST", "/v1/vector_stores/{}", vector_stores.update),
    ("DELETE", "/v1/vector_stores/{}", vector_stores.delete),
    ("POST", "/v1/vector_stores/{}/search", vector_stores.search),
    ("POST", "/v1/vector_stores/{}/files", vector_stores.add_file),
    ("GET", "/v1/vector_stores/{}/files", vector_stores.list_files),
    ("GET", "/v1/vector_stores/{}/files/{}", vector_stores.retrieve_file),
    ("POST", "/v1/vector_stores/{}/files/{}", vector_stores.update_file),
    ("DELETE", "/v1/vector_stores/{}/files/{}", vector_stores.delete_file),
    ("GET", "/v1/vector_stores/{}/files/{}/content", vector_stores.file_content),
    ("POST", "/v1/vector_stores/{}/file_batches", vector_stores.create_batch),
    ("GET", "/v1/vector_stores/{}/file_batches/{}", vector_stores.retrieve_batch),
    ("POST", "/v1/vector_stores/{}/file_batches/{}/cancel", vector_stores.cancel_batch),
    ("GET", "/v1/vector_stores/{}/file_batches/{}/files", vector_stores.list_batch_files),
    ("POST", "/v1/memories", memories.add),
    ("GET", "/v1/memories", memories.listing),
    ("DELETE", "/v1/memories", memories.delete_all),
    ("POST", "/v1/memories/search", memories.search),
    ("GET", "/v1/memories/{}", memories.retrieve),
    ("POST", "/v1/memories/{}", memories.update),
    ("PUT", "/v1/memories/{}", memories.update),
    ("DELETE", "/v1/memories/{}", memories.delete),
    ("GET", "/v1/memories/{}/history", memories.history),
    *MEM0_ROUTES,
    ("GET", "/v1/search", search.search),
    ("GET", "/v1/events", events.events),
    ("POST", "/v1/session", sign_in.begin),
    ("GET", "/v1/session", sign_in.show),
    ("DELETE", "/v1/session", sign_in.end),
    ("GET", "/v1/me", tenant.me),
    ("GET", "/v1/usage", tenant.usage),
    ("GET", "/v1/audit", tenant.audit),
    ("GET", "/v1/export", export.export),
    ("GET", "/v1/workspaces", workspaces.listing),
    ("POST", "/v1/workspaces", workspaces.create),
    ("GET", "/v1/workspaces/{}", workspaces.retrieve),
    ("POST", "/v1/workspaces/{}/archive", workspaces.archive),
    ("POST", "/v1/workspaces/{}/reopen", workspaces.reopen),
    ("GET", "/v1/workspaces/{}/members", workspaces.list_members),
    ("POST", "/v1/workspaces/{}/members", workspaces.add_member),
    ("DELETE", "/v1/workspaces/{}/members", workspaces.remove_member),
    ("POST", "/admin/tenants", operators_only(admin.create_tenant, Scope.WRITE, 201)),
    ("GET", "/admin/tenants", operators_only(admin.list_tenants, Scope.READ)),
    ("GET", "/admin/tenants/{}", operators_only(admin.show_tenant, Scope.READ)),
    ("PATCH", "/admin/tenants/{}", operators_only(admin.change_tenant, Scope.ADMIN)),
    ("DELETE", "/admin/tenants/{}", operators_only(admin.delete_tenant, Scope.ADMIN)),
    ("POST", "/admin/tenants/{}/suspend", operators_only(admin.suspend, Scope.WRITE)),
    ("POST", "/admin/tenants/{}/resume", operators_only(admin.resume, Scope.WRITE)),
    ("GET", "/admin/tenants/{}/usage", operators_only(admin.usage, Scope.READ)),
    ("PUT", "/admin/tenants/{}/model-key", operators_only(admin.set_model_key, Scope.ADMIN)),
    ("POST", "/admin/tenants/{}/external-id", operators_only(admin.external_id, Scope.WRITE)),
    ("PUT", "/admin/tenants/{}/connections/{}", operators_only(admin.set_connection, Scope.ADMIN)),
    ("GET", "/admin/tenants/{}/connections", operators_only(admin.list_connections, Scope.READ)),
    ("DELETE", "/admin/tenants/{}/connections/{}", operators_only(admin.delete_connection, Scope.ADMIN)),
    ("POST", "/admin/tenants/{}/tokens", operators_only(admin.mint, Scope.ADMIN)),
    ("POST", "/admin/tenants/{}/revocations", operators_only(admin.revoke_tokens, Scope.ADMIN)),
    ("POST", "/admin/tenants/{}/issuers", operators_only(admin.bind_issuer, Scope.ADMIN, 201)),
    ("GET", "/admin/tenants/{}/issuers", operators_only(admin.list_issuers, Scope.READ)),
    ("DELETE", "/admin/tenants/{}/issuers", operators_only(admin.unbind_issuer, Scope.ADMIN)),
    ("GET", "/admin/keys/{}", operators_only(admin.key_status, Scope.READ)),
    ("POST", "/admin/keys/{}/rotate", operators_only(admin.rotate_key, Scope.WRITE)),
    ("POST", "/admin/keys/{}/revoke", operators_only(admin.revoke_key, Scope.ADMIN)),
    ("POST", "/admin/keys/{}/restore", operators_only(admin.restore_key, Scope.ADMIN)),
    ("POST", "/admin/api-keys", operators_only(admin.create_api_key, Scope.ADMIN, 201)),
    ("GET", "/admin/api-keys", operators_only(admin.list_api_keys, Scope.READ)),
    ("DELETE", "/admin/api-keys/{}", operators_only(admin.revoke_api_key, Scope.ADMIN)),
    ("GET", "/admin/audit/verify", operators_only(admin.verify_audit, Scope.READ)),
    ("GET", "/admin/tenants/{}/workspaces", operators_only(admin.list_workspaces, Scope.READ)),
    ("GET", "/admin/tenants/{}/workspaces/{}/members", on_workspace(operators_only(admin.list_members, Scope.READ))),
    ("POST", "/admin/tenants/{}/workspaces/{}/members", on_workspace(operators_only(admin.add_member, Scope.ADMIN))),
    (
        "DELETE",
        "/admin/tenants/{}/workspaces/{}/members",
        on_workspace(operators_only(admin.remove_member, Scope.ADMIN)),
    ),
    ("POST", resource.PATH, door.exchange),
    ("GET", resource.METADATA, resource.metadata),
    ("GET", resource.METADATA + resource.PATH, resource.metadata),
    ("GET", "/healthz", health.healthz),
    ("GET", "/readyz", health.readyz),
    ("GET", "/metrics", health.metrics),
    ("GET", "/.well-known/jwks.json", health.jwks),
)


WORKSPACE = "/workspaces/{}"


def _of_workspaces() -> tuple[tuple[str, str, Handler], ...]:
    """What an operator can do to a tenant can be done to a workspace too, but for its issuers: it has none."""
    return tuple(
        (method, pattern.replace("{}", "{}" + WORKSPACE, 1), on_workspace(handler))
        for method, pattern, handler in _ROUTES
        if pattern.startswith(("/admin/tenants/{}", "/admin/keys/{}"))
        and not pattern.endswith("/issuers")
        and "/workspaces" not in pattern
    )


ROUTES = (*_ROUTES, *_of_workspaces())


def router() -> Router:
    """A router with every route."""
    made = Router()
    for method, pattern, handler in ROUTES:
        made.add(method, pattern, handler)
    return made
