"""The process that reads: kept while it behaves, ended when it does not, and never outliving its server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from nagaya.errors import DocumentReaderLost, DocumentUnreadable, MissingExtra
from nagaya.extraction import extractor as module
from nagaya.extraction import frames
from nagaya.extraction.blocks import Block
from nagaya.extraction.chunks import Strategy, chunked
from nagaya.extraction.extractor import Extractor, _Process
from nagaya.extraction.formats import Kind
from nagaya.extraction.limits import Limits
from nagaya.extraction.reading import read
from nagaya.settings import plain_environment
from support import bombs, documents
from support.documents import pieces

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="processes are looked at in /proc")

LONG = b"The roof is old. It was mended in spring.\n\n" * 20_000
"""More than fits between the two processes: its reading cannot be over before its blocks are taken."""


def workers(parent: int | None = None) -> list[int]:
    """The reading processes of a server, this one where none is named."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if above == (parent or os.getpid()) and b"nagaya.extraction.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


async def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    extractor = Extractor()
    yield extractor
    await extractor.close()
    await until(lambda: not workers())


async def blocks(extractor: Extractor, document: bytes, name: str, limits: Limits | None = None) -> list[Block]:
    async with extractor.blocks(pieces(document), name=name, limits=limits) as reading:
        return [block async for block in reading]


async def refused(extractor: Extractor, document: bytes, name: str, limits: Limits | None = None) -> str:
    with pytest.raises(DocumentUnreadable) as unreadable:
        await blocks(extractor, document, name, limits)
    return unreadable.value.reason


# --- what it gives --------------------------------------------------------------------------------------------

HONEST = {
    "a.pdf": documents.pdf([[(11, 72, 700, "屋根を直した。")]]),
    "a.docx": documents.docx("<w:p><w:r><w:t>Hi</w:t></w:r></w:p>"),
    "a.pptx": documents.pptx(documents.shape("Hi", "title")),
    "a.xlsx": documents.xlsx('<row><c r="A1"><v>1</v></c><c r="B1"><v>2</v></c></row>'),
    "a.html": b"<!doctype html><h1>Hi</h1><p>Ho",
    "a.md": b"# Hi\n\n- Ho\n",
    "a.csv": b"a,b\n1,2\n",
    "a.json": b'{"a": 1}',
    "a.txt": "屋根を直した。".encode("cp932"),
}


async def test_another_process_reads_what_this_one_would_and_is_kept(extractor: Extractor) -> None:
    seen = set()
    for name, document in HONEST.items():
        kind, here = read(document, name=name, media_type=None, limits=Limits())
        async with extractor.blocks(pieces(document, 7), name=name) as reading:
            assert reading.kind is kind
            assert [block async for block in reading] == list(here)
        seen |= set(workers())
    assert len(seen) == 1


async def test_chunks_are_made_there_too(extractor: Extractor) -> None:
    strategy = Strategy(200, 50)
    _, here = read(LONG, name="a.txt", media_type=None, limits=Limits())
    async with extractor.chunks(pieces(LONG), name="a.txt", strategy=strategy) as reading:
        assert reading.kind is Kind.TEXT
        assert [chunk async for chunk in reading] == list(chunked(here, strategy))


async def test_a_process_is_kept_however_much_memory_its_server_takes(extractor: Extractor) -> None:
    taken = bytearray(700 << 20)
    taken[::4096] = b"x" * len(taken[::4096])  # really taken, page by page
    await blocks(extractor, b"Good.", "a.txt")
    (worker,) = workers()
    del taken
    await blocks(extractor, b"Good.", "a.txt")
    assert workers() == [worker]


async def test_documents_wait_for_their_turn(extractor: Extractor) -> None:
    found = await asyncio.gather(*(blocks(extractor, f"Number {number}.".encode(), "a.txt") for number in range(5)))
    assert [block.text for (block,) in found] == [f"Number {number}." for number in range(5)]
    assert len(workers()) == 1


async def test_two_processes_read_two_documents_at_a_time() -> None:
    extractor = Extractor(processes=2)
    async with (
        extractor.blocks(pieces(LONG), name="a.txt") as one,
        extractor.blocks(pieces(b"Short."), name="b.txt") as other,
    ):
        assert [block.text async for block in other] == ["Short."]
        assert len(workers()) == 2
        assert len([block async for block in one]) == 20_000
    await extractor.close()
    assert not workers()


# --- what is refused ------------------------------------------------------------------------------------------


async def test_a_refusal_names_its_reason_in_both_languages_and_the_process_goes_on(extractor: Extractor) -> None:
    with pytest.raises(DocumentUnreadable) as unreadable:
        await blocks(extractor, b"\x7fELF" + b"\0" * 100, "program.txt")
    assert (unreadable.value.reason, unreadable.value.code) == ("unsupported", "document_unreadable")
    assert "PDF, DOCX" in unreadable.value.message("en")
    assert "文書を読み取れません" in unreadable.value.message("ja")
    (before,) = workers()
    assert await refused(extractor, b"%PDF-1.7 rubbish %%EOF", "a.pdf") == "corrupt"
    assert await refused(extractor, documents.docx("0" * 30_000_000), "a.docx") == "too_large"
    assert await refused(extractor, b"", "a.txt") == "no_text"
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1
    assert workers() == [before]


async def test_the_log_says_what_is_wrong_and_nothing_of_the_document(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(module, "_log", log)
    await refused(extractor, b'{"secret words": 1', "secret name.json")
    said = str(log.calls)
    assert "document.unreadable" in said
    assert "secret" not in said


async def test_a_source_without_end_is_stopped_at_the_limit(extractor: Extractor) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024 * 1024
            yield bytes(1024 * 1024)

    with pytest.raises(DocumentUnreadable) as unreadable:
        async with extractor.blocks(endless(), name="sparse.bin", limits=Limits(document_bytes=20_000_000)):
            pass
    assert unreadable.value.reason == "too_large"
    assert sent <= 22 * 1024 * 1024
    assert not workers()


async def test_what_takes_too_long_is_ended_and_the_next_is_read(extractor: Extractor) -> None:
    assert await refused(extractor, LONG, "a.txt", Limits(seconds=0, seconds_per_megabyte=0)) == "timed_out"
    assert not workers()
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1


async def test_whoever_takes_the_blocks_slowly_does_not_use_up_the_documents_time(extractor: Extractor) -> None:
    count = 0
    async with extractor.blocks(pieces(LONG), name="a.txt", limits=Limits(seconds=60)) as reading:
        reading_process = extractor._busy.copy().pop()  # the only way to see the time that is left
        async for _ in reading:
            if count == 0:
                left = reading_process._left_s
                await asyncio.sleep(1.5)
                assert reading_process._left_s == left
            count += 1
    assert count == 20_000


async def test_a_document_that_wants_more_memory_than_there_is_is_too_large() -> None:
    extractor = Extractor(memory_bytes=512 * 1024**2)
    try:
        assert await refused(extractor, b"[" + b"[]," * 8_000_000 + b"[]]", "a.json") == "too_large"
        assert len(await blocks(extractor, b"Good.", "a.txt")) == 1
    finally:
        await extractor.close()


async def test_a_process_that_a_refused_document_filled_is_not_kept(extractor: Extractor) -> None:
    await blocks(extractor, b"Good.", "a.txt")
    (before,) = workers()
    assert await refused(extractor, bombs.zip_bomb(), "a.docx") == "too_large"
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1
    assert before not in workers()


def test_the_system_ends_a_process_that_nobody_else_ends() -> None:
    job = frames.Job("a.html", None, Limits(seconds=-29, seconds_per_megabyte=0), None)
    worker = subprocess.Popen(
        [sys.executable, "-m", "nagaya.extraction.worker", str(2 * 1024**3)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=plain_environment(),
    )
    assert worker.stdin is not None
    document = b"<p>An old roof.</p>" * 700_000
    for message in (frames.encode(job), document[:8_000_000], document[8_000_000:], b""):
        worker.stdin.write(frames.framed(message))
    worker.stdin.flush()
    assert worker.wait(timeout=300) == -signal.SIGXCPU
    worker.stdin.close()


async def test_a_process_that_gives_up_is_the_documents_fault(extractor: Extractor) -> None:
    worker = "import sys; sys.stdin.buffer.read(1); sys.exit(int(sys.argv[-1]))"
    for code, reason in ((1, "corrupt"), (frames.OUT_OF_MEMORY, "too_large")):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", worker, str(code), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        extractor._idle.append(_Process(process))
        assert await refused(extractor, b"Good.", "a.txt") == reason
        assert len(await blocks(extractor, b"Good.", "a.txt")) == 1


# --- ends of all kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended_by", "error"),
    [(signal.SIGSEGV, DocumentUnreadable), (signal.SIGABRT, DocumentUnreadable), (signal.SIGKILL, DocumentReaderLost)],
)
async def test_a_crash_costs_one_document(
    extractor: Extractor, ended_by: signal.Signals, error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with extractor.blocks(pieces(LONG), name="a.txt") as reading:
            (worker,) = workers()
            os.kill(worker, ended_by)
            async for _ in reading:
                pass
    assert worker not in workers()
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1


async def test_a_process_that_died_while_nobody_needed_it_is_replaced(extractor: Extractor) -> None:
    await blocks(extractor, b"Good.", "a.txt")
    (worker,) = workers()
    os.kill(worker, signal.SIGKILL)
    await until(lambda: not workers())
    await until(lambda: not extractor._idle[0].is_free)  # the loop has heard of it as well
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1


async def test_leaving_early_ends_the_reading(extractor: Extractor) -> None:
    async with extractor.blocks(pieces(LONG), name="a.txt") as reading:
        async for _ in reading:
            break
    assert not workers()
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1


@pytest.mark.parametrize("while_sending", [True, False])
async def test_cancelling_ends_the_reading(extractor: Extractor, while_sending: bool) -> None:
    begun = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield LONG
        if while_sending:
            begun.set()
            await asyncio.sleep(3600)

    async def work() -> None:
        async with extractor.blocks(source(), name="a.txt"):
            begun.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(work())
    await begun.wait()
    assert len(workers()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not workers()
    assert len(await blocks(extractor, b"Good.", "a.txt")) == 1


async def test_closing_while_a_process_is_being_started_leaves_none() -> None:
    for turns in range(6):
        extractor = Extractor()
        task = asyncio.create_task(blocks(extractor, b"Good.", "a.txt"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await extractor.close()
        with pytest.raises(DocumentReaderLost):
            await task
        assert not workers()


async def blocks_of(extractor: Extractor, source: AsyncIterator[bytes]) -> None:
    async with extractor.blocks(source, name="a.txt"):
        pass


async def test_a_source_that_fails_ends_the_reading(extractor: Extractor) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"The beginning"
        raise ConnectionError("the bucket is gone")

    with pytest.raises(ConnectionError, match="the bucket is gone"):
        await blocks_of(extractor, failing())
    assert not workers()


def test_it_is_the_same_on_the_servers_own_loop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        extractor = Extractor()
        assert len(await blocks(extractor, LONG, "a.txt")) == 20_000
        (worker,) = workers()
        assert await refused(extractor, b"%PDF-1.7 %%EOF", "a.pdf") == "corrupt"
        assert workers() == [worker]
        assert await refused(extractor, LONG, "a.txt", Limits(seconds=0, seconds_per_megabyte=0)) == "timed_out"
        assert not workers()
        async with extractor.blocks(pieces(LONG), name="a.txt") as reading:
            async for _ in reading:
                break
        assert not workers()
        with pytest.raises(DocumentReaderLost):
            async with extractor.blocks(pieces(LONG), name="a.txt") as reading:
                os.kill(workers()[0], signal.SIGKILL)
                async for _ in reading:
                    pass
        assert len(await blocks(extractor, b"Good.", "a.txt")) == 1
        await extractor.close()
        assert not workers()

    uvloop.run(main())


async def test_closing_ends_what_is_being_read() -> None:
    extractor = Extractor()
    with pytest.raises(DocumentReaderLost):
        async with extractor.blocks(pieces(LONG), name="a.txt") as reading:
            await extractor.close()
            async for _ in reading:
                pass
    assert not workers()
    with pytest.raises(DocumentReaderLost):
        await blocks(extractor, b"Good.", "a.txt")
    await extractor.close()


SERVER = """
import asyncio, sys
from nagaya.extraction.extractor import Extractor

async def pieces():
    for _ in range(100):
        yield b"The roof is old. It was mended in spring.\\n\\n" * 500

async def main():
    extractor = Extractor()
    async with extractor.blocks(pieces(), name="a.txt") as reading:
        print("reading", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_a_killed_server_leaves_no_process() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == "reading\n"
        (worker,) = workers(server.pid)
        server.kill()
        server.wait()
    await until(lambda: not Path(f"/proc/{worker}").exists() or "Z (" in Path(f"/proc/{worker}/status").read_text())


# --- what it may and what it takes ----------------------------------------------------------------------------


async def test_the_process_knows_no_secret_and_can_write_no_file(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAGAYA_ROOT_KEY", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    async with extractor.blocks(pieces(LONG), name="a.txt"):
        (worker,) = workers()
        process = Path(f"/proc/{worker}")
        assert b"canary" not in (process / "environ").read_bytes()
        assert b"a.txt" not in (process / "cmdline").read_bytes()
        limits = {line[:26].strip(): line[26:].split()[0] for line in (process / "limits").read_text().splitlines()}
        assert limits["Max file size"] == "0"
        assert limits["Max core file size"] == "0"
        opened = [os.readlink(each) for each in (process / "fd").iterdir()]
        assert not [each for each in opened if each.startswith("/") and each != "/dev/null"]


async def test_a_pdf_of_fifty_megabytes_is_not_held_in_the_server(extractor: Extractor) -> None:
    page = [
        (11.0, 72.0, 780.0 - 14 * line, f"Line {line} tells of the roof and of what it cost.") for line in range(40)
    ]
    picture = os.urandom(50 * 1024 * 1024)
    document = documents.pdf([page] * 400, padding=picture)
    assert len(document) > 50_000_000
    pages = set()
    tracemalloc.start()
    try:
        async with extractor.blocks(pieces(document), name="big.pdf") as reading:
            async for block in reading:
                pages.add(block.page)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()
    assert pages == set(range(1, 401))


async def test_a_missing_package_is_named(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"nagaya\[library\]"):
        await blocks(extractor, b"Good.", "a.txt")
