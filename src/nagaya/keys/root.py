"""The root key of the local key service: where it comes from, and everything that makes it refused.

``None``: the file ``root.key`` in the service's folder. ``file:PATH``: a file elsewhere. ``env://NAME``: base64 of 32
bytes in the environment. ``passphrase-env://NAME``: a passphrase there, stretched by scrypt with the folder's salt.
Beside it lies ``root.check``, which tells a wrong root key at start and nothing else about the key.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from hmac import compare_digest
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from nagaya.errors import RootKeyRefused
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.keys.driver import KEY_BYTES
from nagaya.keys.small_files import make_folder, write_new
from nagaya.settings import read_reference

MIN_PASSPHRASE: Final = 12
"""Characters. Shorter ones are guessed off-line whatever scrypt costs."""

SCRYPT_N: Final = 2**16
"""With r = 8, p = 2: 64 MiB and about a third of a second, the strength OWASP's list gives for scrypt."""

_SALT_BYTES: Final = 16
_FOR_OTHERS: Final = 0o077
_MAX_FILE: Final = 4096


class RootKey:
    """The 256-bit root in memory. It derives keys for named purposes and never shows itself."""

    __slots__ = ("_extracted",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise RootKeyRefused(
                problem=f"it has {len(secret)} bytes and must have {KEY_BYTES}",
                problem_ja=f"長さが {len(secret)} バイトです（{KEY_BYTES} バイトが必要です）",
            )
        self._extracted = extract(secret)

    def derive(self, purpose: str, *parts: bytes | str) -> bytes:
        """32 bytes for one purpose. The same arguments give the same bytes."""
        return expand(self._extracted, length_prefixed("nagaya-root", purpose, *parts), KEY_BYTES)


def open_root_key(
    folder: Path,
    reference: str | None = None,
    *,
    create: bool = False,
    environment: Mapping[str, str] | None = None,
    scrypt_n: int = SCRYPT_N,
) -> RootKey:
    """The root key behind ``reference``, checked against the folder. Blocks (files, scrypt).

    ``create`` makes what is missing, in a folder without any tenant's key only; where all is there it does nothing,
    so repeating it is harmless. Raises ``RootKeyRefused`` saying what is wrong and what to do, and
    ``SettingsInvalid`` where the environment has no such variable.
    """
    in_use = has_keys(folder)
    fresh = create and not in_use
    if fresh:
        make_folder(folder)
    if reference is None:
        secret = _from_file(folder / "root.key", fresh, in_use)
    elif reference.startswith("file:"):
        secret = _from_file(Path(reference.removeprefix("file:")), fresh, in_use)
    elif reference.startswith("passphrase-env://"):
        passphrase = read_reference(reference.removeprefix("passphrase-"), environment=environment)
        secret = _from_passphrase(folder / "root.salt", passphrase, fresh, scrypt_n)
    else:
        secret = _decode(read_reference(reference, environment=environment), f"the value of {reference}")
    root = RootKey(secret)
    _check(folder / "root.check", root, fresh)
    return root


def has_keys(folder: Path) -> bool:
    """Whether any tenant's key lies in the folder, so that a new root key would lose it."""
    keys = folder / "keys"
    return keys.is_dir() and any(keys.glob("*.key"))


def _from_file(path: Path, fresh: bool, in_use: bool) -> bytes:
    if fresh and not path.exists():
        write_new(path, b64encode(os.urandom(KEY_BYTES)) + b"\n")
    raw = _read_private(path)
    if raw is None:
        hint = "tenants' keys are wrapped under it; put it back from your backup" if in_use else "none was made yet"
        hint_ja = (
            "テナントの鍵はこれで包まれています。バックアップから戻してください" if in_use else "まだ作られていません"
        )
        raise RootKeyRefused(problem=f"{path} is missing: {hint}", problem_ja=f"{path} がありません。{hint_ja}")
    return _decode(raw.decode("latin-1"), str(path))


def _from_passphrase(salt_path: Path, passphrase: str, fresh: bool, scrypt_n: int) -> bytes:
    if len(passphrase) < MIN_PASSPHRASE:
        raise RootKeyRefused(
            problem=f"the passphrase is shorter than {MIN_PASSPHRASE} characters",
            problem_ja=f"パスフレーズが {MIN_PASSPHRASE} 文字より短いです",
        )
    if fresh:
        write_new(salt_path, os.urandom(_SALT_BYTES).hex().encode() + b"\n")
    raw = _read_private(salt_path)
    try:
        salt = bytes.fromhex((raw or b"").decode("ascii"))
    except ValueError:
        salt = b""
    if len(salt) != _SALT_BYTES:
        raise RootKeyRefused(
            problem=f"{salt_path} is missing or malformed; put it back from your backup",
            problem_ja=f"{salt_path} がないか壊れています。バックアップから戻してください",
        )
    return Scrypt(salt=salt, length=KEY_BYTES, n=scrypt_n, r=8, p=2).derive(passphrase.encode("utf-8"))


def _check(path: Path, root: RootKey, fresh: bool) -> None:
    value = root.derive("check").hex().encode() + b"\n"
    if fresh:
        write_new(path, value)
    stored = _read_private(path)
    if stored is None:
        raise RootKeyRefused(
            problem=f"{path} is missing, so it cannot be told whether this is the right root key; "
            "put it back from your backup, or start in an empty folder",
            problem_ja=f"{path} がないため、正しいルート鍵か確かめられません。"
            "バックアップから戻すか、空のフォルダーで始めてください",
        )
    if not compare_digest(stored, value):
        raise RootKeyRefused(
            problem=f"it is not the root key that {path.parent} was made with; give the right one",
            problem_ja=f"{path.parent} を作ったときのルート鍵と違います。正しい鍵を指定してください",
        )


def _read_private(path: Path) -> bytes | None:
    """The file's content, None where there is none. Refuses a file that others than its owner may use."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise RootKeyRefused(
            problem=f"{path} cannot be read ({failure.strerror}); give this user the right to",
            problem_ja=f"{path} を読めません（{failure.strerror}）。このユーザーに読む権限を与えてください",
        ) from failure
    try:
        # The open file is asked, not its name, which could be exchanged between the two.
        if os.fstat(handle).st_mode & _FOR_OTHERS:
            raise RootKeyRefused(
                problem=f"other users of this machine can read or change it; run: chmod 600 {path}",
                problem_ja=f"このマシンの他のユーザーが読み書きできます。次を実行してください: chmod 600 {path}",
            )
        return os.read(handle, _MAX_FILE)
    finally:
        os.close(handle)


def _decode(text: str, what: str) -> bytes:
    try:
        return b64decode(text.strip(), validate=True)
    except ValueError:
        raise RootKeyRefused(
            problem=f"{what} is malformed; it must be the base64 of {KEY_BYTES} bytes",
            problem_ja=f"{what} の形式が正しくありません。{KEY_BYTES} バイトの base64 が必要です",
        ) from None
