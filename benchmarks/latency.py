"""Streams against a running server, and the gaps between their tokens."""

import asyncio
import time
from dataclasses import dataclass, field

from graftwork import AsyncClient

STREAM_TOKENS = 64


@dataclass(slots=True)
class Gaps:
    """Between two deltas of a stream, in milliseconds."""

    gaps_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.gaps_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def add(self, other: "Gaps") -> None:
        self.gaps_ms += other.gaps_ms
        self.tokens += other.tokens
        self.seconds += other.seconds


async def measure_gaps(client: AsyncClient, *, streams: int, seconds: float) -> Gaps:
    """`streams` at once, each after the other's end, of the plain base; greedy."""
    found = Gaps()
    started = time.perf_counter()

    async def one(row: int) -> None:
        turn = 0
        while time.perf_counter() - started < seconds:
            turn += 1
            prompt = f"Story {row}, part {turn}: once upon a time"
            last: float | None = None
            async with client.stream(
                prompt, max_tokens=STREAM_TOKENS, ignore_eos=True, store=False
            ) as deltas:
                async for delta in deltas:
                    now = time.perf_counter()
                    if last is not None:
                        found.gaps_ms.append((now - last) * 1e3)
                    last = now
                    found.tokens += len(delta.token_ids)

    await asyncio.gather(*(one(row) for row in range(streams)))
    found.seconds = time.perf_counter() - started
    return found
