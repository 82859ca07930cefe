import pytest

from nagaya.cache.driver import CacheDriver
from nagaya.cache.local import LocalCache
from nagaya.testing.cache import CacheContract
from nagaya.testing.clock import ManualClock


class TestLocalCache(CacheContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def cache(self, clock: ManualClock) -> CacheDriver:
        return LocalCache(clock)
