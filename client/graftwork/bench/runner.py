"""Sends requests to a server as they are due, and notes what comes back, and when."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from graftwork.aio import AsyncClient
from graftwork.bench.arrivals import AllAtOnce, Arrivals, ClosedLoop
from graftwork.bench.traffic import PlannedRequest, source_of_chance
from graftwork.errors import GraftworkError

# A caller of a closed loop whom the server refuses waits so long; otherwise one that refuses
# everything would be asked as fast as the machine can.
PAUSE_AFTER_ERROR_S = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """How much is sent, and when. Ends with `num_requests` sent or `duration_s` passed, whichever
    comes first; what runs then runs to its end. ValueError without an end."""

    arrivals: Arrivals
    num_requests: int | None = None
    duration_s: float | None = None
    seed: int = 0  # of the arrival times
    ignore_eos: bool = True  # so that answers are as long as planned
    store: bool | None = False  # whether the server may keep the answers in its journal

    def __post_init__(self) -> None:
        if self.num_requests is None and self.duration_s is None:
            raise ValueError("num_requests: wanted where there is no duration_s")
        if self.num_requests is None and isinstance(self.arrivals, AllAtOnce):
            raise ValueError("num_requests: wanted where all are sent at once")
        if self.num_requests is not None and self.num_requests < 1:
            raise ValueError(f"num_requests: must be at least 1, not {self.num_requests}")
        if self.duration_s is not None and not self.duration_s > 0:
            raise ValueError(f"duration_s: must be above 0, not {self.duration_s:g}")


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are seconds after the start of the run."""

    planned: PlannedRequest
    due_s: float  # latencies count from here, so that a generator that lags hides nothing
    sent_s: float
    message_s: list[float] = field(default_factory=list)  # each message with tokens
    end_s: float = 0.0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""  # the gRPC code, such as "RESOURCE_EXHAUSTED"; "" of a complete answer
    error_message: str = ""

    @property
    def first_token_s(self) -> float | None:
        """From when the request was due."""
        return self.message_s[0] - self.due_s if self.message_s else None

    @property
    def elapsed_s(self) -> float:
        return self.end_s - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between messages with tokens."""
        return [after - before for before, after in itertools.pairwise(self.message_s)]


@dataclass(frozen=True, slots=True)
class Run:
    outcomes: list[Outcome]
    seconds: float  # from the start to the end of the last answer


async def run_load(
    client: AsyncClient,
    load: Load,
    requests: Iterator[PlannedRequest],
    on_done: Callable[[int], None] = lambda _: None,
) -> Run:
    """`on_done` is told how many requests have ended. Errors of the server are outcomes; others
    are raised."""
    return await _Generator(client, load, requests, on_done).run()


class _Generator:
    def __init__(
        self,
        client: AsyncClient,
        load: Load,
        requests: Iterator[PlannedRequest],
        on_done: Callable[[int], None],
    ) -> None:
        self._client = client
        self._load = load
        self._requests = itertools.islice(requests, load.num_requests)
        self._on_done = on_done
        self._outcomes: list[Outcome] = []
        self._num_done = 0
        self._started = 0.0

    async def run(self) -> Run:
        arrivals = self._load.arrivals
        self._started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            if isinstance(arrivals, ClosedLoop):
                for _ in range(arrivals.concurrency):
                    group.create_task(self._ask_again_and_again())
            else:
                await self._send_when_due(
                    arrivals.due_times(source_of_chance(self._load.seed, "arrivals")), group
                )
        return Run(self._outcomes, max((one.end_s for one in self._outcomes), default=0.0))

    def _now(self) -> float:
        return time.perf_counter() - self._started

    def _is_over(self, due_s: float) -> bool:
        return self._load.duration_s is not None and due_s >= self._load.duration_s

    async def _send_when_due(self, due_times: Iterator[float], group: asyncio.TaskGroup) -> None:
        for due_s, planned in zip(due_times, self._requests, strict=False):
            if self._is_over(due_s):
                return
            await asyncio.sleep(max(due_s - self._now(), 0))
            group.create_task(self._ask(planned, due_s))

    async def _ask_again_and_again(self) -> None:
        while not self._is_over(now := self._now()):
            planned = next(self._requests, None)
            if planned is None:
                return
            if (await self._ask(planned, now)).error:
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def _ask(self, planned: PlannedRequest, due_s: float) -> Outcome:
        outcome = Outcome(planned, due_s, sent_s=self._now())
        self._outcomes.append(outcome)
        try:
            await self._stream(planned, outcome)
        except GraftworkError as error:
            outcome.error, outcome.error_message = error.code.name, error.message
        outcome.end_s = self._now()
        self._num_done += 1
        self._on_done(self._num_done)
        return outcome

    async def _stream(self, planned: PlannedRequest, outcome: Outcome) -> None:
        async with self._client.stream(
            planned.prompt,
            adapter=planned.adapter,
            max_tokens=planned.num_output_tokens,
            ignore_eos=self._load.ignore_eos,
            store=self._load.store,
        ) as deltas:
            async for delta in deltas:
                if delta.token_ids:
                    outcome.message_s.append(self._now())
                    outcome.output_tokens += len(delta.token_ids)
            usage = deltas.result.usage
        if usage is not None:
            outcome.prompt_tokens = usage.prompt_tokens
            outcome.cached_prompt_tokens = usage.cached_prompt_tokens
