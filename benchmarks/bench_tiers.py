"""What holding more adapters than fit costs: Zipf traffic, a cold adapter's first token, a start.

    python -m benchmarks.bench_tiers [--adapters 1000] [--slots 64] [--repeats 3] [--output FOLDER]

1. Tokens per second of 16 callers over rank-8 LoRAs on q and v, popular by Zipf's law (exponent 1),
   with `--slots` device slots against a slot for each; two servers, measured in turns.
2. Time to first token of a rank-16 LoRA on all linear layers: cold (on disk only, its files dropped
   from the page cache where the system allows) minus warm, medians.
3. Seconds from the start of `graftwork serve` to its first answer, caches warm.

The last line is JSON; with --output it is written there, too, with a plot.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from graftwork import AsyncClient
from graftwork.bench import Zipf
from graftwork.types import Residency
from graftwork_server.default_model import ensure_default_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.load import measure
from benchmarks.machine import describe_machine, save_plot
from benchmarks.server_process import ready, running_process
from benchmarks.soak import CONCURRENCY, ZIPF_EXPONENT, save_adapters
from benchmarks.workload import save_lora_adapters

NUM_COLD = 5
PROMPT_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--requests", type=int, default=300, help="in each measurement of 1.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="for the figures and a plot")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = asyncio.run(measure_all(folder, arguments))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "tiers.json").write_text(json.dumps(result, indent=1))
        save_plot(
            arguments.output / "tiers.png",
            list(range(arguments.repeats)),
            {
                f"tokens/s, {arguments.slots} slots": result["zipf"]["few_slots_tokens_per_s"],
                "tokens/s, all resident": result["zipf"]["all_resident_tokens_per_s"],
            },
            x_label="repeat",
        )
    print(json.dumps(result))


async def measure_all(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": describe_machine()}
    result["start_to_ready_s"] = await measure_start(folder, arguments.repeats)
    print(result, flush=True)
    result["cold"] = await measure_cold(folder)
    print(result["cold"], flush=True)
    result["zipf"] = await measure_zipf(folder, arguments)
    return result


async def measure_start(folder: Path, repeats: int) -> float:
    """The first start converts and kernels are compiled: it warms the caches up."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        with running_process(folder / "start") as server:
            async with AsyncClient(server.target) as client:
                await ready(client)
                seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds[1:]), 2)


async def measure_cold(folder: Path) -> dict[str, float]:
    model = AutoModelForCausalLM.from_pretrained(ensure_default_model(), dtype=torch.float32)
    adapters = save_lora_adapters(model, folder / "cold", NUM_COLD + 1)
    del model
    cold, warm = [], []
    async with serving(folder, "cold-data") as client:
        for index, adapter in enumerate(adapters):
            name = f"cold-{index}"
            await client.adapters.create(name, str(adapter))
            await first_token_ms(client, name, seed=index)
            await client.adapters.unload(name)
            await unloaded(client, name)
            drop_cached_pages(folder / "cold-data")
            cold.append(await first_token_ms(client, name, seed=100 + index))
            warm.append(await first_token_ms(client, name, seed=200 + index))
    # The first of them warms the server up.
    cold_ms, warm_ms = statistics.median(cold[1:]), statistics.median(warm[1:])
    return {
        "cold_ms": round(cold_ms, 1),
        "warm_ms": round(warm_ms, 1),
        "cold_minus_warm_ms": round(cold_ms - warm_ms, 1),
    }


async def unloaded(client: AsyncClient, adapter: str) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(30):
        while (await client.adapters.get_version(adapter)).residency is not Residency.DISK:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def first_token_ms(client: AsyncClient, adapter: str, *, seed: int) -> float:
    report = await measure(
        client, [adapter], num_requests=1, prompt_tokens=PROMPT_TOKENS, output_tokens=1, seed=seed
    )
    assert report.ttft_ms is not None
    return report.ttft_ms.mean


def drop_cached_pages(folder: Path) -> None:
    """So that weights are read from the disk; files are synced when they are registered."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def measure_zipf(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    adapters = save_adapters(folder / "zipf", arguments.adapters)
    names = [f"adapter-{index}" for index in range(len(adapters))]
    runs: dict[str, list[float]] = {"few": [], "all": []}
    async with (
        serving(folder, "few", slots=arguments.slots) as few,
        serving(folder, "all", slots=len(adapters), host_cache="8GiB") as resident,
    ):
        for client in (few, resident):
            for name, adapter in zip(names, adapters, strict=True):
                await client.adapters.create(name, str(adapter))
        for name in names:
            await resident.adapters.load(name)
        print(f"{len(names)} adapters registered, and resident in one of two servers", flush=True)
        for repeat in range(arguments.repeats + 1):
            for kind, client in (("few", few), ("all", resident)):
                report = await measure(
                    client,
                    names,
                    popularity=Zipf(ZIPF_EXPONENT),
                    num_requests=arguments.requests,
                    concurrency=CONCURRENCY,
                    prompt_tokens=PROMPT_TOKENS,
                    seed=repeat,
                )
                if repeat:  # the first warms up
                    runs[kind].append(round(report.output_tokens_per_s, 1))
                    print(f"{kind} {runs[kind][-1]} tok/s, TTFT {report.ttft_ms}", flush=True)
    ratios = [one / other for one, other in zip(runs["few"], runs["all"], strict=True)]
    return {
        "adapters": len(adapters),
        "slots": arguments.slots,
        "few_slots_tokens_per_s": runs["few"],
        "all_resident_tokens_per_s": runs["all"],
        "ratio": round(statistics.median(ratios), 3),
    }


@contextlib.asynccontextmanager
async def serving(
    folder: Path, name: str, *, slots: int = 64, host_cache: str = "1GiB"
) -> AsyncIterator[AsyncClient]:
    """A server with the defaults of settings.py but for its slots and their memory."""
    options = [
        *("--adapter-root", str(folder), "--adapters-device-slots", str(slots)),
        *("--adapters-host-cache-bytes", host_cache),
    ]
    with running_process(folder / name, *options) as server:
        async with AsyncClient(server.target) as client:
            await ready(client)
            yield client


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
