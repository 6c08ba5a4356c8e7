"""A thousand adapters, a hundred slots, Zipf traffic: errors and memory growth.

    python -m benchmarks.soak [--seconds 180] [--adapters 1000] [--slots 100]

The server runs in a process of its own, started as a user would; memory is its PSS (what it takes
of the machine, shared pages counted by share). The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from graftwork import AsyncClient
from graftwork_server.default_model import ensure_default_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.server_process import ServerProcess, pss_bytes, ready, running_process

CONCURRENCY = 16
ZIPF_EXPONENT = 1.0


@dataclass(slots=True)
class Outcome:
    answers: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # (seconds, PSS in bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=100)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        adapters = save_adapters(folder / "peft", arguments.adapters)
        options = [
            *("--adapter-root", str(folder), "--adapters-device-slots", str(arguments.slots)),
            *("--adapters-host-cache-bytes", "256MiB"),
        ]
        with running_process(folder / "data", *options) as server:
            outcome = asyncio.run(drive(server, adapters, arguments.seconds))
    print(json.dumps(summary(outcome, arguments.seconds)))


def save_adapters(folder: Path, count: int) -> list[Path]:
    """Rank-8 LoRAs on q and v."""
    model = AutoModelForCausalLM.from_pretrained(ensure_default_model(), dtype=torch.float32)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    peft_model = get_peft_model(model, config)
    peft_model.save_pretrained(folder / "0")
    template = folder / "0" / "adapter_config.json"
    names = [
        (name.replace(".default", ""), parameter)
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    ]
    folders = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        target = folder / str(index)
        target.mkdir(exist_ok=True)
        (target / template.name).write_bytes(template.read_bytes())
        tensors = {
            name: torch.randn(parameter.shape, generator=generator) * 0.02
            for name, parameter in names
        }
        save_file(tensors, target / "adapter_model.safetensors")
        folders.append(target)
    return folders


async def drive(server: ServerProcess, adapters: list[Path], seconds: float) -> Outcome:
    outcome = Outcome()
    async with AsyncClient(server.target) as client:
        await ready(client)
        started = time.monotonic()
        for index, folder in enumerate(adapters):
            await client.adapters.create(f"adapter-{index}", str(folder))
        print(
            f"registered {len(adapters)} adapters in {time.monotonic() - started:.1f} s", flush=True
        )
        end = time.monotonic() + seconds
        watching = asyncio.create_task(watch_memory(server.pid, seconds, outcome))
        await asyncio.gather(
            *(
                request_until(client, end, len(adapters), seed, outcome)
                for seed in range(CONCURRENCY)
            )
        )
        await watching
    return outcome


async def request_until(
    client: AsyncClient, end: float, num_adapters: int, seed: int, outcome: Outcome
) -> None:
    chance = random.Random(seed)
    weights = [1 / (rank + 1) ** ZIPF_EXPONENT for rank in range(num_adapters)]
    while time.monotonic() < end:
        index = chance.choices(range(num_adapters), weights)[0]
        prompt = f"Question {chance.randrange(10**6)}: tell me about the number {index}."
        started = time.monotonic()
        try:
            async with client.stream(
                prompt,
                adapter=f"adapter-{index}",
                max_tokens=chance.randint(8, 48),
                ignore_eos=True,
            ) as deltas:
                is_first = True
                async for delta in deltas:
                    if is_first:
                        outcome.first_token_s.append(time.monotonic() - started)
                        is_first = False
                    outcome.tokens += len(delta.token_ids)
            outcome.answers += 1
        except Exception as error:  # noqa: BLE001 - every error is what is looked for
            outcome.errors.append(repr(error))


async def watch_memory(pid: int, seconds: float, outcome: Outcome) -> None:
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        outcome.memory.append((elapsed, pss_bytes(pid)))
        await asyncio.sleep(2)


def summary(outcome: Outcome, seconds: float) -> dict[str, object]:
    """Growth compares the means of the 20 seconds at either end of the last two minutes (of the
    last two thirds of a shorter run)."""
    start = seconds - min(120, seconds * 2 / 3)
    window = min(20.0, (seconds - start) / 3)
    early = [pss for t, pss in outcome.memory if start <= t < start + window]
    late = [pss for t, pss in outcome.memory if t >= seconds - window]
    growth = statistics.mean(late) / statistics.mean(early) - 1
    latencies = sorted(outcome.first_token_s)
    return {
        "answers": outcome.answers,
        "errors": len(outcome.errors),
        "error_examples": outcome.errors[:3],
        "tokens_per_s": round(outcome.tokens / seconds, 1),
        "ttft_p50_ms": round(latencies[len(latencies) // 2] * 1e3, 1),
        "ttft_p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1e3, 1),
        "pss_mib": round(statistics.mean(late) / 2**20, 1),
        "pss_growth_percent": round(growth * 100, 2),
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
