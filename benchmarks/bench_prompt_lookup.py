"""What prompt look-up gains where answers repeat their prompt, and costs where they do not.

    python -m benchmarks.bench_prompt_lookup [--repeats 5] [--prompt-lookup-tokens 8]

The default model over gRPC, in one process, without a prefix cache, one stream and four at once.
`repeat`: texts word for word, greedy, so that an answer copies its prompt. `new`: explanations,
drawn at temperature 1, which say little twice. Every answer is made without and with look-up, in
turns, and must be the same. The last line is JSON, for each: tokens per second without and with;
their ratio, the median over the pairs; guesses per token; and the share of guesses that were right.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from graftwork import AsyncClient, Message
from graftwork_server.config import load_settings
from graftwork_server.scheduler import Scheduler
from graftwork_server.serve import load_base, running_server, spare_long_collections
from transformers.utils import logging as transformers_logging

from benchmarks.machine import describe_machine
from benchmarks.server_process import wait_as_served
from benchmarks.workload import NEW_TOKENS, prompts

TEXTS = [
    "The lighthouse at Marrow Point was built in 1874 by two brothers from the village. Its lamp "
    "could be seen for nineteen miles, and ships that came from the north steered by it.",
    "Bees visit flowers to gather nectar and pollen. On the way they carry pollen from one flower "
    "to the next, and so most of the fruit that we eat in summer owes its life to them.",
    "Our office moves on the third of May. Please pack your desk by Friday noon, label every box "
    "with your name and your new room, and leave screens and keyboards where they stand.",
    "A glacier begins as snow that does not melt. Year after year new snow presses down on the old "
    "until it turns to ice, and when the ice is thick enough it starts to flow downhill.",
]
STREAMS = (1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt-lookup-tokens", type=int, default=8)
    arguments = parser.parse_args()
    wait_as_served()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(
            measure_all(Path(scratch), arguments.repeats, arguments.prompt_lookup_tokens)
        )
    print(json.dumps({"machine": describe_machine(), **found}))


async def measure_all(folder: Path, repeats: int, most: int) -> dict[str, Any]:
    settings = load_settings(
        None,
        {
            "data_dir": str(folder),
            "grpc": {"port": 0},
            "metrics": {"port": 0},
            "engine": {"prefix_cache": False},
            "limits": {"max_prompt_lookup_tokens": most},
        },
    )
    base = load_base(settings)
    asked: dict[str, list[Any]] = {
        "repeat": [[Message("user", f"Repeat this text word for word.\n\n{t}")] for t in TEXTS],
        "new": prompts(base.tokenizer, len(TEXTS)),
    }
    options = {
        "repeat": {"max_tokens": NEW_TOKENS},
        "new": {"max_tokens": NEW_TOKENS, "temperature": 1.0, "seed": 7, "ignore_eos": True},
    }
    found: dict[str, Any] = {}
    async with (
        running_server(settings, base) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        spare_long_collections()
        for kind, inputs in asked.items():
            for streams in STREAMS:
                pairs = Pairs(client, server.scheduler, most, options[kind])
                await pairs.measure(inputs, streams, repeats)
                found[f"{kind}_{streams}"] = pairs.summary()
                print(f"{kind}, {streams} at once: {pairs.summary()}", flush=True)
    return found


class Pairs:
    """The same requests without and with look-up, one after the other."""

    def __init__(
        self, client: AsyncClient, scheduler: Scheduler, most: int, options: dict[str, Any]
    ) -> None:
        self._client = client
        self._scheduler = scheduler
        self._most = most
        self._options = options
        self._speeds: dict[int, list[float]] = {0: [], most: []}  # tokens per second
        self._num_tokens = 0  # with look-up
        self._num_drafted = self._num_accepted = 0

    async def measure(self, inputs: list[Any], streams: int, repeats: int) -> None:
        groups = [inputs[start : start + streams] for start in range(0, len(inputs), streams)]
        await self._generate(groups[0], self._most)  # warms up
        for repeat in range(repeats):
            for group in groups:
                # Whichever comes second finds the caches warmer.
                order = (0, self._most) if repeat % 2 else (self._most, 0)
                answers = {most: await self._timed(group, most) for most in order}
                assert answers[0] == answers[self._most], "look-up has changed an answer"

    def summary(self) -> dict[str, float]:
        before, after = self._speeds[0], self._speeds[self._most]
        ratios = [fast / slow for slow, fast in zip(before, after, strict=True)]
        return {
            "off_tokens_per_s": round(statistics.median(before), 1),
            "on_tokens_per_s": round(statistics.median(after), 1),
            "ratio": round(statistics.median(ratios), 3),
            "guesses_per_token": round(self._num_drafted / self._num_tokens, 3),
            "right_share": round(self._num_accepted / max(self._num_drafted, 1), 3),
        }

    async def _timed(self, group: list[Any], most: int) -> list[tuple[int, ...]]:
        drafted, accepted = self._scheduler.num_draft_tokens, self._scheduler.num_accepted_tokens
        started = time.perf_counter()
        answers = await self._generate(group, most)
        seconds = time.perf_counter() - started
        num_tokens = sum(map(len, answers))
        self._speeds[most].append(num_tokens / seconds)
        if most:
            self._num_tokens += num_tokens
            self._num_drafted += self._scheduler.num_draft_tokens - drafted
            self._num_accepted += self._scheduler.num_accepted_tokens - accepted
        return answers

    async def _generate(self, group: list[Any], most: int) -> list[tuple[int, ...]]:
        """All at once; their tokens."""
        answers = await asyncio.gather(
            *(
                self._client.generate(
                    prompt, store=False, prompt_lookup_tokens=most, **self._options
                )
                for prompt in group
            )
        )
        return [answer.choices[0].token_ids for answer in answers]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
