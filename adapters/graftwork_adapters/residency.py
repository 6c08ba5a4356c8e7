"""Where weights are beside the disk; the server's tiers implement it, AdapterService asks it."""

import enum
from typing import Protocol

from graftwork_adapters.records import VersionRecord


class Residency(enum.Enum):
    DISK = enum.auto()
    HOST = enum.auto()
    DEVICE = enum.auto()


class AdapterResidency(Protocol):
    """All methods are called on the event loop's thread."""

    def residency_of(self, digest: str) -> Residency: ...

    async def load(self, version: VersionRecord) -> None:
        """Brings a version onto the device, and returns once it is there. The caller holds a lease
        on it meanwhile."""

    async def unload(self, version: VersionRecord) -> None:
        """Takes a version off the device and out of host memory once no request uses it; returns
        without waiting for that. Unknown to the tiers: nothing happens."""

    def set_pinned(self, digest: str, pinned: bool) -> None:
        """Whether the LRU must spare these weights."""
