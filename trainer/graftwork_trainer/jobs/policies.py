"""Starts the jobs of training policies. `triggers.py` decides when."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

from graftwork.status import WireError
from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.errors import NoLiveVersion, UnknownAdapter
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.selector import Selector

from graftwork_trainer.jobs.creation import JobCreator
from graftwork_trainer.jobs.policy_store import PolicyStore
from graftwork_trainer.jobs.records import PolicyRecord
from graftwork_trainer.jobs.triggers import PolicySituation, is_due, next_spec
from graftwork_trainer.jobs.validate import parse_dataset

logger = logging.getLogger(__name__)

_NAMESPACE = uuid.UUID("5d3c7f0e-8a55-4bb5-9c39-6f1f5c1f3a60")


class PolicyRunner:
    """Looks at every policy each `interval_s`. Lives on the event loop."""

    def __init__(
        self,
        policies: PolicyStore,
        creator: JobCreator,
        *,
        interval_s: float,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._policies = policies
        self._creator = creator
        self._interval_s = interval_s
        self._clock_ns = clock_ns
        self._complaints: dict[str, str] = {}  # what was last logged of each policy

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.tick()
            except WireError as error:  # the database does not answer now
                logger.warning("training policies wait: %s", error)
            except Exception:
                logger.exception("training policies wait: a defect")
            # Where counting is slow, it is done seldom.
            await asyncio.sleep(max(self._interval_s, 10 * (time.monotonic() - began)))

    async def tick(self) -> None:
        """Starts what is due now."""
        for policy in await self._creator.off_loop(self._policies.active):
            try:
                if await self._is_due(policy):
                    await self._start(policy)
                self._complaints.pop(policy.name, None)
            except WireError as error:
                if self._complaints.get(policy.name) != error.message:
                    logger.warning("training policy %s starts nothing: %s", policy.name, error)
                self._complaints[policy.name] = error.message

    async def _is_due(self, policy: PolicyRecord) -> bool:
        creator = self._creator
        formats = creator.catalogue.formats_of(policy.spec.recipe)
        dataset = parse_dataset(policy.spec.dataset, formats, "policy.spec.dataset")
        if dataset.settings is None:
            return False
        selection = dataset.settings.selection
        situation = PolicySituation(
            active_jobs=await creator.off_loop(creator.store.active_jobs_of, policy.name),
            new_feedback=await creator.off_loop(creator.examples.count_feedback, selection),
            now_ns=self._clock_ns(),
        )
        return is_due(policy, situation)

    async def _start(self, policy: PolicyRecord) -> None:
        """A crash between the two writes repeats the first one under the same request id, which
        finds the job that is there."""
        key = f"{policy.name}/{policy.create_time_ns}/{policy.last_start_time_ns}"
        request = MutationRequest(str(uuid.uuid5(_NAMESPACE, key)), "")
        spec = self._spec_now(policy.spec)
        job = await self._creator.create(spec, policy=policy.name, request=request)
        began_ns = job.spec.dataset.selection.before.ToNanoseconds()
        # As it is now: someone may have changed it meanwhile.
        policy = await self._creator.off_loop(self._policies.get, policy.name)
        await self._creator.off_loop(
            self._policies.started, policy.name, job.id, next_spec(policy, began_ns)
        )
        logger.info("training policy %s started job %s", policy.name, job.id)

    def _spec_now(self, spec: pb.TrainingJobSpec) -> pb.TrainingJobSpec:
        """Without the version to go on from where that is the live one of the job's own adapter and
        there is none yet: so the first job of a policy that builds on itself begins anew."""
        if spec.initial_version != spec.adapter:
            return spec
        try:
            self._creator.adapters.lookup(Selector(spec.adapter))
        except (NoLiveVersion, UnknownAdapter):
            anew = pb.TrainingJobSpec()
            anew.CopyFrom(spec)
            anew.initial_version = ""
            return anew
        return spec
