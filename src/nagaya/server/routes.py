"""Every route of the door, in one table."""

from __future__ import annotations

from nagaya.server import admin, health, sign_in, tenant
from nagaya.server.admin import operators_only
from nagaya.server.calls import Handler, Router
from nagaya.server.openai import chat, conversations, responses

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/models", chat.models),
    ("GET", "/v1/models/{}", chat.model),
    ("POST", "/v1/chat/completions", chat.create),
    ("POST", "/v1/embeddings", chat.embeddings),
    ("POST", "/v1/conversations", conversations.create),
    ("GET", "/v1/conversations", conversations.listing),
    ("GET", "/v1/conversations/{}", conversations.retrieve),
    ("POST", "/v1/conversations/{}", conversations.update),
    ("DELETE", "/v1/conversations/{}", conversations.delete),
    ("POST", "/v1/conversations/{}/items", conversations.create_items),
    ("GET", "/v1/conversations/{}/items", conversations.list_items),
    ("GET", "/v1/conversations/{}/items/{}", conversations.retrieve_item),
    ("DELETE", "/v1/conversations/{}/items/{}", conversations.delete_item),
    ("POST", "/v1/responses", responses.create),
    ("GET", "/v1/responses/{}", responses.retrieve),
    ("DELETE", "/v1/responses/{}", responses.delete),
    ("POST", "/v1/responses/{}/cancel", responses.cancel),
    ("GET", "/v1/responses/{}/input_items", responses.input_items),
    ("POST", "/v1/session", sign_in.begin),
    ("GET", "/v1/session", sign_in.show),
    ("DELETE", "/v1/session", sign_in.end),
    ("GET", "/v1/me", tenant.me),
    ("GET", "/v1/usage", tenant.usage),
    ("GET", "/v1/audit", tenant.audit),
    ("POST", "/admin/tenants", operators_only(admin.create_tenant, 201)),
    ("GET", "/admin/tenants", operators_only(admin.list_tenants)),
    ("GET", "/admin/tenants/{}", operators_only(admin.show_tenant)),
    ("PATCH", "/admin/tenants/{}", operators_only(admin.change_tenant)),
    ("DELETE", "/admin/tenants/{}", operators_only(admin.delete_tenant)),
    ("POST", "/admin/tenants/{}/suspend", operators_only(admin.suspend)),
    ("POST", "/admin/tenants/{}/resume", operators_only(admin.resume)),
    ("GET", "/admin/tenants/{}/usage", operators_only(admin.usage)),
    ("PUT", "/admin/tenants/{}/model-key", operators_only(admin.set_model_key)),
    ("POST", "/admin/tenants/{}/external-id", operators_only(admin.external_id)),
    ("PUT", "/admin/tenants/{}/connections/{}", operators_only(admin.set_connection)),
    ("GET", "/admin/tenants/{}/connections", operators_only(admin.list_connections)),
    ("DELETE", "/admin/tenants/{}/connections/{}", operators_only(admin.delete_connection)),
    ("POST", "/admin/tenants/{}/tokens", operators_only(admin.mint)),
    ("POST", "/admin/tenants/{}/revocations", operators_only(admin.revoke_tokens)),
    ("POST", "/admin/tenants/{}/issuers", operators_only(admin.bind_issuer, 201)),
    ("GET", "/admin/tenants/{}/issuers", operators_only(admin.list_issuers)),
    ("DELETE", "/admin/tenants/{}/issuers", operators_only(admin.unbind_issuer)),
    ("GET", "/admin/keys/{}", operators_only(admin.key_status)),
    ("POST", "/admin/keys/{}/rotate", operators_only(admin.rotate_key)),
    ("POST", "/admin/keys/{}/revoke", operators_only(admin.revoke_key)),
    ("POST", "/admin/keys/{}/restore", operators_only(admin.restore_key)),
    ("POST", "/admin/api-keys", operators_only(admin.create_api_key, 201)),
    ("GET", "/admin/api-keys", operators_only(admin.list_api_keys)),
    ("DELETE", "/admin/api-keys/{}", operators_only(admin.revoke_api_key)),
    ("GET", "/admin/audit/verify", operators_only(admin.verify_audit)),
    ("GET", "/healthz", health.healthz),
    ("GET", "/readyz", health.readyz),
    ("GET", "/metrics", health.metrics),
    ("GET", "/.well-known/jwks.json", health.jwks),
)


def router() -> Router:
    """A router with every route."""
    made = Router()
    for method, pattern, handler in ROUTES:
        made.add(method, pattern, handler)
    return made
