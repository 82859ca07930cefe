"""mem0's entities: the users, agents, apps and runs that have memories."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, cast

from nagaya.errors import NotFound
from nagaya.server.calls import Call, Reply, encode
from nagaya.server.mem0.filters import LABELS
from nagaya.server.mem0.shapes import Mem0Done, Mem0Entities, Mem0Entity
from nagaya.tenancy.principal import Scope

Kind = Literal["user", "agent", "app", "run"]
_LABEL_OF: Final = {name.removesuffix("_id"): name for name in LABELS}


async def listing(call: Call) -> Reply:
    """Who and what has memories: users (all of the tenant's for an administrator), and the caller's own agents, apps,
    runs."""
    async with await call.admit(Scope.READ) as context:
        own = context.session.entrance.principal.user_key
        memories = await context.memories.every(users=[own])
        found = [
            Mem0Entity(user, user, "user", len(memories) if user == own else None)
            for user in await context.memories.users()
        ]
        for kind, label in _LABEL_OF.items():
            counts = Counter(name for one in memories if (name := getattr(one, label)) is not None)
            found += [Mem0Entity(name, name, cast(Kind, kind), count) for name, count in sorted(counts.items())]
        return Reply(encode(Mem0Entities(len(found), None, None, found)))


async def delete(call: Call) -> Reply:
    """Delete all memories of a user, or the caller's own with that agent, app or run."""
    async with await call.admit() as context:
        kind, name = call.params
        if kind == "user":
            await context.memories.delete_all(user=name)
        elif (label := _LABEL_OF.get(kind)) is not None:
            await context.memories.delete_all(where=lambda memory: getattr(memory, label) == name)
        else:
            raise NotFound
        return Reply(encode(Mem0Done("Entity deleted successfully!")))
