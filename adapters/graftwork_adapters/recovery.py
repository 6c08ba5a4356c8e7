"""Opening a registry: rows and folders are made to agree, whatever a crash or a person left."""

import logging
from dataclasses import replace

from graftwork_adapters.records import Recovery
from graftwork_adapters.registry_db import RegistryDatabase, StoredAdapter
from graftwork_adapters.store import ImmutableStore

_log = logging.getLogger(__name__)


def recover(
    database: RegistryDatabase, store: ImmutableStore
) -> tuple[list[StoredAdapter], Recovery]:
    """The adapters, and what had to be put right.

    Versions whose files are gone are dropped from the rows, and what pointed at them points at
    nothing; folders that no row names are removed. Raises RuntimeError where every version is gone:
    then it is the store that is missing, and the rows are left alone.
    """
    adapters = database.load()
    versions = [version for adapter in adapters for version in adapter.versions.values()]
    lost = tuple(v for v in versions if store.size_bytes(v.digest) != v.size_bytes)
    if lost and len(lost) == len(versions):
        raise RuntimeError(
            f"none of the {len(versions)} registered adapter versions is in the store: "
            "restore the store that belongs to this registry"
        )
    kept = {adapter.record.name: adapter for adapter in adapters}
    if lost:
        with database.transaction():
            for version in lost:
                _log.error("adapter version %s has lost its files", version.selector)
                remaining = without_version(kept[version.adapter], version.version)
                kept[version.adapter] = remaining
                database.save_adapter(remaining)
                database.delete_version(version)
    named = {v.digest for adapter in kept.values() for v in adapter.versions.values()}
    orphans = tuple(sorted(store.digests() - named))
    for digest in orphans:
        store.delete(digest)
    return list(kept.values()), Recovery(lost, orphans)


def without_version(adapter: StoredAdapter, version: int) -> StoredAdapter:
    """The adapter without one of its versions, and without what points at it."""
    record = adapter.record
    if record.live_version == version:
        record = replace(record, live_version=0)
    if any(share.version == version for share in record.traffic_split):
        record = replace(record, traffic_split=())
    return replace(
        adapter,
        record=record,
        versions={number: v for number, v in adapter.versions.items() if number != version},
        live_history=tuple(number for number in adapter.live_history if number != version),
    )
