"""Watches canaries: gives one its share of the traffic, and makes it live or takes the share away
by live feedback.

`evaluation/canary.py` decides; requests of one episode stay on one version until it has.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from graftwork.errors import GraftworkError
from graftwork.status import WireError
from graftwork_adapters.directory import Directory
from graftwork_adapters.errors import UnknownAdapter
from graftwork_adapters.records import AdapterRecord

from graftwork_trainer.datasets.judged import Judged
from graftwork_trainer.evaluation.canary import CanarySpec, CanaryVerdict, canary_verdict
from graftwork_trainer.jobs.canary_feedback import tally
from graftwork_trainer.jobs.creation import OffLoop
from graftwork_trainer.jobs.policy_store import CanaryStore
from graftwork_trainer.jobs.records import CanaryDraft, CanaryRecord, JobRecord
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.journal.export import judged
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.records import FeedbackFilter, Origin

logger = logging.getLogger(__name__)

_NAMESPACE = uuid.UUID("c1b7a0a1-90e5-4e61-8f67-3a4b8d1d2f10")


class AdapterUpdates(Protocol):
    """`graftwork.AsyncClient.adapters`: canaries are moved as anyone would move them."""

    async def update(
        self,
        name: str,
        *,
        live_version: int | None = None,
        traffic_split: Mapping[int, int] | None = None,
        request_id: str | None = None,
    ) -> Any: ...


class LiveFeedback(Protocol):
    def since(self, start_ns: int) -> Iterable[Judged]:
        """Feedback on generations of users that came since then. Waits for the disk."""


class JournalFeedback:
    """Fits LiveFeedback."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def since(self, start_ns: int) -> Iterable[Judged]:
        return judged(self._journal, FeedbackFilter(after_ns=start_ns), (Origin.USER,))


class CanaryWatcher:
    """Looks at every canary each `interval_s`. Lives on the event loop."""

    def __init__(
        self,
        *,
        canaries: CanaryStore,
        jobs: JobStore,
        adapters: Directory,
        feedback: LiveFeedback,
        updates: AdapterUpdates,
        count: Callable[[str], None],
        off_loop: OffLoop,
        interval_s: float,
    ) -> None:
        """`count` gets "promote" or "rollback" of each canary that was judged."""
        self._canaries = canaries
        self._jobs = jobs
        self._adapters = adapters
        self._feedback = feedback
        self._updates = updates
        self._count = count
        self._off_loop = off_loop
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.tick()
            except (WireError, GraftworkError) as error:
                logger.warning("canaries wait: %s", error)
            except Exception:
                logger.exception("canaries wait: a defect")
            # Where reading is slow, it is done seldom.
            await asyncio.sleep(max(self._interval_s, 10 * (time.monotonic() - began)))

    async def begin(self, record: CanaryRecord) -> None:
        """Shares the traffic of a job that has not ended. The same again changes nothing.

        What is to be watched is on the disk before: whenever the process dies, no canary serves
        that nobody watches. Raises WireError, GraftworkError.
        """
        await self._off_loop(self._canaries.begin, record)
        draft = record.draft
        await self._updates.update(
            draft.adapter,
            live_version=draft.incumbent,
            traffic_split={
                draft.incumbent: 100 - draft.percent,
                draft.version: draft.percent,
            },
            request_id=str(uuid.uuid5(_NAMESPACE, f"{record.job_id}/share")),
        )

    async def tick(self) -> None:
        for record in await self._off_loop(self._canaries.waiting):
            await self._look_at(record)

    async def _look_at(self, record: CanaryRecord) -> None:
        draft = record.draft
        if not self._is_on(draft):
            job: JobRecord = await self._off_loop(self._jobs.get, record.job_id)
            if not job.state.is_final:
                return  # its traffic is shared next, by this server or by the one after it
            await self._end(record, f"{_name(draft)} is no canary any more: its traffic was moved")
            return
        on_canary, on_incumbent = await self._off_loop(self._tally, draft)
        decision = canary_verdict(
            on_incumbent.good,
            on_incumbent.bad,
            on_canary.good,
            on_canary.bad,
            CanarySpec(draft.feedback, draft.tolerance),
        )
        if decision.verdict is CanaryVerdict.WAIT or not self._is_on(draft):
            return
        goes_live = decision.verdict is CanaryVerdict.PROMOTE
        await self._updates.update(
            draft.adapter,
            live_version=draft.version if goes_live else draft.incumbent,
            traffic_split={},
            request_id=str(uuid.uuid5(_NAMESPACE, f"{record.job_id}/{decision.verdict.value}")),
        )
        self._count(decision.verdict.value)
        done = "went live" if goes_live else "was rolled back"
        await self._end(record, f"canary {_name(draft)} {done}: {decision.reason}")

    def _is_on(self, draft: CanaryDraft) -> bool:
        """Whether the traffic is still shared as the job left it."""
        try:
            adapter: AdapterRecord = self._adapters.get_adapter(draft.adapter)
        except UnknownAdapter:
            return False
        shared = {share.version for share in adapter.traffic_split}
        return adapter.live_version == draft.incumbent and shared == {
            draft.version,
            draft.incumbent,
        }

    def _tally(self, draft: CanaryDraft) -> Any:
        return tally(
            self._feedback.since(draft.start_time_ns),
            draft.adapter,
            canary=draft.version,
            incumbent=draft.incumbent,
        )

    async def _end(self, record: CanaryRecord, message: str) -> None:
        logger.info("%s", message)
        await self._off_loop(self._jobs.note, record.job_id, message)
        await self._off_loop(self._canaries.end, record)


def _name(draft: CanaryDraft) -> str:
    return f"{draft.adapter}@{draft.version}"
