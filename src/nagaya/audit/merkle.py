"""Merkle trees as in RFC 6962 §2.1: one hash for a whole log, and short proofs about it. Pure functions.

A proof convinces somebody who has only roots: that an entry is in the log (inclusion), or that a later log still
begins with the earlier one (consistency).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry. Leaves and nodes are told apart, so a node cannot be passed off as an entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The root of a growing log in logarithmic memory: the roots of its complete subtrees, widest first."""

    __slots__ = ("_peaks", "count")

    def __init__(self, count: int = 0, peaks: Iterable[bytes] = ()) -> None:
        """An empty log, or one of ``count`` entries with these ``peaks``. Raises ``ValueError`` where they do not
        fit: there is one peak for each binary one of the count."""
        self.count = count
        self._peaks = list(peaks)
        if len(self._peaks) != count.bit_count() or any(len(peak) != HASH_BYTES for peak in self._peaks):
            raise ValueError("the peaks do not fit the count")

    @property
    def peaks(self) -> tuple[bytes, ...]:
        return tuple(self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        position = self.count
        while position & 1:
            leaf = node_hash(self._peaks.pop(), leaf)
            position >>= 1
        self._peaks.append(leaf)
        self.count += 1

    def root(self) -> bytes:
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def copy(self) -> Frontier:
        return Frontier(self.count, self._peaks)


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """The root over these leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The hashes that lead from leaf ``index`` (from 0) to the root of these leaf hashes."""
    if not 0 <= index < len(leaves):
        raise ValueError("there is no such leaf")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*inclusion_proof(leaves[:split], index), root_hash(leaves[split:]))
    return (*inclusion_proof(leaves[split:], index - split), root_hash(leaves[:split]))


def consistency_proof(leaves: Sequence[bytes], earlier: int) -> tuple[bytes, ...]:
    """The hashes that show that the log of the first ``earlier`` leaves (from 1) is the beginning of this one."""
    if not 0 < earlier <= len(leaves):
        raise ValueError("there was no such log")
    return _consistency(leaves, earlier, whole=True)


def _consistency(leaves: Sequence[bytes], earlier: int, *, whole: bool) -> tuple[bytes, ...]:
    if earlier == len(leaves):
        return () if whole else (root_hash(leaves),)
    split = _split(len(leaves))
    if earlier <= split:
        return (*_consistency(leaves[:split], earlier, whole=whole), root_hash(leaves[split:]))
    return (*_consistency(leaves[split:], earlier - split, whole=False), root_hash(leaves[:split]))


def _split(count: int) -> int:
    """The greatest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def includes(*, leaf: bytes, index: int, count: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows that ``leaf`` lies at ``index`` of the log of ``count`` entries with this root."""
    if not 0 <= index < count or any(len(part) != HASH_BYTES for part in (leaf, root, *proof)):
        return False
    node, last, reached = index, count - 1, leaf
    for part in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            reached = node_hash(part, reached)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            reached = node_hash(reached, part)
        node, last = node >> 1, last >> 1
    return last == 0 and reached == root


def continues(*, earlier: int, earlier_root: bytes, later: int, later_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the log of ``later`` entries begins with the log of ``earlier`` entries.

    An empty earlier log proves nothing, so the answer for it is False.
    """
    if not 0 < earlier <= later:
        return False
    if earlier == later:
        return not proof and earlier_root == later_root
    if any(len(part) != HASH_BYTES for part in (earlier_root, later_root, *proof)):
        return False
    path = list(proof)
    if earlier & (earlier - 1) == 0:
        # A complete subtree is its own first node, which the proof therefore leaves out.
        path.insert(0, earlier_root)
    if not path:
        return False
    node, last = earlier - 1, later - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = path[0]
    for part in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            before, after = node_hash(part, before), node_hash(part, after)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            after = node_hash(after, part)
        node, last = node >> 1, last >> 1
    return last == 0 and before == earlier_root and after == later_root
