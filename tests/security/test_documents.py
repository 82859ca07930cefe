"""Hostile documents through the whole door: uploaded and put into a vector store with the ``openai`` client, on a
server that other tenants use meanwhile. Each is refused plainly, and nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.vector_stores import VectorStoreFile

from nagaya.settings import Settings
from nagaya.tenancy.names import room_of
from nagaya.wiring import Nagaya
from support import bombs, documents
from support.library import every_record
from support.naughty import NAUGHTY
from support.server import RunningServer, running

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="processes are looked at in /proc")

LIMIT = 64 * 1024 * 1024
MIB = 1024 * 1024
PATIENT_S = 120.0
"""Longer than a busy machine takes for any of this."""
CANARY = "zq-canary-of-documents-51b7-苔"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    temporary = tmp_path_factory.mktemp("temporary")
    with running(
        tmp_path_factory.mktemp("documents"), NAGAYA_FILE_LIMIT_BYTES=str(LIMIT), TMPDIR=str(temporary)
    ) as server:
        server.tenant("victim")
        server.tenant("hostile")
        yield server


@pytest.fixture(scope="module")
def client(house: RunningServer) -> Iterator[OpenAI]:
    with client_of(house, "hostile") as made:
        yield made


def client_of(house: RunningServer, tenant: str) -> OpenAI:
    return OpenAI(api_key=house.key(tenant), base_url=f"{house.url}/v1", max_retries=0, timeout=PATIENT_S)


@pytest.fixture(autouse=True)
def others_are_served(house: RunningServer) -> Iterator[None]:
    """Somebody else's work goes on while the test lasts, and none of it fails."""
    done = threading.Event()
    slowest, refused = 0.0, []

    def work() -> None:
        nonlocal slowest
        with client_of(house, "victim") as victim:
            while not done.is_set():
                began_s = time.monotonic()
                try:
                    made = victim.conversations.create(items=[{"type": "message", "role": "user", "content": "Hi"}])
                    victim.conversations.delete(made.id)
                except openai.OpenAIError as problem:
                    refused.append(problem)
                slowest = max(slowest, time.monotonic() - began_s)
                time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    yield
    done.set()
    worker.join(PATIENT_S)
    assert not refused
    assert slowest < 30


@contextlib.contextmanager
def in_store(client: OpenAI, name: str, content: bytes) -> Iterator[VectorStoreFile]:
    """The file as it stands in a vector store once that is through with it; both are deleted at the end."""
    store = client.vector_stores.create(name="house").id
    file = client.files.create(file=(name, content), purpose="assistants").id
    try:
        yield client.vector_stores.files.create_and_poll(file, vector_store_id=store, poll_interval_ms=100)
    finally:
        client.vector_stores.delete(store)
        client.files.delete(file)


def until(true: Callable[[], bool]) -> bool:
    ends_s = time.monotonic() + PATIENT_S
    while not true():
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.1)
    return True


def made_of_documents(house: RunningServer) -> list[str]:
    """What is kept of the contents of the hostile tenant's documents: chunks, segments, and notes of work to be done
    on them."""

    async def look() -> list[str]:
        async with Nagaya.open(settings=Settings(data=str(house.data))) as nagaya:
            entrance = await nagaya.enter(await nagaya.tenants.mint("hostile", "aoi", "tenant_admin"))
            async with nagaya.session(entrance) as tenant:
                rows = await every_record(tenant)
                blobs = await tenant.session.blobs()
                found = [blob.name async for blob in blobs.list_all(prefix="segments/")]
        return found + [
            place.collection for place, row in rows if place.collection in ("vector-texts", "vector-store-work")
        ]

    return asyncio.run(look())


def files_of(house: RunningServer) -> list[Path]:
    """Every file in the hostile tenant's blob storage, half-written ones too, but for the storage's own lock."""
    folder = house.data / "blobs" / room_of("hostile")
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def readers_of(house: RunningServer) -> list[dict[str, str]]:
    """What the system says of the server's reading processes."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
            if int(status["PPid"]) == house.pid:
                found.append(status)
    return found


def at_rest(house: RunningServer) -> bool:
    """Whether no process reads a document any more, nor keeps the memory of a large one."""
    readers = readers_of(house)
    return len(readers) <= 1 and all(
        reader["State"].startswith("S") and int(reader["VmRSS"].split()[0]) < 512 * 1024 for reader in readers
    )


def nothing_is_left(house: RunningServer) -> None:
    assert until(lambda: at_rest(house)), readers_of(house)
    assert until(lambda: not made_of_documents(house)), made_of_documents(house)
    assert until(lambda: not files_of(house)), files_of(house)
    assert os.listdir(house.environment["TMPDIR"]) == []
    assert CANARY not in house.log()
    assert "Traceback" not in house.log()


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "a zip bomb of a document": ("bomb.docx", bombs.zip_bomb, "invalid_file", "divide it"),
    "a zip bomb packed like an honest workbook": ("b.xlsx", bombs.well_packed_bomb, "invalid_file", "divide it"),
    "a billion laughs": ("laughs.docx", bombs.laughing_docx, "invalid_file", "damaged"),
    "a damaged PDF": ("a.pdf", lambda: b"%PDF-1.7\n" + CANARY.encode() * 500 + b"\n%%EOF\n", "invalid_file", "damaged"),
    "half a PDF": ("a.pdf", lambda: documents.pdf([[(11, 72, 700, "Hi")]] * 9)[:-900], "invalid_file", "damaged"),
    "a PDF under a password": ("a.pdf", bombs.locked_pdf, "invalid_file", "password"),
    "a text that says it is a PDF": ("a.pdf", lambda: CANARY.encode() * 100, "invalid_file", "damaged"),
    "a program that says it is a text": ("a.txt", lambda: b"\x7fELF" + bytes(5000), "unsupported_file", "PDF, DOCX"),
    "a picture that is none": ("a.png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "invalid_file", "damaged"),
    "a picture of very many pixels": ("a.docx", bombs.huge_picture, "invalid_file", "divide it"),
    "an archive that says it is a workbook": (
        "a.xlsx", lambda: documents.archive({"a": "b"}), "unsupported_file", "PDF, DOCX",
    ),
    "nothing": ("a.txt", lambda: b"", "invalid_file", "no text"),
    "nothing that says it is a PDF": ("a.pdf", lambda: b"", "invalid_file", ""),
    "a text of zeros": ("a.txt", lambda: bytes(MIB), "unsupported_file", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_document_fails_plainly_and_leaves_nothing(house: RunningServer, client: OpenAI, what: str):
    name, make, code, says = HOSTILE[what]
    with in_store(client, name, make()) as put:
        assert put.status == "failed"
        assert put.last_error is not None
        assert (put.last_error.code, says in put.last_error.message) == (code, True), put.last_error
        assert CANARY not in put.last_error.message
        read = client.vector_stores.files.retrieve(
            put.id, vector_store_id=put.vector_store_id, extra_headers={"Accept-Language": "ja"}
        )
        assert read.last_error is not None
        assert (read.last_error.code, read.last_error.message.startswith("文書を読み取れません: ")) == (code, True)
        assert set(read.last_error.model_dump()) == {"code", "message"}
        assert put.usage_bytes == 0
        assert until(lambda: not made_of_documents(house)), made_of_documents(house)
        store = client.vector_stores.retrieve(put.vector_store_id)
        assert (store.status, store.file_counts.failed) == ("completed", 1)
        assert client.vector_stores.search(store.id, query="anything").data == []
    nothing_is_left(house)


def test_what_a_document_is_its_bytes_say(house: RunningServer, client: OpenAI):
    """A kind that lies is no way around anything, and an honest document under a wrong name is read."""
    with in_store(client, "report.png", documents.pdf([[(11, 72, 700, "The roof was mended.")]])) as put:
        assert put.status == "completed", put.last_error
        found = client.vector_stores.search(put.vector_store_id, query="roof").data
        assert "The roof was mended." in found[0].content[0].text
    nothing_is_left(house)


def test_a_picture_of_a_page_is_found_by_its_words_in_both_languages(house: RunningServer, client: OpenAI):
    picture = Path(__file__).parents[1] / "support" / "pictures" / "estimate.png"
    with in_store(client, "estimate.png", picture.read_bytes()) as put:
        assert put.status == "completed", put.last_error
        for query, says in (("Who painted the cellar?", "Okapi Painters"), ("屋根を直したのは誰か", "加藤組")):
            found = client.vector_stores.search(put.vector_store_id, query=query).data
            assert says in found[0].content[0].text
    nothing_is_left(house)


def fifty_megabytes(pages: int) -> bytes:
    """A PDF as a scanner makes it: pages of text, and pictures."""
    page = [
        (11.0, 72.0, 780.0 - 14 * line, f"Line {line} tells of the roof and of what it cost.") for line in range(40)
    ]
    last = [(11.0, 72.0, 700.0, "The cellar was painted by Okapi Painters.")]
    return documents.pdf([page] * pages + [last], padding=os.urandom(50 * MIB))


def test_a_pdf_of_fifty_megabytes_is_read_to_its_end(house: RunningServer, client: OpenAI):
    with in_store(client, "large.pdf", fifty_megabytes(40)) as put:
        assert put.status == "completed", put.last_error
        found = client.vector_stores.search(put.vector_store_id, query="Who painted the cellar?").data
        assert "Okapi Painters" in found[0].content[0].text
    nothing_is_left(house)


class Zeros(io.RawIOBase):
    """Ten gigabytes of zeros that are nowhere; ``sent`` counts what was taken of them."""

    def __init__(self, size: int = 10 * 1024 * MIB) -> None:
        self.size = size
        self.sent = 0

    def read(self, size: int = -1) -> bytes:
        piece = min(MIB if size < 0 else size, self.size - self.sent)
        self.sent += piece
        return bytes(piece)


def memory_of(house: RunningServer, name: str) -> int:
    status = Path(f"/proc/{house.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) * 1024


@pytest.mark.parametrize("declared", [True, False])
def test_ten_gigabytes_of_zeros_are_refused_and_neither_held_nor_stored(
    house: RunningServer, client: OpenAI, tmp_path: Path, declared: bool
):
    Path(f"/proc/{house.pid}/clear_refs").write_text("5")  # the peak is counted from here
    before = memory_of(house, "VmRSS")
    if declared:
        sparse = tmp_path / "sparse.bin"
        with sparse.open("wb") as file:
            file.truncate(10 * 1024 * MIB)
        content: Any = sparse.open("rb")
    else:
        content = Zeros()
    try:
        with pytest.raises(openai.APIError) as refused:
            client.files.create(file=("zeros.bin", content), purpose="assistants")
        taken = content.tell() if declared else content.sent
    finally:
        content.close()
    if isinstance(refused.value, openai.APIStatusError):
        # Else it was cut while it was still sending, before it looked at the answer.
        assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    assert taken < 1024 * MIB, "it took a tenth of it"
    assert memory_of(house, "VmHWM") - before < 48 * MIB, "it was held"
    assert client.files.list().data == []
    nothing_is_left(house)


def test_no_name_leads_anywhere_or_keeps_a_document_from_being_found(house: RunningServer, client: OpenAI):
    traversal, override, nul = "../../../../etc/passwd.txt", "report\u202efdp.txt", "a\x00b.txt"
    # The client itself writes a NUL so.
    for name, shown in ((traversal, "passwd.txt"), (override, "reportfdp.txt"), (nul, "a%00b.txt")):
        with in_store(client, name, b"The roof was mended.") as put:
            assert put.status == "completed", put.last_error
            found = client.vector_stores.search(put.vector_store_id, query="roof").data
            assert [one.filename for one in found] == [shown]
    for name in ("a" * 10_000, "長" * 10_000):
        with pytest.raises(openai.BadRequestError, match="255"):
            client.files.create(file=(name, b"x"), purpose="assistants")
    store = client.vector_stores.create(name="names")
    made = {}
    for name in NAUGHTY:
        with contextlib.suppress(openai.BadRequestError):
            made[client.files.create(file=(name, b"The roof was mended."), purpose="assistants").id] = name
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=list(made), poll_interval_ms=100)
    assert (batch.file_counts.completed, batch.file_counts.total) == (len(made), len(made)), batch
    client.vector_stores.delete(store.id)
    for each in made:
        client.files.delete(each)
    nothing_is_left(house)
