"""The registry: the directory's memory, written through to SQLite before it changes.

`_write_lock` orders mutations. Each writes its rows, durably, and only then swaps the entry of the
adapter in the directory, whose own lock is always taken after it.

A version's row exists only after its folder is durable, and its folder is removed only after its
row, so that a crash leaves at worst a folder that no row names.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from graftwork_adapters.directory import Directory
from graftwork_adapters.errors import (
    EphemeralVersion,
    NothingToRollBack,
    RequestIdReused,
    UnknownAdapter,
    VersionInUse,
)
from graftwork_adapters.mutation import (
    MutationRequest,
    adapter_from_answer,
    adapter_to_answer,
    version_from_answer,
    version_to_answer,
)
from graftwork_adapters.records import AdapterChange, AdapterRecord, VersionDraft, VersionRecord
from graftwork_adapters.recovery import recover, without_version
from graftwork_adapters.registry_db import RegistryDatabase, StoredAdapter, StoredAnswer
from graftwork_adapters.selector import Selector
from graftwork_adapters.store import ImmutableStore
from graftwork_adapters.traffic import check_split

_MAX_HISTORY = 100  # live versions to roll back to, per adapter
_ANSWERS_KEPT_NS = 7 * 24 * 3600 * 10**9


class Registry(Directory):
    """Thread-safe. Mutations and `recall_version` wait for the disk and belong on a background
    thread; what Directory has is fit for the event loop.

    `recovery` says what opening it had to put right. `executor` frees the files of deleted versions
    after their last lease.
    """

    def __init__(
        self,
        path: Path,
        store: ImmutableStore,
        executor: Executor,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._executor = executor
        self._clock_ns = clock_ns
        self._write_lock = threading.Lock()
        self._database = RegistryDatabase(path)
        try:
            adapters, self.recovery = recover(self._database, store)
        except BaseException:
            self._database.close()
            raise
        super().__init__(adapters, self._free_later)

    def close(self) -> None:
        with self._write_lock:
            self._database.close()

    def recall_version(self, request: MutationRequest | None) -> VersionRecord | None:
        """The version that an earlier, equal request registered; raises RequestIdReused."""
        with self._write_lock:
            answer = self._recall(request)
        return None if answer is None else version_from_answer(answer)

    def register(
        self,
        name: str,
        draft: VersionDraft,
        *,
        publish: Callable[[], None],
        make_live: bool | None = None,
        request: MutationRequest | None = None,
    ) -> VersionRecord:
        """Gives a checked version its number, and its adapter if that is new.

        `publish` makes the version's folder durable in the store; it runs just before the row is
        written, unless the request is a repetition. `make_live` None: if no version is live.
        """
        with self._write_lock:
            if (answer := self._recall(request)) is not None:
                return version_from_answer(answer)
            publish()
            with self._unless_written(draft.digest):
                now = self._clock_ns()
                adapter = self._adapters.get(name) or _new_adapter(name, now)
                version = VersionRecord(
                    adapter=name,
                    version=adapter.next_version,
                    create_time_ns=now,
                    **asdict(draft),
                )
                adapter = replace(
                    adapter,
                    next_version=version.version + 1,
                    versions={**adapter.versions, version.version: version},
                )
                if adapter.record.live_version == 0 if make_live is None else make_live:
                    adapter = _with_live(adapter, version.version)
                adapter = _touched(adapter, now)
                with self._database.transaction():
                    self._database.save_adapter(adapter)
                    self._database.insert_version(version)
                    self._save_answer(request, version_to_answer(version), now)
            self._put(adapter)
            return version

    def register_ephemeral(
        self, name: str, draft: VersionDraft, owner: str, *, publish: Callable[[], None]
    ) -> VersionRecord:
        """Gives a checked version its number, and takes the owner's earlier one of this adapter
        away. Only the number outlives the process, so that it is never given twice.

        The owner's present version is returned where its files are equal.
        """
        with self._write_lock:
            now = self._clock_ns()
            adapter = self._adapters.get(name) or _new_adapter(name, now)
            earlier = [v for v in adapter.versions.values() if v.ephemeral_owner == owner]
            for version in earlier:
                if version.digest == draft.digest:
                    return version
            publish()
            with self._unless_written(draft.digest):
                version = VersionRecord(
                    adapter=name,
                    version=adapter.next_version,
                    create_time_ns=now,
                    ephemeral_owner=owner,
                    **asdict(draft),
                )
                kept = {n: v for n, v in adapter.versions.items() if v not in earlier}
                adapter = replace(
                    adapter,
                    next_version=version.version + 1,
                    versions={**kept, version.version: version},
                )
                adapter = _touched(adapter, now)
                with self._database.transaction():
                    self._database.save_adapter(adapter)
            self._put(adapter)
            for replaced in earlier:
                self._free(replaced.digest)
            return version

    def update(
        self, name: str, change: AdapterChange, *, request: MutationRequest | None = None
    ) -> AdapterRecord:
        """Moves the live version or the traffic split, or pins. Raises UnknownAdapter, also for a
        version, EphemeralVersion, and InvalidFieldError."""
        with self._write_lock:
            if (answer := self._recall(request)) is not None:
                return adapter_from_answer(answer)
            adapter = self._adapter(Selector(name))
            if change.live_version is not None:
                _check_can_serve(adapter, change.live_version, "adapter.live_version")
                adapter = _with_live(adapter, change.live_version)
            if change.traffic_split is not None:
                split = check_split(change.traffic_split, field="adapter.traffic_split")
                for share in split:
                    _check_can_serve(adapter, share.version, "adapter.traffic_split.version")
                record = replace(adapter.record, traffic_split=split)
                adapter = replace(adapter, record=record)
            if change.pinned is not None:
                record = replace(adapter.record, pinned=change.pinned)
                adapter = replace(adapter, record=record)
            return self._save(adapter, request)

    def rollback(self, name: str, *, request: MutationRequest | None = None) -> AdapterRecord:
        """Makes the version that was live before the present one live again, for all traffic: a
        traffic split ends. Raises UnknownAdapter, NothingToRollBack."""
        with self._write_lock:
            if (answer := self._recall(request)) is not None:
                return adapter_from_answer(answer)
            adapter = self._adapter(Selector(name))
            history = list(adapter.live_history)
            while history and history[-1] == adapter.record.live_version:
                history.pop()
            if not history:
                raise NothingToRollBack(name)
            record = replace(adapter.record, live_version=history.pop(), traffic_split=())
            adapter = replace(adapter, record=record, live_history=tuple(history))
            return self._save(adapter, request)

    def delete_version(
        self, selector: Selector, *, request: MutationRequest | None = None
    ) -> VersionRecord:
        """Deletes a version that no traffic goes to. Leases on it stay good; its files go with the
        last of them. Raises UnknownAdapter, VersionInUse."""
        with self._write_lock:
            if (answer := self._recall(request)) is not None:
                return version_from_answer(answer)
            adapter = self._adapter(selector)
            version = adapter.versions.get(selector.version or 0)
            if version is None:
                raise UnknownAdapter(str(selector))
            if version.version in adapter.record.serving_versions:
                is_live = version.version == adapter.record.live_version
                raise VersionInUse(str(selector), "live" if is_live else "in a traffic split")
            now = self._clock_ns()
            adapter = _touched(without_version(adapter, version.version), now)
            with self._database.transaction():
                self._database.save_adapter(adapter)
                self._database.delete_version(version)
                self._save_answer(request, version_to_answer(version), now)
            self._put(adapter)
            self._free(version.digest)
            return version

    def _save(self, adapter: StoredAdapter, request: MutationRequest | None) -> AdapterRecord:
        now = self._clock_ns()
        adapter = _touched(adapter, now)
        with self._database.transaction():
            self._database.save_adapter(adapter)
            self._save_answer(request, adapter_to_answer(adapter.record), now)
        self._put(adapter)
        return adapter.record

    def _recall(self, request: MutationRequest | None) -> dict[str, Any] | None:
        if request is None:
            return None
        stored = self._database.answer_of(request.request_id)
        if stored is None:
            return None
        if stored.fingerprint != request.fingerprint:
            raise RequestIdReused(request.request_id)
        return stored.answer

    def _save_answer(
        self, request: MutationRequest | None, answer: dict[str, Any], now_ns: int
    ) -> None:
        if request is not None:
            self._database.forget_answers(now_ns - _ANSWERS_KEPT_NS)
            stored = StoredAnswer(request.fingerprint, answer)
            self._database.save_answer(request.request_id, stored, now_ns)

    @contextlib.contextmanager
    def _unless_written(self, digest: str) -> Iterator[None]:
        """A folder whose row could not be written is removed again."""
        try:
            yield
        except BaseException:
            self._free(digest)
            raise

    def _free(self, digest: str) -> None:
        """Removes the files that neither a version nor a lease needs; under the write lock."""
        if not self.is_needed(digest):
            self._store.delete(digest)

    def _free_later(self, digest: str) -> None:
        """After the last release of a lease, on the thread that released it."""
        if self.is_registered(digest):
            return
        # A process that shuts down takes no more work; the next start collects the folder.
        with contextlib.suppress(RuntimeError):
            self._executor.submit(self._free_exclusively, digest)

    def _free_exclusively(self, digest: str) -> None:
        with self._write_lock:
            self._free(digest)


def _new_adapter(name: str, now_ns: int) -> StoredAdapter:
    record = AdapterRecord(name, 0, (), False, now_ns, now_ns)
    return StoredAdapter(record, next_version=1, versions={}, live_history=())


def _touched(adapter: StoredAdapter, now_ns: int) -> StoredAdapter:
    return replace(adapter, record=replace(adapter.record, update_time_ns=now_ns))


def _with_live(adapter: StoredAdapter, version: int) -> StoredAdapter:
    """Points the name at a version; what was live before is remembered."""
    before = adapter.record.live_version
    if before == version:
        return adapter
    history = (*adapter.live_history, before) if before else adapter.live_history
    record = replace(adapter.record, live_version=version)
    return replace(adapter, record=record, live_history=history[-_MAX_HISTORY:])


def _check_can_serve(adapter: StoredAdapter, number: int, field: str) -> None:
    if number == 0:
        return
    version = adapter.versions.get(number)
    if version is None:
        raise UnknownAdapter(f"{adapter.record.name}@{number}", field=field)
    if version.is_ephemeral:
        raise EphemeralVersion(version.selector, field=field)
