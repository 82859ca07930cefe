import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.blobs.driver import BlobHouse
from nagaya.blobs.filesystem import FileBlobHouse
from nagaya.blobs.s3 import open_house as open_s3_house
from nagaya.testing.blobs import BlobContract, MemoryBlobHouse
from parts.azurite import Azurite, azurite  # noqa: F401 - a fixture
from parts.blob_places import bucket, s3_url, surroundings, unfinished_uploads  # noqa: F401 - fixtures
from parts.ministack import ministack  # noqa: F401 - a fixture


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
        async with asyncio.timeout(30):
            while any(drafts.iterdir()):  # what a cancelled write leaves is removed right after it
                await asyncio.sleep(0.01)


class TestS3Blobs(BlobContract):
    page_blobs = 60
    presigns = True

    @pytest.fixture
    async def blob_house(self, s3_url: str) -> AsyncIterator[BlobHouse]:  # noqa: F811 - the fixture
        self.url = s3_url
        house = await open_s3_house(s3_url, surroundings())
        yield house
        await house.close()

    async def check_no_leftovers(self, blobs) -> None:
        assert await unfinished_uploads(self.url) == []


class TestAzureBlobs(BlobContract):
    page_blobs = 60
    presigns = True

    @pytest.fixture
    async def blob_house(self, azurite: Azurite) -> AsyncIterator[BlobHouse]:  # noqa: F811 - the fixture
        house = azurite.house(azurite.new_url())
        yield house
        await house.close()
