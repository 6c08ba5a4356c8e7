"""A PPO job whose worker is killed while streams run: what `bench_rlhf --kill` measures."""

import asyncio
import contextlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import psutil
from graftwork import AsyncClient, JobState, TrainingJob

from benchmarks.bench_rlhf import HYPERPARAMETERS, OPTIONS, SUBJECTS
from benchmarks.latency import Gaps, measure_gaps
from benchmarks.server_process import ready, running_process

TASK = "numbers"
STREAMS = 2
BURST_S = 4.0  # of the streams, with as long a pause after it, in which the trainer gets on
IDLE_BURSTS = 8


async def measure(folder: Path, *, kills: int, iterations: int, seed: int) -> dict[str, Any]:
    with running_process(folder / "data") as server:
        async with AsyncClient(server.target) as client:
            await ready(client)
            await submit_prompts(client)
            await measure_gaps(client, streams=STREAMS, seconds=BURST_S)  # warms up
            idle = Gaps()
            for _ in range(IDLE_BURSTS):
                idle.add(await measure_gaps(client, streams=STREAMS, seconds=BURST_S))
                await asyncio.sleep(BURST_S)
            job = await start(client, "left-alone", iterations, seed)
            (alone, _), quiet = await streamed(client, follow(client, job, server.pid, []))
            chosen = sorted(random.Random(seed).sample(range(1, iterations - 1), kills))
            job = await start(client, "killed", iterations, seed, snapshot=alone.snapshot)
            (killed, done), busy = await streamed(client, follow(client, job, server.pid, chosen))
            rewards = [await final_reward(client, job) for job in (alone, killed)]
    return {
        "killed_after_iterations": done,
        "attempts": killed.attempt,
        "final_reward_left_alone": round(rewards[0], 4),
        "final_reward_killed": round(rewards[1], 4),
        "reward_difference": round(abs(rewards[1] - rewards[0]) / max(rewards[0], 1e-9), 4),
        "p99_idle_ms": round(idle.percentile(99), 2),
        "p99_left_alone_ms": round(quiet.percentile(99), 2),
        "p99_killed_ms": round(busy.percentile(99), 2),
        "p99_ratio": round(busy.percentile(99) / idle.percentile(99), 3),
    }


async def submit_prompts(client: AsyncClient) -> None:
    items = [
        {"prompt": subject, "task": TASK, "demonstration": "is 1.", "author": subject}
        for subject in SUBJECTS
    ]
    await client.feedback.submit_many(items)


async def start(
    client: AsyncClient, adapter: str, iterations: int, seed: int, *, snapshot: str = ""
) -> TrainingJob:
    selection = {"selection": {"tasks": [TASK], "format": "sft"}, "duplicate_similarity": 1.0}
    return await client.training.start(
        adapter,
        recipe="ppo",
        dataset={"snapshot": snapshot} if snapshot else selection,
        hyperparameters={**HYPERPARAMETERS, "seed": seed},
        recipe_options={**OPTIONS["ppo"], "iterations": iterations},
        # What is measured is the training; any gate would do.
        gate={"few_shot": 0, "max_examples": 4, "min_gain_over_base": -1.0, "max_regression": 1.0},
        promotion={"mode": "none"},
        limits={"max_retries": 10},
    )


async def follow(
    client: AsyncClient, job: TrainingJob, server: int, iterations: list[int]
) -> tuple[TrainingJob, list[int]]:
    """The job at the end of its training, and after which iterations its worker was killed: once
    each of those chosen was done, somewhere within the next one."""
    chance, left, done = random.Random(0), list(iterations), []
    last = job
    async for last in client.training.watch(job.id, timeout=7200):
        step, attempt = last.progress.step, 1 + len(done)
        is_training = last.progress.phase == "training" and last.attempt == attempt
        if left and is_training and step >= left[0]:
            left.pop(0)
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            kill_worker(server)
            done.append(step)
            print(f"killed after iteration {step}", flush=True)
    if last.state not in {JobState.SUCCEEDED, JobState.REFUSED}:
        raise RuntimeError(f"job {last.id} ended as {last.state.value}: {last.message}")
    return last, done


def kill_worker(server: int) -> None:
    for child in psutil.Process(server).children():
        if "graftwork_trainer.worker" in child.cmdline():
            os.kill(child.pid, signal.SIGKILL)
            return
    raise RuntimeError("there is no worker to kill")


async def streamed(client: AsyncClient, work: Any) -> tuple[Any, Gaps]:
    """What the work returns, and the gaps of streams beside it."""
    task, gaps = asyncio.create_task(work), Gaps()
    while not task.done():
        gaps.add(await measure_gaps(client, streams=STREAMS, seconds=BURST_S))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), BURST_S)
    return await task, gaps


async def final_reward(client: AsyncClient, job: TrainingJob) -> float:
    """Mean over the last three iterations."""
    report = await client.training.report(job.id)
    rewards = [metrics["reward"] for metrics in json.loads(report.json)["rollouts"]]
    print(f"{job.adapter}: {[round(reward, 3) for reward in rewards]}", flush=True)
    last = rewards[-3:]
    return sum(last) / len(last)
