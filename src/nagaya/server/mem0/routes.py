"""mem0's routes in one table, with those that are refused."""

from __future__ import annotations

from typing import Final

from nagaya.server.calls import Handler
from nagaya.server.mem0 import entities, memories
from nagaya.server.mem0.calls import for_mem0, not_offered

_PROJECTS: Final = "/api/v1/orgs/organizations/{}/projects/"
_NOT_OFFERED: Final = (
    ("POST", "/v1/exports/", "exports"),
    ("POST", "/v1/exports/get/", "exports"),
    ("POST", "/v1/summary/", "summaries"),
    ("POST", "/v1/feedback/", "ratings"),
    ("GET", "/v2/entities/user/{}/profile/", "profiles"),
    ("POST", "/v2/profiles/jobs/", "profiles"),
    ("GET", "/v2/profiles/jobs/{}/", "profiles"),
    ("GET", "/v2/profiles/settings/", "profiles"),
    ("POST", "/v2/profiles/settings/", "profiles"),
    ("GET", "/api/v1/webhooks/projects/{}/", "webhooks"),
    ("POST", "/api/v1/webhooks/projects/{}/", "webhooks"),
    ("PUT", "/api/v1/webhooks/{}/", "webhooks"),
    ("DELETE", "/api/v1/webhooks/{}/", "webhooks"),
    ("POST", _PROJECTS, "projects"),
    ("GET", _PROJECTS + "{}/", "projects"),
    ("PATCH", _PROJECTS + "{}/", "projects"),
    ("DELETE", _PROJECTS + "{}/", "projects"),
    ("GET", _PROJECTS + "{}/members/", "projects"),
    ("POST", _PROJECTS + "{}/members/", "projects"),
    ("PUT", _PROJECTS + "{}/members/", "projects"),
    ("DELETE", _PROJECTS + "{}/members/", "projects"),
)

MEM0_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/v1/ping/", for_mem0(memories.ping)),
    ("POST", "/v3/memories/add/", for_mem0(memories.add)),
    ("POST", "/v3/memories/", for_mem0(memories.listing)),
    ("POST", "/v3/memories/search/", for_mem0(memories.search)),
    ("GET", "/v1/memories/{}/", for_mem0(memories.retrieve)),
    ("PUT", "/v1/memories/{}/", for_mem0(memories.update)),
    ("DELETE", "/v1/memories/{}/", for_mem0(memories.delete)),
    ("GET", "/v1/memories/{}/history/", for_mem0(memories.history)),
    ("DELETE", "/v1/memories/", for_mem0(memories.delete_all)),
    ("PUT", "/v1/batch/", for_mem0(memories.update_batch)),
    ("DELETE", "/v1/batch/", for_mem0(memories.delete_batch)),
    ("GET", "/v1/entities/", for_mem0(entities.listing)),
    ("DELETE", "/v2/entities/{}/{}/", for_mem0(entities.delete)),
    *((method, pattern, not_offered(name)) for method, pattern, name in _NOT_OFFERED),
)
