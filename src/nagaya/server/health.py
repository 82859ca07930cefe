"""``/healthz``, ``/readyz``, ``/metrics`` and the local issuer's ``/.well-known/jwks.json``."""

from __future__ import annotations

from nagaya.server.calls import Call, Reply, encode


async def healthz(call: Call) -> Reply:
    """The process lives. Says nothing about its parts."""
    return Reply(b'{"status":"ok"}')


async def readyz(call: Call) -> Reply:
    """Whether to send requests here: False while starting, draining, or out of touch with the registry."""
    nagaya = call.nagaya
    if nagaya.ready and nagaya.registry.is_fresh():
        return Reply(b'{"status":"ready"}')
    return Reply(encode({"status": "draining" if not nagaya.ready else "registry_unreachable"}), 503)


async def metrics(call: Call) -> Reply:
    """Prometheus metrics."""
    return Reply(call.nagaya.metrics.page(), headers=((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),))


async def jwks(call: Call) -> Reply:
    """The public keys of tokens that Nagaya's own issuer signed."""
    return Reply(encode(await call.nagaya.issuer.jwks()))
