"""mem0's own clients, imported as an application would that wants no telemetry: nothing of theirs leaves the machine."""

from __future__ import annotations

import os
import tempfile
import warnings

# mem0 reads both when it is imported; without them it writes to the home directory and reports to its makers.
os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("MEM0_DIR", tempfile.mkdtemp(prefix="mem0-"))

with warnings.catch_warnings():
    # What mem0's own imports warn of is not ours to mend.
    warnings.simplefilter("ignore")
    from mem0 import AsyncMemoryClient, MemoryClient
    from mem0 import exceptions as refusals

__all__ = ["AsyncMemoryClient", "MemoryClient", "refusals"]
