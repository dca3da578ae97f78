"""Calls go to a driver without a GPU and to a cache of their own, as the tests of `gpu/` do."""

from tests.gpu.conftest import fake, own_cache

__all__ = ["fake", "own_cache"]
