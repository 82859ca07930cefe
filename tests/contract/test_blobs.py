import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.blobs.driver import BlobHouse
from nagaya.blobs.filesystem import FileBlobHouse
from nagaya.testing.blobs import BlobContract, MemoryBlobHouse


class TestMemoryBlobs(BlobContract):
    large_bytes = 100_000

    @pytest.fixture
    def blob_house(self) -> BlobHouse:
        return MemoryBlobHouse()


class TestFileBlobs(BlobContract):
    large_bytes = 3 * 1024 * 1024 + 17
    page_blobs = 200

    @pytest.fixture
    async def blob_house(self, tmp_path: Path) -> AsyncIterator[BlobHouse]:
        self.folder = tmp_path / "blobs"
        house = FileBlobHouse(self.folder)
        await house.prepare()
        yield house
        await house.close()

    async def check_no_leftovers(self, blobs) -> None:
        drafts = self.folder / self.ROOM / ".parts"
        async with asyncio.timeout(5):
            while any(drafts.iterdir()):  # what a cancelled write leaves is removed right after it
                await asyncio.sleep(0.01)
