"""A second, independent DynamoDB for everything without transactions, on a free port of loopback.

Installed once from the lock file beside this module into ``.parts/dynalite`` at the project's root.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts.environments import PARTS, absent
from parts.ports import free_port, stopped_at_the_end, wait_for

HERE = Path(__file__).parent / "dynalite"
PLACE = PARTS / "dynalite"
INSTALL_S = 120


def _installed() -> Path:
    script = PLACE / "node_modules" / "dynalite" / "cli.js"
    copy = PLACE / "package-lock.json"
    lock = (HERE / "package-lock.json").read_bytes()
    if script.exists() and copy.exists() and copy.read_bytes() == lock:
        return script
    if shutil.which("npm") is None or shutil.which("node") is None:
        absent("dynalite", "npm is not installed")
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, PLACE / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"]
    try:
        subprocess.run(command, cwd=PLACE, capture_output=True, timeout=INSTALL_S, check=True)
    except subprocess.SubprocessError as failed:
        copy.unlink()
        said = getattr(failed, "stderr", None) or str(failed).encode()
        absent("dynalite", said.decode(errors="replace").strip()[-300:])
    return script


@pytest.fixture(scope="session")
def dynalite_url() -> Iterator[str]:
    """The stand-in's address, for the session."""
    script = _installed()
    port = free_port()
    # It listens on every interface unless told otherwise.
    command = ["node", str(script), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with stopped_at_the_end(running):
        wait_for("dynalite", running, port)
        yield f"http://127.0.0.1:{port}"
