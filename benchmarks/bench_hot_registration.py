"""Registers a rank-16 adapter while 16 streams run: how long they stall, how soon it answers.

    python -m benchmarks.bench_hot_registration [--repeats 3]

The last line is JSON: `median_gap_ms` and `largest_gap_ms` between two tokens of a stream,
`stall_ms` (their difference), `register_ms`, `first_answer_ms` (from the request to the first token
of the new adapter), and whether the base's digest is the same.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from graftwork import AsyncClient
from graftwork_server.config import load_settings
from graftwork_server.default_model import ensure_default_model
from graftwork_server.serve import load_base, running_server, spare_long_collections
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.server_process import wait_as_served
from benchmarks.workload import NUM_REQUESTS, prompts, save_lora_adapters

STREAM_TOKENS = 192


@dataclass(slots=True)
class Measured:
    gaps_ms: list[float] = field(default_factory=list)
    register_ms: list[float] = field(default_factory=list)
    first_answer_ms: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    wait_as_served()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = AutoModelForCausalLM.from_pretrained(ensure_default_model(), dtype=torch.float32)
        adapters = save_lora_adapters(model, folder, NUM_REQUESTS + repeats)
        del model
        print(json.dumps(asyncio.run(measure(folder, adapters, repeats))))


async def measure(folder: Path, adapters: list[Path], repeats: int) -> dict[str, object]:
    settings = load_settings(
        None,
        {
            "data_dir": str(folder / "data"),
            "grpc": {"port": 0},
            "metrics": {"port": 0},
            "adapters": {"roots": [str(folder)]},
        },
    )
    base = load_base(settings)
    token_ids = prompts(base.tokenizer)
    measured = Measured()
    async with (
        running_server(settings, base) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        spare_long_collections()
        for index in range(NUM_REQUESTS):
            await client.adapters.create(f"a{index}", str(adapters[index]))
            await client.adapters.load(f"a{index}")
        for repeat in range(repeats):
            await one_round(client, token_ids, f"new{repeat}", adapters[-1 - repeat], measured)
        model = await client.model()
    median, largest = statistics.median(measured.gaps_ms), max(measured.gaps_ms)
    return {
        "median_gap_ms": round(median, 1),
        "largest_gap_ms": round(largest, 1),
        "stall_ms": round(largest - median, 1),
        "register_ms": round(statistics.median(measured.register_ms), 1),
        "first_answer_ms": round(statistics.median(measured.first_answer_ms), 1),
        "digest_unchanged": model.digest == base.compute_digest(),
    }


async def one_round(
    client: AsyncClient, token_ids: list[list[int]], name: str, folder: Path, measured: Measured
) -> None:
    all_stream = asyncio.Event()
    num_streaming = 0
    all_stream_since: float | None = None  # a gap that began earlier may hold another's prefill

    async def stream(row: int) -> None:
        nonlocal num_streaming, all_stream_since
        last: float | None = None
        options = {"max_tokens": STREAM_TOKENS, "ignore_eos": True, "adapter": f"a{row}"}
        async with client.stream(token_ids[row], **options) as deltas:
            async for _ in deltas:
                now = time.perf_counter()
                if last is None:
                    num_streaming += 1
                    if num_streaming == len(token_ids):
                        all_stream_since = now
                        all_stream.set()
                elif all_stream_since is not None and last >= all_stream_since:
                    measured.gaps_ms.append((now - last) * 1e3)
                last = now

    streams = [asyncio.create_task(stream(row)) for row in range(len(token_ids))]
    await all_stream.wait()
    await asyncio.sleep(0.3)
    started = time.perf_counter()
    await client.adapters.create(name, str(folder))
    registered = time.perf_counter()
    async with client.stream(token_ids[0], adapter=name, max_tokens=4) as deltas:
        await anext(aiter(deltas))
    answered = time.perf_counter()
    assert not any(task.done() for task in streams), "the streams were over too soon"
    measured.register_ms.append((registered - started) * 1e3)
    measured.first_answer_ms.append((answered - registered) * 1e3)
    await asyncio.gather(*streams)


if __name__ == "__main__":
    main()
