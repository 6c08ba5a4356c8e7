"""Builds what runs training jobs inside the server's process, starts it, and stops it in order."""

import asyncio
import functools
import shutil
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from graftwork import AsyncClient
from graftwork.v1 import training_service_pb2, training_service_pb2_grpc
from graftwork_adapters.directory import Directory
from prometheus_client import CollectorRegistry

from graftwork_trainer.datasets.redaction import Redactor
from graftwork_trainer.datasets.snapshot import open_snapshot
from graftwork_trainer.jobs.canaries import CanaryWatcher, JournalFeedback
from graftwork_trainer.jobs.catalogue import RECIPE_FORMATS, Catalogue
from graftwork_trainer.jobs.creation import JobCreator
from graftwork_trainer.jobs.examples import JournalExamples
from graftwork_trainer.jobs.folders import JobFolders
from graftwork_trainer.jobs.launcher import WorkerLauncher, WorkerSettings
from graftwork_trainer.jobs.leftovers import Leftovers
from graftwork_trainer.jobs.links import TrainingLinks
from graftwork_trainer.jobs.metrics import TrainingMetrics
from graftwork_trainer.jobs.policies import PolicyRunner
from graftwork_trainer.jobs.policy_store import CanaryStore, PolicyStore
from graftwork_trainer.jobs.server_id import server_id
from graftwork_trainer.jobs.service import TrainingParts, TrainingServicer
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.jobs.supervisor import Supervisor
from graftwork_trainer.journal.journal import Journal

SERVICE = training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name

DATASETS = "datasets"  # folder in that of the training

_DATABASE_THREADS = 2


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What the operator may set."""

    workers: WorkerSettings
    check_interval_s: float  # between looks at policies and canaries


class Training:
    """TrainingService, the supervisor of its jobs, its policies and canaries.

    training = Training(...)
    training.add_to(server)
    await server.start()
    await training.start()
    ...
    await training.stop()  # while the server still answers
    training.close()
    """

    def __init__(
        self,
        settings: TrainingSettings,
        *,
        journal: Journal,
        redactor: Redactor,
        adapters: Directory,
        registry: CollectorRegistry,
        data: Path,
        base: Path,
        template_hash: str,
        methods: Collection[str],
        new_id: Callable[[], str],
    ) -> None:
        """`data` holds the jobs and the datasets (`redactor` is of these), `base` the weights that
        trainers map. `template_hash` names the base's chat template, and `methods` are PEFT's names
        of those that can be trained."""
        self._executor = ThreadPoolExecutor(_DATABASE_THREADS, "training")
        # Of the server's own machine and user: no TLS, and nobody else may open it.
        self._socket_folder = Path(tempfile.mkdtemp(prefix="graftwork-"))
        self.target = f"unix:{self._socket_folder / 'server.sock'}"
        datasets = data / DATASETS
        metrics = TrainingMetrics(registry)
        server = server_id(data)
        store = JobStore(journal.database, new_id, server=server)
        policies = PolicyStore(journal.database)
        folders = JobFolders(data / "jobs")
        launcher = WorkerLauncher(
            folders,
            settings.workers,
            server=self.target,
            base=base,
            snapshots=datasets,
            template_hash=template_hash,
            methods=methods,
        )
        self._client = AsyncClient(self.target)
        self._canaries = CanaryWatcher(
            canaries=CanaryStore(journal.database, server=server),
            jobs=store,
            adapters=adapters,
            feedback=JournalFeedback(journal),
            updates=self._client.adapters,
            count=metrics.count_canary,
            off_loop=self._off_loop,
            interval_s=settings.check_interval_s,
        )
        self._supervisor = Supervisor(
            store,
            Leftovers(
                store,
                folders,
                adapters,
                deletion=self._client.adapters,
                redact=redactor.catch_up_snapshot,
                off_loop=self._off_loop,
            ),
            launcher,
            TrainingLinks(journal, datasets),
            self._canaries,
            executor=self._executor,
            observer=metrics,
        )
        creator = JobCreator(
            store,
            Catalogue(RECIPE_FORMATS, frozenset(methods)),
            adapters,
            JournalExamples(journal, functools.partial(open_snapshot, datasets)),
            self._off_loop,
            self._supervisor.wake,
        )
        parts = TrainingParts(store, policies, self._supervisor, folders, creator)
        self._servicer = TrainingServicer(parts, self._executor)
        self._policies = PolicyRunner(policies, creator, interval_s=settings.check_interval_s)
        self._loops: list[asyncio.Task[None]] = []

    def add_to(self, server: grpc.aio.Server) -> list[str]:
        """Adds the service and the workers' own way in; returns the service's name."""
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(  # type: ignore[no-untyped-call]
            self._servicer, server
        )
        server.add_insecure_port(self.target)
        return [SERVICE]

    async def start(self) -> None:
        """Call it once the server answers."""
        await self._supervisor.start()
        self._loops = [
            asyncio.create_task(self._policies.run(), name="training policies"),
            asyncio.create_task(self._canaries.run(), name="canaries"),
        ]

    async def stop(self) -> None:
        """Ends the worker, whose job the next server goes on with."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._supervisor.stop()
        await self._client.close()

    def close(self) -> None:
        """Call it once the server is stopped."""
        self._executor.shutdown()
        shutil.rmtree(self._socket_folder, ignore_errors=True)

    async def _off_loop(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)
