"""What a job leaves behind that nobody needs once it has ended: its work folder, and the policy
that answered while it trained."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

from graftwork.errors import GraftworkError, NotFound
from graftwork_adapters.records import VersionRecord

from graftwork_trainer.jobs.creation import OffLoop
from graftwork_trainer.jobs.errors import UnknownJob
from graftwork_trainer.jobs.folders import JobFolders
from graftwork_trainer.jobs.records import JobRecord
from graftwork_trainer.jobs.store import JobStore

logger = logging.getLogger(__name__)


class EphemeralVersions(Protocol):
    """`graftwork_adapters.directory.Directory`."""

    def ephemeral_versions(self, name: str, owner: str) -> tuple[VersionRecord, ...]: ...


class VersionDeletion(Protocol):
    """`graftwork.AsyncClient.adapters`."""

    async def delete(self, selector: str) -> Any: ...


class Leftovers:
    """Lives on the event loop. Where something cannot be removed, the log says so."""

    def __init__(
        self,
        store: JobStore,
        folders: JobFolders,
        versions: EphemeralVersions,
        *,
        deletion: VersionDeletion,
        redact: Callable[[str], None],
        off_loop: OffLoop,
    ) -> None:
        """`redact` takes what was deleted meanwhile out of a job's snapshot
        (`datasets.redaction.Redactor.catch_up_snapshot`)."""
        self._redact = redact
        self._store = store
        self._folders = folders
        self._versions = versions
        self._deletion = deletion
        self._off_loop = off_loop

    async def clear(self, job: JobRecord) -> None:
        """Of a job that this server will not go on with. Raises WireError."""
        for version in self._versions.ephemeral_versions(job.spec.adapter, job.id):
            try:
                await self._deletion.delete(version.selector)
            except NotFound:  # it went meanwhile
                pass
            except GraftworkError as error:
                logger.warning("%s stays until the server restarts: %s", version.selector, error)
        await self._clear_folder(job.id)
        if snapshot := (await self._off_loop(self._store.get, job.id)).snapshot:
            await self._off_loop(self._redact, snapshot)

    async def sweep(self) -> None:
        """Of all jobs that have ended while this server could not clear up. Raises WireError."""
        for job_id in await self._off_loop(self._folders.with_work):
            try:
                job: JobRecord = await self._off_loop(self._store.get, job_id)
            except UnknownJob:  # of a journal that is not this one
                continue
            if job.state.is_final:
                await self._clear_folder(job_id)

    async def _clear_folder(self, job_id: str) -> None:
        try:
            await self._off_loop(self._folders.clear, job_id)
        except OSError as error:
            logger.warning("the work folder of training job %s stays: %s", job_id, error)
