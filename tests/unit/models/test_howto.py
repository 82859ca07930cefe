"""The examples of docs/howto/models.md run as they stand."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "models.md"


async def test_the_examples_of_the_page_on_models_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        code = compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(code, names)
        if inspect.isawaitable(done):
            await done


def test_every_code_that_the_page_lists_exists_with_its_status() -> None:
    from nagaya import errors

    known = {
        (kind.code, kind.status)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.NagayaError)
    }
    listed = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(listed) == 14
    assert {(code, int(status)) for code, status in listed} <= known
