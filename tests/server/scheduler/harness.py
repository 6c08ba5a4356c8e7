"""An engine in miniature around a scheduler: loads and places wanted adapters, steps, and keeps the
events. Times in seconds; each step takes one."""

from graftwork_server.events import Event, FinishedEvent, PromptLogprobsEvent, TokenEvent
from graftwork_server.limits import SchedulerConfig
from graftwork_server.plan import StepPlan
from graftwork_server.request import FinishReason, SamplingParams, Sequence
from graftwork_server.scheduler import Scheduler
from graftwork_server.slots import SlotsUnavailableError

from tests.server.fakes import FakeRunner, expected_output


def make_config(**changes: int | float | None) -> SchedulerConfig:
    values: dict[str, int | float | None] = {
        "max_num_sequences": 8,
        "max_tokens_per_step": 64,
        "block_size": 4,
        "num_blocks": 64,
        "max_context": 128,
        "max_queued": 1000,
        "max_slots": 2,
    }
    return SchedulerConfig(**{**values, **changes})  # type: ignore[arg-type]


class Harness:
    def __init__(self, config: SchedulerConfig, load_steps: int = 0) -> None:
        self.scheduler = Scheduler(config)
        self.sequences: dict[int, Sequence] = {}
        self.slot_contents: dict[int, str] = {}
        self.runner = FakeRunner(self.sequences, self.slot_contents, config.block_size)
        self.events: list[Event] = []
        self.plans: list[StepPlan] = []
        self.now = 0.0
        self.sizes: dict[str, int] = {}  # bytes by digest, 1 where not given
        self._load_steps = load_steps
        self._host: dict[str, float] = {}  # digest -> when it is in host memory

    def make(self, prompt: tuple[int, ...] = (1, 2, 3), **fields: object) -> Sequence:
        sampling = SamplingParams(seed=0, prompt_logprobs=fields.pop("prompt_logprobs", None))  # type: ignore[arg-type]
        fields.setdefault("max_tokens", 4)
        fields.setdefault("arrival_time", self.now)
        sequence = Sequence(
            sequence_id=len(self.sequences),
            prompt_token_ids=tuple(prompt),
            sampling=sampling,
            **fields,  # type: ignore[arg-type]
        )
        self.sequences[sequence.sequence_id] = sequence
        return sequence

    def add(self, prompt: tuple[int, ...] = (1, 2, 3), **fields: object) -> Sequence:
        sequence = self.make(prompt, **fields)
        self.scheduler.add(sequence)
        return sequence

    def place_wanted(self) -> None:
        for digest in self.scheduler.wanted_digests():
            if self._host.setdefault(digest, self.now + self._load_steps) > self.now:
                continue
            try:
                placement = self.scheduler.slots.place(digest, self.sizes.get(digest, 1))
            except SlotsUnavailableError:
                self.events += self.scheduler.abort_waiting(digest)
                continue
            if placement is None:
                break
            for evicted in placement.evicted:
                assert self.slot_contents.pop(evicted.slot) == evicted.digest
            assert placement.slot not in self.slot_contents
            self.slot_contents[placement.slot] = digest

    def step(self, abort_midway: int | None = None) -> StepPlan | None:
        """One step of the engine; `abort_midway` is aborted while the runner runs."""
        self.place_wanted()
        self.events += self.scheduler.expire(self.now)
        plan = self.scheduler.schedule(self.now)
        if plan is not None:
            assert plan.num_tokens <= self.scheduler.config.max_tokens_per_step
            self.plans.append(plan)
            result = self.runner.run(plan)
            if abort_midway is not None:
                self.events += self.scheduler.abort(abort_midway)
            self.events += self.scheduler.update(plan, result)
        self.now += 1.0
        return plan

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.num_running and not self.scheduler.num_waiting

    def drain(self, max_steps: int = 1000) -> int:
        """Steps until idle; returns how many steps that took."""
        for taken in range(max_steps):
            if self.is_idle:
                self.scheduler.check_integrity()
                return taken
            self.step()
        raise AssertionError(f"not idle after {max_steps} steps")

    def outputs(self, sequence: Sequence) -> list[int]:
        found = (event for event in self.events if isinstance(event, TokenEvent))
        return [event.token_id for event in found if event.sequence_id == sequence.sequence_id]

    def finished(self, sequence: Sequence) -> FinishedEvent:
        (event,) = (
            event
            for event in self.events
            if isinstance(event, FinishedEvent) and event.sequence_id == sequence.sequence_id
        )
        return event

    def prompt_positions(self, sequence: Sequence) -> list[int]:
        """Positions of the prompt log-probabilities that came, in order."""
        return [
            -int(logprob.logprob or 0)
            for event in self.events
            if isinstance(event, PromptLogprobsEvent) and event.sequence_id == sequence.sequence_id
            for logprob in event.logprobs
        ]

    def check(self, sequence: Sequence) -> None:
        """That a sequence finished with what the fake defines, told in consistent events."""
        output, reason = expected_output(sequence, self.scheduler.config.max_context)
        event = self.finished(sequence)
        assert event.reason is sequence.finish_reason
        assert self.outputs(sequence) == sequence.output_token_ids
        assert event.num_output_tokens == len(sequence.output_token_ids)
        assert not sequence.block_ids
        assert sequence.slot is None
        prompt_positions = self.prompt_positions(sequence)
        if event.reason in (FinishReason.CANCELLED, FinishReason.FAILED):
            assert sequence.output_token_ids == output[: len(sequence.output_token_ids)]
            assert prompt_positions == list(range(1, len(prompt_positions) + 1))
            return
        assert sequence.output_token_ids == output
        assert event.reason is reason
        if sequence.sampling.prompt_logprobs is not None:
            assert prompt_positions == list(range(1, len(sequence.prompt_token_ids)))
            assert event.num_cached_tokens == 0
