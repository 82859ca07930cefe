"""A process that makes tenants and says of each what came of it. Run by tests, which may kill it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from nagaya.errors import NagayaError
from nagaya.wiring import Nagaya
from support.faults import obey


async def make(folder: str, names: list[str]) -> None:
    async with Nagaya.open(folder) as nagaya:
        print("ready", flush=True)
        sys.stdin.readline()
        for name in names:
            try:
                await nagaya.tenants.create(name, name=name)
                said = "made"
            except NagayaError as refused:
                said = refused.code
            print(name, said, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    obey(os.environ)
    asyncio.run(make(sys.argv[1], sys.argv[2:]))
