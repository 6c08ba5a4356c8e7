"""The registry's memory: which versions there are, what each name points at, who holds what.

Everything is fit for the event loop: a lookup holds the lock for microseconds, and nothing here
touches the disk. An adapter's entry is frozen; a mutation (registry.py) swaps it for another.
"""

import threading
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from graftwork_adapters.errors import NoLiveVersion, UnknownAdapter
from graftwork_adapters.leases import Lease, LeaseTable
from graftwork_adapters.paging import Page, decode_token, encode_token
from graftwork_adapters.records import AdapterRecord, VersionRecord
from graftwork_adapters.registry_db import StoredAdapter
from graftwork_adapters.selector import Selector
from graftwork_adapters.traffic import choose_version


class Directory:
    """Thread-safe. `on_last_release` gets the digest that no lease holds any more."""

    def __init__(
        self, adapters: Iterable[StoredAdapter], on_last_release: Callable[[str], None]
    ) -> None:
        self._lock = threading.Lock()
        self._leases = LeaseTable(self._lock, on_last_release)
        self._adapters = {adapter.record.name: adapter for adapter in adapters}
        self._names = sorted(self._adapters)
        self._versions_of_digest = Counter(
            version.digest
            for adapter in self._adapters.values()
            for version in adapter.versions.values()
        )

    def resolve(self, selector: Selector, *, sticky_key: str = "", draw: float = 0.0) -> Lease:
        """The version that serves a request, held until the lease is released.

        `draw` in [0, 1) picks within a traffic split, unless there is a `sticky_key`, such as an
        episode's id. Raises UnknownAdapter, NoLiveVersion; the base has no version (ValueError).
        """
        if selector.is_base:
            raise ValueError("the base is not in the registry")
        with self._lock:
            adapter = self._adapter(selector)
            number = selector.version
            if number is None:
                number = choose_version(adapter.record, sticky_key=sticky_key, draw=draw)
            version = adapter.versions.get(number)
            if version is None:
                raise UnknownAdapter(str(selector))
            return self._leases.acquire_locked(version)

    def lookup(self, selector: Selector) -> VersionRecord:
        """The version that a selector names, by name alone the live one. Raises as `resolve`."""
        with self._lock:
            adapter = self._adapter(selector)
        number = selector.version or adapter.record.live_version
        if number == 0:
            raise NoLiveVersion(selector.name)
        version = adapter.versions.get(number)
        if version is None:
            raise UnknownAdapter(str(selector))
        return version

    def get_adapter(self, name: str) -> AdapterRecord:
        with self._lock:
            return self._adapter(Selector(name)).record

    def list_adapters(self, *, page_size: int, page_token: str = "") -> Page[AdapterRecord]:
        after, _ = decode_token("adapters", page_token)
        with self._lock:
            start = bisect_right(self._names, after)
            names = self._names[start : start + page_size]
            records = tuple(self._adapters[name].record for name in names)
            is_last = start + page_size >= len(self._names)
        return Page(records, "" if is_last else encode_token("adapters", names[-1], 0))

    def list_versions(
        self, name: str = "", *, page_size: int, page_token: str = ""
    ) -> Page[VersionRecord]:
        """The versions of one adapter, or of all where `name` is ""."""
        list_name = f"versions/{name}"
        after = decode_token(list_name, page_token)
        with self._lock:
            if name:
                adapters = [self._adapter(Selector(name))]
            else:
                start = bisect_left(self._names, after[0])
                adapters = [self._adapters[found] for found in self._names[start:]]
        found: list[VersionRecord] = []
        for adapter in adapters:
            versions = adapter.versions.values()
            found += [v for v in versions if (v.adapter, v.version) > after]
            if len(found) > page_size:
                last = found[page_size - 1]
                token = encode_token(list_name, last.adapter, last.version)
                return Page(tuple(found[:page_size]), token)
        return Page(tuple(found), "")

    def ephemeral_versions(self, name: str, owner: str) -> tuple[VersionRecord, ...]:
        """What the owner has of an adapter; at most one between two calls."""
        with self._lock:
            adapter = self._adapters.get(name)
        versions = () if adapter is None else adapter.versions.values()
        return tuple(version for version in versions if version.ephemeral_owner == owner)

    def leases(self) -> Mapping[str, int]:
        """Leases by digest; empty when no request runs."""
        return self._leases.counts()

    def pinned_digests(self) -> frozenset[str]:
        """What the tiers must not evict: the serving versions of pinned adapters."""
        with self._lock:
            adapters = list(self._adapters.values())
        return frozenset(
            adapter.versions[number].digest
            for adapter in adapters
            if adapter.record.pinned
            for number in adapter.record.serving_versions
        )

    def is_registered(self, digest: str) -> bool:
        """Whether any version has these files."""
        with self._lock:
            return self._versions_of_digest[digest] > 0

    def is_needed(self, digest: str) -> bool:
        """Whether a version or a lease needs these files."""
        with self._lock:
            return self._versions_of_digest[digest] > 0 or self._leases.is_held_locked(digest)

    def _put(self, adapter: StoredAdapter) -> None:
        """Swaps an adapter's entry for a newer one."""
        name = adapter.record.name
        with self._lock:
            before = self._adapters.get(name)
            if before is None:
                insort(self._names, name)
            known = {} if before is None else before.versions
            for number in adapter.versions.keys() - known.keys():
                self._versions_of_digest[adapter.versions[number].digest] += 1
            for number in known.keys() - adapter.versions.keys():
                digest = known[number].digest
                self._versions_of_digest[digest] -= 1
                if not self._versions_of_digest[digest]:
                    del self._versions_of_digest[digest]
            self._adapters[name] = adapter

    def _adapter(self, selector: Selector) -> StoredAdapter:
        adapter = self._adapters.get(selector.name)
        if adapter is None:
            raise UnknownAdapter(str(selector))
        return adapter
