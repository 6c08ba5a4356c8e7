"""A PPO job whose worker is killed at random iterations, against one that nobody disturbs."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from graftwork import JobState, TrainingJob

from tests.e2e.test_reward_jobs import LENIENT
from tests.e2e.test_training import ended, importable, submit
from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.tiny_serving import TinyBase, one_torch_thread, tiny_base

__all__ = ["importable", "one_torch_thread", "tiny_base"]

TASK = "vowels"
ITERATIONS = 24
SPEC = {
    "recipe": "ppo",
    "dataset": {"selection": {"tasks": [TASK], "format": "sft"}, "duplicate_similarity": 1.0},
    "method_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "hyperparameters": {"learning_rate": 0.02, "batch_size": 16, "max_length": 64, "seed": 3},
    "recipe_options": {
        "rewards": [{"kind": "regex", "pattern": "[aeiou]"}],
        "iterations": ITERATIONS,
        "prompts": 8,
        "num_samples": 4,
        "max_tokens": 6,
        "kl_coefficient": 0.01,
        "kl_target": 2.0,  # far off, so that the coefficient moves
        "kl_horizon": 100,
        "stop_kl": 10.0,
    },
    "gate": LENIENT,
    "promotion": {"mode": "none"},
    "limits": {"max_retries": 5},
}


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(
        tmp_path,
        tiny_base.model,
        # An answer then has the same bits whatever is answered beside it, and requests never come
        # at quite the same times.
        model={"quantization": "int8"},
        training={"check_interval_s": 0.1, "scheduling": "nice", "niceness": 0},
    )
    async with serving(settings) as server:
        yield server
        await server.check_idle()


@pytest.mark.slow
async def test_a_killed_ppo_job_ends_as_one_that_was_left_alone(running: ServerUnderTest) -> None:
    training = running.client.training
    await submit(
        running,
        [
            {
                "prompt": f"prompt {number}",
                "task": TASK,
                "demonstration": "a",
                "author": str(number),
            }
            for number in range(60)
        ],
    )
    whole = await ended(running, await training.start("whole", **SPEC))
    assert whole.state is JobState.SUCCEEDED, whole
    spec = {**SPEC, "dataset": {"snapshot": whole.snapshot}}
    job = await training.start("killed", **spec)
    chance = random.Random(0)
    chosen = [chance.randrange(first, first + 5) for first in (1, 8, 15)]
    await kill_at(running, job, chosen)
    killed = await ended(running, job)
    assert killed.state is JobState.SUCCEEDED, killed
    assert killed.attempt == 1 + len(chosen)

    expected, found = await rollouts(running, whole), await rollouts(running, killed)
    assert len(found) == len(expected) == ITERATIONS
    assert found[-1]["reward"] == pytest.approx(expected[-1]["reward"], rel=0.05)
    # The engine draws the same answers, so that the runs do not part at all.
    assert found == expected
    assert len({entry["kl_coefficient"] for entry in found}) > ITERATIONS / 2
    versions = [version async for version in running.client.adapters.versions("killed")]
    assert [version.ephemeral for version in versions] == [False]


async def kill_at(running: ServerUnderTest, job: TrainingJob, iterations: list[int]) -> None:
    """Kills the worker after each of these iterations, somewhere within the next one."""
    chance, left = random.Random(1), list(iterations)
    async for now in running.client.training.watch(job.id):
        attempt = 1 + len(iterations) - len(left)
        is_training = now.progress.phase == "training" and now.attempt == attempt
        if left and is_training and now.progress.step >= left[0]:
            left.pop(0)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            kill_worker()
    assert not left, "the job ended before it was killed as often as planned"


def kill_worker() -> None:
    (worker,) = (
        child
        for child in psutil.Process().children()
        if "graftwork_trainer.worker" in child.cmdline()
    )
    os.kill(worker.pid, signal.SIGKILL)


async def rollouts(running: ServerUnderTest, job: TrainingJob) -> list[dict[str, float]]:
    report = await running.client.training.report(job.id)
    found: list[dict[str, float]] = json.loads(report.json)["rollouts"]
    return found
