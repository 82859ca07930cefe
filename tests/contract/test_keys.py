from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.keys.driver import KeyDriver
from nagaya.keys.local import LocalKeyService
from nagaya.testing.keys import KeyContract, MemoryKeys


class TestMemoryKeys(KeyContract):
    @pytest.fixture
    def keys(self) -> KeyDriver:
        return MemoryKeys()


class TestLocalKeyService(KeyContract):
    @pytest.fixture
    async def keys(self, tmp_path: Path) -> AsyncIterator[KeyDriver]:
        service = await LocalKeyService.open(tmp_path / "keys", create=True)
        yield service
        await service.close()
