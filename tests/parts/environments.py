"""Environments of their own for the parts that tests stand on, made once under ``.parts/`` and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ROOT / ".parts"
INSTALL_S = 300


def absent(part: str, why: str) -> NoReturn:
    """Skip for want of a part, by its name; fail instead where NAGAYA_TEST_ALL=1 asks for everything."""
    if os.environ.get("NAGAYA_TEST_ALL") == "1":
        pytest.fail(f"{part} is needed by NAGAYA_TEST_ALL=1: {why}")
    pytest.skip(f"{part} cannot be had here: {why}")


@contextlib.contextmanager
def _alone(part: str) -> Iterator[None]:
    """Of several runs that want a part, one installs it and the others wait."""
    PARTS.mkdir(exist_ok=True)
    with open(PARTS / f".{part}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(part: str) -> Path:
    """The Python of the part's environment, made from ``requirements/parts-<part>.txt`` where it is not there yet."""
    requirements = ROOT / "requirements" / f"parts-{part}.txt"
    mark = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    home = PARTS / f"{part}-{mark}"
    python = home / "bin" / "python"
    with _alone(part):
        if python.exists():
            return python
        making = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=PARTS))
        install = [making / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", requirements]
        try:
            subprocess.run([sys.executable, "-m", "venv", making], check=True, capture_output=True, timeout=120)
            subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_S)
            making.rename(home)
        except (subprocess.SubprocessError, OSError) as failed:
            shutil.rmtree(making, ignore_errors=True)
            absent(part, _said(failed))
    return python


def npm_script(part: str, script: str, *, omit: str = "") -> Path:
    """The script of a server from npm, installed once from the lock file in ``tests/parts/<part>``. ``script``: its
    place among the modules. ``omit``: a kind of dependencies that it does without."""
    here, place = Path(__file__).parent / part, PARTS / part
    wanted = place / "node_modules" / script
    lock, copy = here / "package-lock.json", place / "package-lock.json"
    with _alone(part):
        if wanted.exists() and copy.exists() and copy.read_bytes() == lock.read_bytes():
            return wanted
        if shutil.which("npm") is None or shutil.which("node") is None:
            absent(part, "npm is not installed")
        place.mkdir(parents=True, exist_ok=True)
        for each in (here / "package.json", lock):
            shutil.copyfile(each, place / each.name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", *([f"--omit={omit}"] if omit else [])]
        try:
            subprocess.run(command, cwd=place, capture_output=True, timeout=INSTALL_S, check=True)
        except (subprocess.SubprocessError, OSError) as failed:
            copy.unlink()
            absent(part, _said(failed))
    return wanted


def _said(failed: Exception) -> str:
    said = getattr(failed, "stderr", None) or str(failed).encode()
    return said.decode(errors="replace").strip()[-300:]
