"""The documentation does what it says: its commands and its Python are run, its reference is the code's."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import structlog

from docs_support.pages import ROOT, blocks, commands, says
from docs_support.reader import Reader

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_NAMED_TEST = re.compile(r"`(test_[a-z0-9_]+)`")
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"(?m)^#+ (.+)$")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _runs(page: Path) -> bool:
    return any(
        block.is_run and (block.file or block.language in ("python", "console"))
        for block in blocks(page.read_text("utf-8"))
    )


# A translation holds the very code of its original; another test sees to that.
TRANSLATED = [page for page in PAGES if page.name.endswith(".ja.md")]
RUN = [page for page in PAGES if _runs(page) and page not in TRANSLATED]


@pytest.fixture
def quiet_log():
    """An application that has set its log lines to warnings and above, as the pages' readers would have."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("page", RUN, ids=_name)
def test_doing_what_a_page_says_gives_what_it_promises(page, tmp_path, quiet_log):
    text = page.read_text("utf-8")
    if "\n$ nagaya " in text and importlib.util.find_spec("nagaya.cli.main") is None:
        pytest.skip("nagaya.cli.main")
    reader = Reader(tmp_path)
    try:
        assert reader.follow(text, _name(page))
    finally:
        reader.close()


@pytest.fixture
def generator(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate")


def test_the_generated_reference_says_what_the_code_says(generator):
    stale = [page.path.name for page in generator.pages() if not page.is_current]
    assert not stale, "run: python docs/generate.py --write"


def test_the_reference_is_the_same_in_every_process(generator):
    # An address or a set's order in it would make it differ from run to run.
    first = {page.path.name: page.text for page in generator.pages()}
    assert not [name for name, text in first.items() if " at 0x" in text]
    assert first == {page.path.name: page.text for page in generator.pages()}


def test_every_test_that_a_page_names_exists():
    known = set()
    for source in (ROOT / "tests").rglob("test_*.py"):
        known |= set(re.findall(r"def (test_\w+)\(", source.read_text("utf-8")))
        known.add(source.stem)
    for source in (ROOT / "src" / "nagaya" / "testing").glob("*.py"):
        known |= set(re.findall(r"def (test_\w+)\(", source.read_text("utf-8")))
    missing = {
        f"{_name(page)}: {name}"
        for page in PAGES
        for name in _NAMED_TEST.findall(page.read_text("utf-8"))
        if name not in known
    }
    assert not missing


def test_every_link_between_pages_leads_somewhere():
    broken = []
    for page in PAGES:
        for target, heading in _LINK.findall(_without_code(page.read_text("utf-8"))):
            place = page.parent / target if target else page
            if not place.exists() or (heading and heading not in _headings(place)):
                broken.append(f"{_name(page)}: {target}#{heading}")
    assert not broken


def _without_code(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$", "", text)


def _headings(page: Path) -> set[str]:
    """The headings of a page as links spell them."""
    found = _HEADING.findall(_without_code(page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_room_of_the_code_is_on_the_map():
    page = (ROOT / "docs" / "reference" / "architecture.md").read_text("utf-8")
    code = ROOT / "src" / "nagaya"
    rooms = {f"  {part.parent.name}/ " for part in code.glob("*/__init__.py")}
    rooms |= {f"  {part.name} " for part in code.glob("*.py") if not part.name.startswith("_")}
    assert not {room for room in rooms if room not in page}


@pytest.mark.parametrize("page", TRANSLATED, ids=_name)
def test_a_translation_holds_the_same_code(page):
    original = page.with_name(page.name.replace(".ja.md", ".md"))
    english, japanese = (
        [(block.language, block.body, block.file, block.is_run) for block in blocks(each.read_text("utf-8"))]
        for each in (original, page)
    )
    assert english == japanese


def test_every_error_has_a_message_in_both_languages(generator):
    from nagaya import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NagayaError)]
    page = generator.errors_page()
    for kind in kinds:
        assert kind.__doc__
        assert kind.ja
        # Otherwise a class without a message of its own would show its parent's in one language only.
        facts = [set(re.findall(r"\{(\w+?)(?:_ja)?[!}:]", text)) for text in (kind.__doc__, kind.ja)]
        assert facts[0] == facts[1], kind
        assert f"`{kind.__name__}`" in page


def test_a_page_that_promises_something_else_is_found_out(tmp_path):
    page = "```console\n$ echo one; echo two\none\nthree\n```\n"
    reader = Reader(tmp_path)
    try:
        with pytest.raises(AssertionError, match="three"):
            reader.follow(page, "page.md")
        with pytest.raises(AssertionError, match="ended with 1"):
            reader.follow("```console\n$ false\n```\n", "page.md")
        with pytest.raises(AssertionError, match=r"got:\n *b"):
            reader.follow("```python\nprint('b')\n```\n\n```text\na\n```\n", "page.md")
    finally:
        reader.close()


def test_a_reader_keeps_variables_files_and_awaits_at_the_top(tmp_path):
    page = """
```console
$ export WORD=$(printf 'a\\n' | tr a b)
$ false
(exit status 1)
```

```text file=note.txt
hello
```

```python
import asyncio, os
from pathlib import Path
await asyncio.sleep(0)
print(os.environ["WORD"], Path("note.txt").read_text())
```

```text
b hello
…
```

<!-- not run: it would end the world -->
```console
$ false
```

```console
$ sh -c 'sleep 0.2; echo ready on 8700; sleep 60' &
ready on 8700
$ test 8700 != "87""00" && cat note.txt
hello
```
"""
    reader = Reader(tmp_path)
    try:
        assert reader.follow(page, "page.md") == 4
    finally:
        reader.close()


def test_expected_output_may_leave_lines_and_words_open():
    assert says("a …\n…\nz", "a b c\n1\n2\nz\n")
    assert says("a\n…", "a\n")
    assert not says("a", "a\nb\n")
    assert commands("$ one \\\n  two\nsaid\n$ three\n")[0].typed == "one \\\n  two"
