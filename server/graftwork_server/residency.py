"""Where adapter versions are: on the device, in host memory, or on disk only.

State changes on the engine's thread only, between steps; loads run on threads of their own and come
back as commands. `residency_of` may read from any thread.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future

from graftwork.status import WireError
from graftwork_adapters.records import VersionRecord
from graftwork_adapters.residency import Residency

from graftwork_server.commands import CommandQueue
from graftwork_server.device_adapters import DeviceAdapters
from graftwork_server.errors import InternalError
from graftwork_server.metrics import Metrics
from graftwork_server.packed_adapter import PackedAdapter
from graftwork_server.scheduler import Scheduler

logger = logging.getLogger(__name__)

Loader = Callable[[str], PackedAdapter]  # reads, lowers and packs a version, by its digest
OnLoadFailed = Callable[[str, WireError], None]


class Tiers:
    """Moves versions between disk, host memory and device slots as the scheduler wants them.

    On CPU the slots share the host's tensors: a version with a slot stays in host memory, and is
    counted once.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        device: DeviceAdapters,
        commands: CommandQueue,
        metrics: Metrics,
        *,
        load: Loader,
        executor: Executor,
        host_budget_bytes: int,
    ) -> None:
        self._scheduler = scheduler
        self._slots = scheduler.slots
        self._device = device
        self._commands = commands
        self._metrics = metrics
        self._load = load
        self._executor = executor
        self._host_budget_bytes = host_budget_bytes
        self._host: OrderedDict[str, PackedAdapter] = OrderedDict()  # least recently used first
        self._host_bytes = 0
        self._loading: set[str] = set()
        self._load_requests: dict[str, list[Future[None]]] = {}
        self._unload_requests: set[str] = set()

    def residency_of(self, digest: str) -> Residency:
        if self._slots.slot_of(digest) is not None:
            return Residency.DEVICE
        return Residency.HOST if digest in self._host else Residency.DISK

    async def load(self, version: VersionRecord) -> None:
        """Returns once the version has a slot; raises why it cannot have one."""
        digest, done = version.digest, Future[None]()
        self._commands.post(lambda: self._load_requests.setdefault(digest, []).append(done))
        await asyncio.wrap_future(done)

    async def unload(self, version: VersionRecord) -> None:
        """The version leaves device and host memory as soon as no request runs on it."""
        self._commands.post(lambda: self._unload_requests.add(version.digest))

    def set_pinned(self, digest: str, pinned: bool) -> None:
        """A pinned version is never evicted from the device to make room."""
        change = self._slots.pin if pinned else self._slots.unpin
        self._commands.post(lambda: change(digest))

    def update(self, on_load_failed: OnLoadFailed) -> None:
        """Between two steps: frees what may go, places what is wanted and loaded, starts loads."""
        self._unload_idle()
        self._forget_cancelled_loads()
        wanted = dict.fromkeys([*self._load_requests, *self._scheduler.wanted_digests()])
        has_room = True
        for digest in wanted:
            adapter = self._host.get(digest)
            if adapter is None:
                self._start_loading(digest, on_load_failed)
            elif has_room:
                try:
                    has_room = self._place(digest, adapter)
                except WireError as error:
                    self._fail(digest, error, on_load_failed)

    def _place(self, digest: str, adapter: PackedAdapter) -> bool:
        if self._slots.slot_of(digest) is None:
            placement = self._slots.place(digest, adapter.num_bytes)
            if placement is None:
                return False
            for evicted in placement.evicted:
                self._device.clear(evicted.slot)
                self._metrics.count_eviction("device")
            self._device.place(placement.slot, adapter)
            self._host.move_to_end(digest)
            self._shrink_host()
            self._report()
        for done in self._load_requests.pop(digest, ()):
            if done.set_running_or_notify_cancel():  # its caller may have gone
                done.set_result(None)
        return True

    def _start_loading(self, digest: str, on_load_failed: OnLoadFailed) -> None:
        if digest in self._loading:
            return
        self._loading.add(digest)
        started = time.monotonic()

        def finish(loaded: Future[PackedAdapter]) -> None:
            self._commands.post(lambda: self._finish(digest, loaded, started, on_load_failed))

        self._executor.submit(self._load, digest).add_done_callback(finish)

    def _finish(
        self,
        digest: str,
        loaded: Future[PackedAdapter],
        started: float,
        on_load_failed: OnLoadFailed,
    ) -> None:
        self._loading.discard(digest)
        error = loaded.exception()
        self._metrics.observe_load("host", time.monotonic() - started, ok=error is None)
        if error is not None:
            if not isinstance(error, WireError):
                failure = InternalError()
                incident = failure.metadata["incident"]
                logger.error("incident %s: loading %s failed", incident, digest, exc_info=error)
                error = failure
            self._fail(digest, error, on_load_failed)
            return
        self._host[digest] = loaded.result()
        self._host_bytes += loaded.result().num_bytes
        self._report()

    def _fail(self, digest: str, error: WireError, on_load_failed: OnLoadFailed) -> None:
        for done in self._load_requests.pop(digest, ()):
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
        on_load_failed(digest, error)

    def _shrink_host(self) -> None:
        for digest in list(self._host):
            if self._host_bytes <= self._host_budget_bytes:
                return
            if self._slots.slot_of(digest) is None:
                self._drop_from_host(digest)
                self._metrics.count_eviction("host")

    def _forget_cancelled_loads(self) -> None:
        for digest, requests in list(self._load_requests.items()):
            if all(done.cancelled() for done in requests):
                del self._load_requests[digest]

    def _drop_from_host(self, digest: str) -> None:
        self._host_bytes -= self._host.pop(digest).num_bytes

    def _unload_idle(self) -> None:
        for digest in list(self._unload_requests):
            if self._slots.num_references(digest):
                continue
            if self._slots.slot_of(digest) is not None:
                self._device.clear(self._slots.remove(digest))
            if digest in self._host:
                self._drop_from_host(digest)
            self._unload_requests.discard(digest)
            self._report()

    def _report(self) -> None:
        self._metrics.set_residency(
            "device",
            versions=len(self._slots.resident_digests),
            num_bytes=self._slots.num_bytes,
        )
        self._metrics.set_residency("host", versions=len(self._host), num_bytes=self._host_bytes)
