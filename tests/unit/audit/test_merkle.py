"""Merkle proofs against the public test data, and against each other."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    continues,
    includes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_hash,
)

PROJECT = Path(__file__).resolve().parents[3]
CORPUS = Path(os.environ.get("NAGAYA_CORPORA") or PROJECT.parent / "shared" / "corpora") / "merkle" / "testdata"


def cases(folder: str) -> list[Any]:
    found = sorted((CORPUS / folder).rglob("*.json"))
    if not found:
        missing = pytest.mark.skip(reason=f"corpora/merkle/testdata/{folder} is not here")
        return [pytest.param(None, marks=() if os.environ.get("NAGAYA_TEST_ALL") == "1" else missing, id="absent")]
    return [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in found]


def read(path: Path | None) -> dict[str, Any]:
    assert path is not None, "the corpus merkle is not here"
    case: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for name in ("root", "root1", "root2", "leafHash"):
        if name in case:
            case[name] = base64.b64decode(case[name] or "")
    case["proof"] = [base64.b64decode(part) for part in case["proof"] or ()]
    return case


@pytest.mark.parametrize("path", cases("inclusion"))
def test_an_inclusion_proof_of_the_corpus_is_judged_as_it_says(path: Path | None) -> None:
    case = read(path)
    judged = includes(
        leaf=case["leafHash"], index=case["leafIdx"], count=case["treeSize"], proof=case["proof"], root=case["root"]
    )
    assert judged is not case["wantErr"], case["desc"]


@pytest.mark.parametrize("path", cases("consistency"))
def test_a_consistency_proof_of_the_corpus_is_judged_as_it_says(path: Path | None) -> None:
    case = read(path)
    judged = continues(
        earlier=case["size1"],
        earlier_root=case["root1"],
        later=case["size2"],
        later_root=case["root2"],
        proof=case["proof"],
    )
    assert judged is not case["wantErr"], case["desc"]


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def test_the_empty_log_has_the_hash_of_nothing() -> None:
    assert root_hash([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


def test_roots_are_those_of_the_rfc_construction() -> None:
    a, b, c = leaves(3)
    assert root_hash([a]) == a
    assert root_hash([a, b, c]) == node_hash(node_hash(a, b), c)
    assert leaf_hash(a + b) != node_hash(a, b)


@given(st.integers(1, 70), st.data())
def test_every_entry_is_proved_and_no_other_in_its_place(count: int, data: st.DataObject) -> None:
    all_leaves = leaves(count)
    root = root_hash(all_leaves)
    index = data.draw(st.integers(0, count - 1))
    proof = inclusion_proof(all_leaves, index)
    assert includes(leaf=all_leaves[index], index=index, count=count, proof=proof, root=root)
    assert not includes(leaf=leaf_hash(b"other"), index=index, count=count, proof=proof, root=root)
    assert not includes(leaf=all_leaves[index], index=index, count=count, proof=(*proof, root), root=root)
    if count > 1:
        other = data.draw(st.integers(0, count - 1).filter(lambda wrong: wrong != index))
        assert not includes(leaf=all_leaves[index], index=other, count=count, proof=proof, root=root)
        assert not includes(leaf=all_leaves[index], index=index, count=count, proof=proof[:-1], root=root)


@given(st.integers(1, 70), st.data())
def test_every_beginning_is_proved_and_no_rewritten_one(count: int, data: st.DataObject) -> None:
    all_leaves = leaves(count)
    earlier = data.draw(st.integers(1, count))
    roots = {"earlier_root": root_hash(all_leaves[:earlier]), "later_root": root_hash(all_leaves)}
    proof = consistency_proof(all_leaves, earlier)
    assert continues(earlier=earlier, later=count, proof=proof, **roots)
    assert not continues(earlier=earlier, later=count, proof=(*proof, EMPTY_ROOT), **roots)
    assert not continues(earlier=earlier, later=count, proof=proof, **(roots | {"earlier_root": EMPTY_ROOT}))
    rewritten = [leaf_hash(b"rewritten"), *all_leaves[1:]]
    assert not continues(earlier=earlier, later=count, proof=proof, **(roots | {"later_root": root_hash(rewritten)}))


@given(st.integers(0, 70))
def test_a_frontier_grows_to_the_same_root_from_its_stored_form(count: int) -> None:
    whole = Frontier()
    for leaf in leaves(count):
        whole = Frontier(whole.count, whole.peaks)
        whole.append(leaf)
    assert whole.root() == root_hash(leaves(count))
    assert len(whole.peaks) == count.bit_count()
    copy = whole.copy()
    copy.append(leaf_hash(b"more"))
    assert whole.count == count


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion_proof(leaves(3), 3)
    for earlier in (0, 4):
        with pytest.raises(ValueError, match="no such log"):
            consistency_proof(leaves(3), earlier)
    for count, peaks in ((1, []), (1, [b"short"]), (2, leaves(2))):
        with pytest.raises(ValueError, match="peaks"):
            Frontier(count, peaks)
