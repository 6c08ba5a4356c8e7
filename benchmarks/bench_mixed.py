"""Sixteen requests at once, each with its own LoRA: Graftwork over gRPC against its own base-only
figure and against PEFT's mixed batch, medians.

    python -m benchmarks.bench_mixed [--repeats 3]

Rank-16 LoRAs on all linear layers of the default model, about 57 prompt and 64 new tokens each,
greedy, no early stop, no prefix cache hits. Prefill and gRPC are included, start-up and loading are
not. The last line is JSON: tokens per second of `mixed`, `base` and `peft`, and the ratios.
"""

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from graftwork import AsyncClient
from graftwork_server.default_model import ensure_default_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.peft_baseline import PeftBaseline
from benchmarks.server_process import ready, running_process
from benchmarks.workload import (
    NEW_TOKENS,
    NUM_REQUESTS,
    distinct,
    prompts,
    save_lora_adapters,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model_path = ensure_default_model()
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        adapters = save_lora_adapters(model, folder)
        del model
        gc.collect()
        base, mixed = asyncio.run(measure_graftwork(model_path, folder, adapters, repeats))
        peft = measure_peft(model_path, adapters, repeats)
    result = {"mixed": mixed, "base": base, "peft": peft}
    result |= {"vs_peft": mixed / peft, "vs_base": mixed / base}
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


async def measure_graftwork(
    model_path: Path, folder: Path, adapters: list[Path], repeats: int
) -> tuple[float, float]:
    """Tokens per second of base-only and of mixed batches, taken in turns, by a server in a process
    of its own."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    with running_process(folder / "data", "--adapter-root", str(folder)) as server:
        async with AsyncClient(server.target) as client:
            await ready(client)
            for index, adapter in enumerate(adapters):
                await client.adapters.create(f"a{index}", str(adapter))
                await client.adapters.load(f"a{index}")
            names = [f"a{index}" for index in range(len(adapters))]
            runs: dict[str, list[float]] = {"base": [], "mixed": []}
            for repeat in range(repeats + 1):
                # A prompt of each run begins in its own way, so that the prefix cache has no part.
                for kind, chosen in (("base", [""] * NUM_REQUESTS), ("mixed", names)):
                    token_ids = distinct(prompts(tokenizer), salt=2 * repeat + (kind == "mixed"))
                    speed = await generate_together(client, token_ids, chosen)
                    if repeat:  # the first warms up
                        runs[kind].append(speed)
                        print(f"graftwork {kind:5} {speed:7.1f} tok/s", flush=True)
    return statistics.median(runs["base"]), statistics.median(runs["mixed"])


async def generate_together(
    client: AsyncClient, token_ids: list[list[int]], adapters: list[str]
) -> float:
    """All requests at once, streamed; new tokens per second from the first request to the end."""

    async def one(ids: list[int], adapter: str) -> int:
        options = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "adapter": adapter}
        async with client.stream(ids, **options) as stream:
            return sum([len(delta.token_ids) async for delta in stream])

    started = time.perf_counter()
    counts = await asyncio.gather(
        *(one(ids, adapter) for ids, adapter in zip(token_ids, adapters, strict=True))
    )
    seconds = time.perf_counter() - started
    assert counts == [NEW_TOKENS] * len(token_ids), counts
    return sum(counts) / seconds


def measure_peft(model_path: Path, adapters: list[Path], repeats: int) -> float:
    baseline = PeftBaseline(model_path, adapters)
    token_ids = prompts(baseline.tokenizer)
    baseline.generate(token_ids, new_tokens=2)  # warms up
    speeds = []
    for _ in range(repeats):
        speeds.append(baseline.generate(token_ids))
        print(f"peft      mixed {speeds[-1]:7.1f} tok/s", flush=True)
    return statistics.median(speeds)


if __name__ == "__main__":
    main()
