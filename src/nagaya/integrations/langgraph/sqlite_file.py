"""The database file of LangGraph's ``SqliteSaver`` and ``AsyncSqliteSaver``, read as it lies there.

The file is opened read-only, and nothing in it is rebuilt: what a value's own type made of it stays the bytes it was.
So no type of whoever wrote the file has to be known here, and none is called.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import ormsgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from nagaya.errors import ExportSealed, InvalidValue, MissingExtra
from nagaya.integrations.langgraph.messages import MessageSerializer
from nagaya.integrations.langgraph.pieces import Piece

_CHECKPOINTS: Final = (
    "SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata "
    "FROM checkpoints ORDER BY thread_id, checkpoint_ns, checkpoint_id"
)
_WRITES: Final = (
    "SELECT task_id, {path}, idx, channel, type, value FROM writes "
    "WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? ORDER BY task_id, idx"
)
_LONE: Final = (
    "SELECT count(*) FROM writes AS w WHERE NOT EXISTS (SELECT 1 FROM checkpoints AS c "
    "WHERE c.thread_id = w.thread_id AND c.checkpoint_ns = w.checkpoint_ns AND c.checkpoint_id = w.checkpoint_id)"
)


class Untouched(msgspec.Struct, frozen=True):
    """A value of a type of its own, as MessagePack has it."""

    code: int
    data: bytes


class UntouchedSerializer(JsonPlusSerializer):
    """LangGraph's serialiser that leaves every value of a type of its own as it is."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        form, body = data
        if form == "msgpack":
            return ormsgpack.unpackb(body, ext_hook=Untouched, option=ormsgpack.OPT_NON_STR_KEYS)
        if form == "json":
            # From before MessagePack: its objects are LangChain's own, or stay the plain data they were made of.
            return MessageSerializer(allowed_msgpack_modules=None).loads_typed(data)
        return super().loads_typed(data)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if obj is None or isinstance(obj, bytes | bytearray):
            return super().dumps_typed(obj)
        return "msgpack", ormsgpack.packb(obj, default=_packed, option=_PACKED_AS)


_PACKED_AS: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)
"""As LangGraph packs."""


def _packed(value: Any) -> ormsgpack.Ext:
    if not isinstance(value, Untouched):
        # From a checkpoint in JSON: it becomes what LangGraph itself would write of it now.
        value = ormsgpack.unpackb(JsonPlusSerializer().dumps_typed(value)[1], ext_hook=Untouched)
    return ormsgpack.Ext(value.code, value.data)


class Checkpointed(NamedTuple):
    """One checkpoint as the file has it."""

    thread: str
    namespace: str
    id: str
    parent: str | None
    content: Piece
    metadata: bytes


class Written(NamedTuple):
    """One value that a task wrote after a checkpoint."""

    task: str
    path: str
    number: int
    channel: str
    value: Piece


class CheckpointFile:
    """The file, open. Its methods block, and may be called from one thread after another."""

    def __init__(self, file: Path, key: bytes | None = None) -> None:
        """Raises ``InvalidValue`` for a file that is no such database, ``ExportSealed`` for a key of another length."""
        if key is not None and len(key) not in (16, 24, 32):
            raise ExportSealed("length")
        self._key = key
        # A file that nobody has open any more may lie where nothing can be written beside it.
        journal = file.with_name(file.name + "-wal")
        mode = "mode=ro" if journal.exists() else "mode=ro&immutable=1"
        try:
            self._database = sqlite3.connect(f"{file.resolve().as_uri()}?{mode}", uri=True, check_same_thread=False)
            self._database.execute("PRAGMA trusted_schema = OFF")
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"checkpoints", "writes"} <= tables:
                raise sqlite3.DatabaseError("it has no tables of checkpoints")
            columns = {column[1] for column in self._database.execute("PRAGMA table_info(writes)")}
        except sqlite3.Error as other:
            raise _no_checkpoints(other) from None
        self._writes = _WRITES.format(path="task_path" if "task_path" in columns else "''")

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checkpoints(self) -> Generator[Checkpointed, None, None]:
        """Every checkpoint, a parent before its children."""
        with self._read():
            for thread, namespace, id_, parent, form, content, metadata in self._database.execute(_CHECKPOINTS):
                yield Checkpointed(
                    thread, namespace, id_, parent, self._opened(form, content or b""), bytes(metadata or b"{}")
                )

    def writes(self, of: Checkpointed) -> list[Written]:
        """What tasks wrote after a checkpoint."""
        with self._read():
            rows = self._database.execute(self._writes, (of.thread, of.namespace, of.id)).fetchall()
            return [
                Written(task, path or "", index, channel, self._opened(form, value or b""))
                for task, path, index, channel, form, value in rows
            ]

    def lone_writes(self) -> int:
        """How many writes there are whose checkpoint never arrived, or was deleted."""
        with self._read():
            return int(self._database.execute(_LONE).fetchone()[0])

    @contextlib.contextmanager
    def _read(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as other:
            raise _no_checkpoints(other) from None

    def _opened(self, form: str | None, body: bytes) -> Piece:
        """A value without its encryption. Raises ``ExportSealed``."""
        plain, _, cipher = (form or "null").partition("+")
        if not cipher:
            return plain, bytes(body)
        if cipher != "aes":
            raise ExportSealed("cipher")
        if self._key is None:
            raise ExportSealed("needed")
        try:
            from Crypto.Cipher import AES
        except ModuleNotFoundError:
            raise MissingExtra(feature="an encrypted checkpoint", extra="langgraph-aes") from None
        # As LangGraph's EncryptedSerializer lays it: nonce, tag, ciphertext.
        nonce, tag, sealed = body[:16], body[16:32], body[32:]
        try:
            return plain, AES.new(self._key, AES.MODE_EAX, nonce=nonce).decrypt_and_verify(sealed, tag)
        except ValueError:
            raise ExportSealed("other") from None


def _no_checkpoints(other: sqlite3.Error) -> InvalidValue:
    return InvalidValue(param="file", at="file", detail=f"it is no database of LangGraph's SqliteSaver: {other}")
