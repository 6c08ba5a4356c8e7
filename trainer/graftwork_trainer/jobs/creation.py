"""Queues jobs, for callers and policies, once they are checked against what the server holds."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from graftwork.v1 import feedback_service_pb2
from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.directory import Directory
from graftwork_adapters.errors import AdapterError
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.selector import parse_selector

from graftwork_trainer.jobs.catalogue import Catalogue
from graftwork_trainer.jobs.errors import NothingToTrainOn
from graftwork_trainer.jobs.records import JobRecord
from graftwork_trainer.jobs.spec import DatasetSpec
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.jobs.validate import parse_spec

OffLoop = Callable[..., Awaitable[Any]]  # runs a function with its arguments off the event loop


class Examples(Protocol):
    """What the journal and the snapshots hold. All methods wait for the disk."""

    def takes_any(self, selection: feedback_service_pb2.ExampleSelection) -> bool:
        """Whether a selection takes any example now."""

    def count_feedback(self, selection: feedback_service_pb2.ExampleSelection) -> int:
        """Items of feedback that a selection takes now."""

    def check_snapshot(self, digest: str) -> None:
        """Raises WireError for a snapshot that is not there."""


@dataclass(frozen=True, slots=True)
class JobCreator:
    """Lives on the event loop. `wake` tells the supervisor that a job waits."""

    store: JobStore
    catalogue: Catalogue
    adapters: Directory
    examples: Examples
    off_loop: OffLoop
    wake: Callable[[], None]
    clock_ns: Callable[[], int] = time.time_ns

    async def create(
        self,
        spec: pb.TrainingJobSpec,
        *,
        policy: str = "",
        request: MutationRequest | None = None,
    ) -> JobRecord:
        """The queued job, or that of an earlier, equal request.

        Raises InvalidFieldError, NothingToTrainOn, UnknownAdapter, NoLiveVersion, RequestIdReused.
        """
        earlier: JobRecord | None = await self.off_loop(self.store.recall, request)
        if earlier is not None:
            return earlier
        parsed = parse_spec(spec, self.catalogue)
        wanted = pb.TrainingJobSpec()
        wanted.CopyFrom(spec)
        if parsed.initial_version:
            wanted.initial_version = self._exact(parsed.initial_version)
        await self._check_dataset(parsed.dataset)
        if parsed.dataset.settings is not None:
            self._fix_end(wanted.dataset.selection)
        record: JobRecord = await self.off_loop(
            self.store.create, wanted, policy=policy, request=request
        )
        self.wake()
        return record

    def _exact(self, initial_version: str) -> str:
        """The "name@version" that a selector stands for now."""
        field = "spec.initial_version"
        try:
            return self.adapters.lookup(parse_selector(initial_version, field=field)).selector
        except AdapterError as error:
            error.field = field
            raise

    def _fix_end(self, selection: feedback_service_pb2.ExampleSelection) -> None:
        """Feedback that comes after the job is for another one: so each attempt trains on the same,
        and a snapshot can be made again."""
        now_ns = self.clock_ns()
        if not selection.HasField("before") or selection.before.ToNanoseconds() > now_ns:
            selection.before.FromNanoseconds(now_ns)

    async def _check_dataset(self, dataset: DatasetSpec) -> None:
        if dataset.snapshot:
            await self.off_loop(self.examples.check_snapshot, dataset.snapshot)
        if dataset.settings is None:
            return
        selection = dataset.settings.selection
        if not await self.off_loop(self.examples.takes_any, selection):
            raise NothingToTrainOn(selection.tasks, selection.format)
