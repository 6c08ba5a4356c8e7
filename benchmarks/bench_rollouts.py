"""Rollouts by the serving engine against transformers' generate with the same policy, medians.

    python -m benchmarks.bench_rollouts [--repeats 5]

The policy is a rank-16 LoRA on all linear layers of the default model. Sixteen prompts, one answer
of 64 tokens to each, drawn at temperature 1. The server answers over gRPC, from a process of its
own, with log-probabilities and the journal on, as a job asks it to; PEFT keeps the adapter
unmerged, on fp32 weights, and returns no log-probabilities. Prefill is included, start-up is not.
The last line is JSON: tokens per second of both, and the ratio.
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
from graftwork import AsyncClient, Origin
from graftwork_server.default_model import ensure_default_model
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.server_process import ready, running_process
from benchmarks.workload import NEW_TOKENS, distinct, prompts, save_lora_adapters

OWNER = "bench-rollouts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        model_path = ensure_default_model()
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        [policy] = save_lora_adapters(model, Path(scratch), count=1)
        del model
        gc.collect()
        token_ids = prompts(AutoTokenizer.from_pretrained(model_path))
        engine = asyncio.run(measure_engine(Path(scratch), policy, token_ids, repeats))
        transformers = measure_transformers(model_path, policy, token_ids, repeats)
    result = {"engine": engine, "transformers": transformers, "ratio": engine / transformers}
    print(json.dumps({key: round(value, 2) for key, value in result.items()}))


async def measure_engine(
    folder: Path, policy: Path, token_ids: list[list[int]], repeats: int
) -> float:
    """Tokens per second, of the calls that `graftwork_trainer.rollouts` makes."""
    with running_process(folder / "data") as server:
        async with AsyncClient(server.target) as client:
            await ready(client)
            version = await client.adapters.upload("policy", policy, ephemeral_owner=OWNER)

            async def answer(ids: list[int], seed: int) -> int:
                generation = await client.generate(
                    ids,
                    adapter=version.selector,
                    temperature=1.0,
                    max_tokens=NEW_TOKENS,
                    ignore_eos=True,
                    logprobs=0,
                    seed=seed,
                    origin=Origin.ROLLOUT,
                )
                return sum(len(choice.token_ids) for choice in generation.choices)

            speeds = []
            for repeat in range(repeats + 1):
                salted = distinct(token_ids, salt=repeat)
                started = time.perf_counter()
                counts = await asyncio.gather(*(answer(ids, repeat) for ids in salted))
                speeds.append(sum(counts) / (time.perf_counter() - started))
                assert counts == [NEW_TOKENS] * len(token_ids), counts
                print(f"engine       {speeds[-1]:7.1f} tok/s", flush=True)
    return statistics.median(speeds[1:])  # the first warms up


def measure_transformers(
    model_path: Path, policy: Path, token_ids: list[list[int]], repeats: int
) -> float:
    """Tokens per second of one batch, padded to its longest prompt."""
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, policy).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    batch = tokenizer.pad({"input_ids": token_ids}, return_tensors="pt")
    speeds = []
    for repeat in range(repeats + 1):
        torch.manual_seed(repeat)
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
            )
        speeds.append(len(token_ids) * NEW_TOKENS / (time.perf_counter() - started))
        assert output.shape[1] == batch["input_ids"].shape[1] + NEW_TOKENS
        print(f"transformers {speeds[-1]:7.1f} tok/s", flush=True)
    return statistics.median(speeds[1:])


if __name__ == "__main__":
    main()
