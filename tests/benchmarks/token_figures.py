"""What a token check costs, beside one bare RS256 verification of ``cryptography`` in the same run.

Run ``python tests/benchmarks/token_figures.py [--json]``. Medians over rounds that take turns, so that a busy machine
slows all of them alike; only the ratios mean anything. Exits with 1 where a limit is not kept.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

sys.path.insert(0, str(Path(__file__).parents[1]))
from nagaya.identity import api_keys
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.jwks import KeyCache
from nagaya.identity.local import LocalIssuer
from nagaya.kernel.clock import SystemClock
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Provider, Role
from nagaya.testing.identity import IssuerKey, KeyServer, MemorySigningKeys
from parts.directory import MemoryDirectory, tenant

ROUNDS = 60
CALLS = 200
POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_AbCdEf123"
WARM_RATIO = 0.3
WARM_P99_S = 0.002


def timed(call: Callable[[], object]) -> float:
    """Seconds per call, over one round."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS


async def timed_async(call) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return (time.perf_counter() - started) / CALLS


async def figures(rounds: dict[str, list[float]] | None = None) -> dict[str, float]:
    """Every figure; into ``rounds`` go the seconds of each round, by name."""
    rounds = {} if rounds is None else rounds
    key = IssuerKey("k1")
    now_s = int(time.time())
    claims = {
        "sub": "9e65a26b-2500-47aa-a1af-2a67ab59c185", "iss": POOL, "token_use": "access", "iat": now_s,
        "exp": now_s + 3600, "jti": "83abfbce-1a27-49bf-95fa-2a56caeb5b42", "client_id": "FLBxnRKeW6tT5kiD7GLjCufmWf",
        "auth_time": now_s, "origin_jti": "76d3d98d-97e9-423a-9204-b3a4c892aaaf", "username": "mio",
        "scope": "aws.cognito.signin.user.admin",
    }  # fmt: skip
    token = key.sign(claims)
    signing_input, _, signature = token.encode().rpartition(b".")
    signature = base64.urlsafe_b64decode(signature + b"==")
    public = key.key.public_key

    directory = MemoryDirectory(tenant("acme"))
    clock = SystemClock()
    async with KeyServer() as server, httpx.AsyncClient(trust_env=False) as client:
        url = server.publish(key)
        directory.bindings = [
            IssuerBinding(
                issuer=POOL,
                tenant_id="acme",
                provider=Provider.COGNITO,
                audiences=(claims["client_id"],),
                jwks_url=url,
            )
        ]
        jwks = KeyCache(client, clock)
        local = LocalIssuer(MemorySigningKeys(), clock, issuer="https://nagaya.local")
        authenticator = Authenticator(directory, jwks, local, clock, Settings())
        shown, record = api_keys.create(
            tenant_id="acme", name="ci", user_id="bot", role=Role.USER, now_us=clock.now_us()
        )
        directory.keys[record.key_id] = record
        await authenticator.authenticate(token)

        async def cold() -> None:
            authenticator.on_registry_change(None, "all")
            await authenticator.authenticate(token)

        async def cold_key() -> None:
            authenticator.on_registry_change(None, "all")
            await authenticator.authenticate(shown)

        def note(name: str, seconds: float) -> None:
            rounds.setdefault(name, []).append(seconds)

        for _ in range(ROUNDS):
            note(
                "cryptography_rs256",
                timed(lambda: public.verify(signature, signing_input, padding.PKCS1v15(), hashes.SHA256())),
            )
            await authenticator.authenticate(token)
            note("warm_held", timed(lambda: authenticator.held(token)))
            note("warm_authenticate", await timed_async(lambda: authenticator.authenticate(token)))
            note("cold_token", await timed_async(cold))
            note("cold_api_key", await timed_async(cold_key))
        await authenticator.authenticate(token)
        single = []
        for _ in range(20_000):
            started = time.perf_counter()
            await authenticator.authenticate(token)
            single.append(time.perf_counter() - started)
        assert authenticator.held(token) is not None
        await jwks.close()
    found = {f"{name}_us": statistics.median(seconds) * 1e6 for name, seconds in rounds.items()}
    yardstick = found["cryptography_rs256_us"]
    found |= {f"{name}_ratio": found[f"{name}_us"] / yardstick for name in rounds if name != "cryptography_rs256"}
    found["warm_p99_us"] = statistics.quantiles(single, n=100)[98] * 1e6
    return found


def main() -> int:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    found = asyncio.run(figures())
    kept = {
        f"warm authenticate <= {WARM_RATIO} x cryptography": found["warm_authenticate_ratio"] <= WARM_RATIO,
        f"warm held <= {WARM_RATIO} x cryptography": found["warm_held_ratio"] <= WARM_RATIO,
        f"warm p99 <= {WARM_P99_S * 1e3:g} ms": found["warm_p99_us"] <= WARM_P99_S * 1e6,
    }
    if "--json" in sys.argv:
        print(json.dumps({"figures": found, "limits": kept}))
    else:
        for name, value in found.items():
            print(f"{name:28} {value:10.3f}")
        for name, is_kept in kept.items():
            print(f"{'kept' if is_kept else 'MISSED':6} {name}")
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
