"""Environments of their own for the parts that tests stand on, made once under ``.parts/`` and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ROOT / ".parts"


def absent(part: str, why: str) -> NoReturn:
    """Skip for want of a part, by its name; fail instead where NAGAYA_TEST_ALL=1 asks for everything."""
    if os.environ.get("NAGAYA_TEST_ALL") == "1":
        pytest.fail(f"{part} is needed by NAGAYA_TEST_ALL=1: {why}")
    pytest.skip(f"{part} cannot be had here: {why}")


def environment(part: str) -> Path:
    """The Python of the part's environment, made from ``requirements/parts-<part>.txt`` where it is not there yet."""
    requirements = ROOT / "requirements" / f"parts-{part}.txt"
    mark = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    home = PARTS / f"{part}-{mark}"
    python = home / "bin" / "python"
    if python.exists():
        return python
    PARTS.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=PARTS))
    install = [making / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", requirements]
    try:
        subprocess.run([sys.executable, "-m", "venv", making], check=True, capture_output=True, timeout=120)
        subprocess.run(install, check=True, capture_output=True, timeout=300)
        making.rename(home)
    except (subprocess.SubprocessError, OSError) as failed:
        shutil.rmtree(making, ignore_errors=True)
        if not python.exists():  # another run may have made it meanwhile
            said = getattr(failed, "stderr", None) or str(failed).encode()
            absent(part, said.decode(errors="replace").strip()[-300:])
    return python
