"""LangGraph's checkpoints and long-term store, sealed in the tenant's own store.

::

    async with nagaya.session(entrance) as tenant:
        graph = builder.compile(checkpointer=NagayaSaver(tenant), store=NagayaStore(tenant))
        await graph.ainvoke(given, {"configurable": {"thread_id": "roof"}})
"""

from nagaya.errors import MissingExtra

try:
    import langgraph.checkpoint.base  # noqa: F401  # asked for here, so that what is missing can be named
except ModuleNotFoundError as missing:
    raise MissingExtra(feature="nagaya.integrations.langgraph", extra="langgraph") from missing

from nagaya.integrations.langgraph.saver import NagayaSaver
from nagaya.integrations.langgraph.store import NagayaStore

__all__ = ["NagayaSaver", "NagayaStore"]
