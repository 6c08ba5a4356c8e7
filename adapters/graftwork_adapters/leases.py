"""Versions held for requests: each stays on disk and in its tier until its lease is released."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from graftwork_adapters.records import VersionRecord


class Lease:
    """A version that a request runs on. Release it once the request has ended, from any thread."""

    __slots__ = ("_held", "_table", "version")

    def __init__(self, version: VersionRecord, table: "LeaseTable") -> None:
        self.version = version
        self._table = table
        self._held = True  # guarded by the table's lock

    def release(self) -> None:
        """Lets go of the version; idempotent."""
        self._table.release(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class LeaseTable:
    """Reference counts by digest, under the lock that the registry's lookups take too."""

    def __init__(self, lock: threading.Lock, on_last_release: Callable[[str], None]) -> None:
        self._lock = lock
        self._on_last_release = on_last_release  # called without the lock, with the digest
        self._counts: dict[str, int] = {}

    def acquire_locked(self, version: VersionRecord) -> Lease:
        """The caller holds the lock."""
        self._counts[version.digest] = self._counts.get(version.digest, 0) + 1
        return Lease(version, self)

    def is_held_locked(self, digest: str) -> bool:
        """The caller holds the lock."""
        return digest in self._counts

    def counts(self) -> Mapping[str, int]:
        """Leases by digest; only those that are held."""
        with self._lock:
            return dict(self._counts)

    def release(self, lease: Lease) -> None:
        digest = lease.version.digest
        with self._lock:
            if not lease._held:  # noqa: SLF001 - table and lease are one mechanism
                return
            lease._held = False  # noqa: SLF001
            self._counts[digest] -= 1
            if self._counts[digest]:
                return
            del self._counts[digest]
        self._on_last_release(digest)
