"""Small files that are there wholly or not at all, also after a power cut and between several processes."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600


def make_folder(folder: Path) -> None:
    """A folder that only its owner may look into. One that is there already is left as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_new(path: Path, content: bytes) -> bool:
    """Create a file of mode 0600 with this content, durably. False where there is one already; that one is kept.

    The content is written under another name and linked into place, so nobody ever reads half of it.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    try:
        try:
            os.write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
    finally:
        draft.unlink()
    sync_folder(path.parent)
    return True


def remove(path: Path) -> None:
    """Remove a file durably. One that is not there is no error."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def wipe(path: Path) -> None:
    """Overwrite a file's bytes, then remove it durably. One that is not there is no error.

    Overwriting is a courtesy to old disks; on flash and copy-on-write file systems only the removal counts.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(handle, os.urandom(os.fstat(handle).st_size))
        os.fsync(handle)
    finally:
        os.close(handle)
    remove(path)


def sync_folder(folder: Path) -> None:
    """Make the folder's list of names durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
