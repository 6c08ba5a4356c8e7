"""Starts workers: writes what they need to know to the job's folder, and spawns them."""

import asyncio
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from google.protobuf import json_format
from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.durable import write_file

from graftwork_trainer.jobs.folders import JOB_FILE, WORK, JobFolders
from graftwork_trainer.jobs.outcome import Limits
from graftwork_trainer.jobs.priority import Scheduling
from graftwork_trainer.jobs.process import COMMAND, LOG_FILE, WorkerProcess
from graftwork_trainer.jobs.records import JobRecord
from graftwork_trainer.jobs.validate import parse_limits

_MAX_LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How workers run."""

    threads: int
    niceness: int
    scheduling: Scheduling
    max_duration_s: float  # of any job


@dataclass(frozen=True, slots=True)
class JobOrder:
    """job.json: what a worker is given."""

    job_id: str
    spec: pb.TrainingJobSpec
    server: str  # target of the server's public API
    server_pid: int
    base: str  # folder or file of the packed base
    snapshots: str  # folder
    threads: int
    niceness: int
    scheduling: Scheduling
    template_hash: str  # of the base's chat template
    methods: tuple[str, ...]  # that the server takes

    def write(self, path: Path) -> None:
        spec = json_format.MessageToDict(self.spec, preserving_proto_field_name=True)
        value = {field.name: getattr(self, field.name) for field in fields(self)} | {"spec": spec}
        write_file(path, json.dumps(value, indent=2).encode())

    @classmethod
    def read(cls, path: Path) -> "JobOrder":
        value = json.loads(path.read_text(encoding="utf-8"))
        spec = json_format.ParseDict(value.pop("spec"), pb.TrainingJobSpec())
        return cls(spec=spec, methods=tuple(value.pop("methods")), **value)


class WorkerLauncher:
    """Fits `Supervisor`'s WorkerStarter."""

    def __init__(
        self,
        folders: JobFolders,
        settings: WorkerSettings,
        *,
        server: str,
        base: Path,
        snapshots: Path,
        template_hash: str,
        methods: Collection[str],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._folders = folders
        self._settings = settings
        self._server = server
        self._base = base
        self._snapshots = snapshots
        self._template_hash = template_hash
        self._methods = tuple(sorted(methods))
        self._command = command

    def limits(self, job: JobRecord) -> Limits:
        wanted = parse_limits(job.spec.limits, "spec.limits")
        return Limits(
            max_duration_s=min(wanted.max_duration_s, self._settings.max_duration_s),
            max_memory_bytes=wanted.max_memory_bytes,
            max_retries=wanted.max_retries,
        )

    async def start(self, job: JobRecord) -> WorkerProcess:
        folder = self._folders.of(job.id)
        await asyncio.to_thread(self._prepare, folder, job)
        return await WorkerProcess.start(
            [str(folder)],
            folder / LOG_FILE,
            command=self._command,
            environment=self._environment(),
            max_log_bytes=_MAX_LOG_BYTES,
        )

    def _prepare(self, folder: Path, job: JobRecord) -> None:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        JobOrder(
            job_id=job.id,
            spec=job.spec,
            server=self._server,
            server_pid=os.getpid(),
            base=str(self._base),
            snapshots=str(self._snapshots),
            template_hash=self._template_hash,
            threads=self._settings.threads,
            niceness=self._settings.niceness,
            scheduling=self._settings.scheduling,
            methods=self._methods,
        ).write(folder / JOB_FILE)

    def _environment(self) -> dict[str, str]:
        """Libraries read these when they are imported."""
        threads = str(self._settings.threads)
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
            # What one step frees, the next one takes again: kept, it needs no new pages.
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(2**34),
        }
