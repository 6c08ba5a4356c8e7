"""The engine: one thread that drains commands, schedules, runs, updates and publishes.

What it does not know: gRPC, tokenizers, text, names of adapters, methods of adapters.
"""

import logging
import threading
import time
from collections.abc import Callable

import torch
from graftwork.status import WireError

from graftwork_server.commands import CommandQueue
from graftwork_server.errors import InternalError, SamplingFailed
from graftwork_server.events import Event, FailedEvent, is_final
from graftwork_server.metrics import Metrics
from graftwork_server.plan import StepPlan, StepResult
from graftwork_server.request import FinishReason, Sequence
from graftwork_server.residency import Tiers
from graftwork_server.runner import Runner
from graftwork_server.scheduler import Scheduler

logger = logging.getLogger(__name__)

# Sequences that wait for a load or for memory are looked at this often for passed deadlines.
IDLE_WAIT_S = 0.02

Publish = Callable[[list[Event]], None]
OnDeath = Callable[[WireError], None]


class Engine:
    """Runs steps while there is work. `add`, `abort` and `stop` may be called from any thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tiers: Tiers,
        commands: CommandQueue,
        metrics: Metrics,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._tiers = tiers
        self._commands = commands
        self._metrics = metrics
        self._publish: Publish | None = None
        self._on_death: OnDeath | None = None
        self._sequences: dict[int, Sequence] = {}
        self._outbox: list[Event] = []  # events of commands, published with the step's
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._num_threads = 1
        self._stopping = False
        self._reported = (0, 0, 0, 0, 0)  # counts of the scheduler that the metrics know

    def start(self, publish: Publish, on_death: OnDeath, *, threads: int) -> None:
        """Starts the thread, whose kernels use `threads` cores; `publish` is called on it, once a
        step, and `on_death` if a defect ends it: nothing is computed afterwards."""
        self._publish = publish
        self._on_death = on_death
        self._num_threads = threads
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step in progress; what is unfinished stays so."""
        self._commands.post(self._set_stopping)
        self._thread.join()

    def add(self, sequences: list[Sequence]) -> None:
        self._commands.post(lambda: self._add(sequences))

    def abort(self, sequence_id: int) -> None:
        """Frees a sequence's memory at the next step; unknown and finished ones are ignored."""
        self._commands.post(lambda: self._abort(sequence_id))

    def step(self) -> bool:
        """One step; False where there was nothing to run."""
        now = time.monotonic()
        self._tiers.update(self._fail_adapter)
        self._outbox += self._scheduler.expire(now)
        plan = self._scheduler.schedule(now)
        if plan is not None:
            result = self._execute(plan)
            if result is not None:
                self._fail_unsampled(result)
                self._outbox += self._scheduler.update(plan, result)
                self._metrics.observe_step(time.monotonic() - now, plan.num_tokens)
        self._publish_outbox()
        self._report()
        return plan is not None

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # of the kernels that this thread calls
        try:
            self._run_steps()
        except Exception:
            # Accounting that contradicts itself cannot be trusted with another step.
            failure = InternalError()
            logger.critical(
                "incident %s: the engine has died", failure.metadata["incident"], exc_info=True
            )
            if self._on_death is not None:
                self._on_death(failure)

    def _run_steps(self) -> None:
        waited: float | None = None
        while True:
            self._commands.run_all(waited)
            if self._stopping:
                return
            idle_wait = IDLE_WAIT_S if self._sequences else None
            waited = 0.0 if self.step() else idle_wait

    def _execute(self, plan: StepPlan) -> StepResult | None:
        """Runs a plan. A failure ends the plan's sequences and nothing else."""
        try:
            return self._runner.execute(plan, self._sequences)
        except Exception:  # whatever a step raises, the engine goes on
            failure = InternalError()
            incident = failure.metadata["incident"]
            logger.exception("incident %s: a step of %d failed", incident, len(plan.sequences))
            for scheduled in plan.sequences:
                self._fail(scheduled.sequence_id, failure)
            return None

    def _fail_unsampled(self, result: StepResult) -> None:
        for sampled in result.sampled:
            if sampled.error is not None:
                self._fail(sampled.sequence_id, SamplingFailed(sampled.error))

    def _add(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.arrival_time = time.monotonic()
            self._sequences[sequence.sequence_id] = sequence
        try:
            self._scheduler.add(*sequences)
        except WireError as error:
            self._outbox += [FailedEvent(s.sequence_id, error) for s in sequences]

    def _abort(self, sequence_id: int) -> None:
        if sequence_id in self._sequences:
            self._outbox += self._scheduler.abort(sequence_id, FinishReason.CANCELLED)

    def _fail(self, sequence_id: int, error: WireError) -> None:
        self._scheduler.abort(sequence_id, FinishReason.FAILED)
        self._outbox.append(FailedEvent(sequence_id, error))

    def _fail_adapter(self, digest: str, error: WireError) -> None:
        """Ends the sequences that wait for a version that cannot be loaded."""
        for event in self._scheduler.abort_waiting(digest):
            self._outbox.append(FailedEvent(event.sequence_id, error))

    def _publish_outbox(self) -> None:
        events, self._outbox = self._outbox, []
        for event in events:
            if is_final(event) and self._sequences.pop(event.sequence_id, None) is not None:
                self._runner.forget(event.sequence_id)
        if events and self._publish is not None:
            self._publish(events)

    def _report(self) -> None:
        scheduler = self._scheduler
        self._metrics.set_load(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_cache_usage=scheduler.kv_cache_usage,
        )
        counts = (
            scheduler.blocks.num_query_tokens,
            scheduler.blocks.num_hit_tokens,
            scheduler.num_preemptions,
            scheduler.num_draft_tokens,
            scheduler.num_accepted_tokens,
        )
        queried, hit, preempted, drafted, accepted = (
            new - old for new, old in zip(counts, self._reported, strict=True)
        )
        self._reported = counts
        self._metrics.observe_prefix_cache(queried_tokens=queried, hit_tokens=hit)
        self._metrics.count_preemptions(preempted)
        self._metrics.observe_drafts(drafted_tokens=drafted, accepted_tokens=accepted)

    def _set_stopping(self) -> None:
        self._stopping = True
