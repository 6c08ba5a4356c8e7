"""Online mode: answers to live prompts are compared, a policy trains on it, and so on."""

import asyncio
import time

import pytest
from click.testing import CliRunner
from graftwork import JobState, TrainingJob
from graftwork.cli import main

from tests.e2e.test_reward_jobs import LENIENT
from tests.e2e.test_training import ended, importable, running
from tests.support.judge import Judge, judging
from tests.support.server import ServerUnderTest
from tests.support.tiny_serving import one_torch_thread, tiny_base

__all__ = ["importable", "one_torch_thread", "running", "tiny_base"]

NAME = "poet"
# A random model hardly ever ends an answer by itself, and data sets leave out what is cut off.
ENDS = ["e", "a", "o", "u"]
PROMPTS = 56  # users' of each round
EVERY = 40  # preferences; what is left of two rounds starts no third job
SPEC = {
    "recipe": "dpo",
    "initial_version": NAME,
    "dataset": {"selection": {"tasks": [NAME]}, "duplicate_similarity": 1.0},
    "hyperparameters": {"learning_rate": 0.01, "epochs": 4.0, "max_length": 128},
    "gate": LENIENT,
}


def worth(text: str) -> float:
    """A judge with a taste that a few preferences can teach: for letters."""
    return sum(letter.isascii() and letter.isalpha() for letter in text) / max(len(text), 1)


@pytest.mark.slow
async def test_a_judge_drives_rounds_of_training(running: ServerUnderTest) -> None:
    client = running.client
    await client.training.policies.create("online", NAME, min_new_feedback=EVERY, **SPEC)
    async with judging(Judge(worth)) as target:
        for number in (1, 2):
            answered_by = await ask_as_users(running, number)
            lines = await compare(running, target)
            assert EVERY <= len(lines) < 2 * EVERY
            assert all(f"({answered_by})" in line for line in lines)
            job = await ended(running, await job_number(running, number))
            assert (job.policy, job.state) == ("online", JobState.SUCCEEDED), job.message
            assert job.version == f"{NAME}@{number}"
            assert job.spec.get("initial_version", "") == ("" if number == 1 else f"{NAME}@1")
        # What is left had answers that read the same.
        assert len(await compare(running, target)) < PROMPTS - EVERY
    assert (await client.adapters.get(NAME)).live_version == 2
    assert await mean_worth(running, NAME) > await mean_worth(running, "") + 0.05


async def ask_as_users(running: ServerUnderTest, number: int) -> str:
    """Who answered: the base until something is live."""
    names = {adapter.name async for adapter in running.client.adapters.list()}
    adapter = NAME if NAME in names else ""
    served = set()
    for index in range(PROMPTS):
        prompt = f"question {index} of round {number}"
        answer = await running.client.generate(prompt, adapter=adapter, task=NAME, max_tokens=2)
        served.add(str(answer.served_by))
    (who,) = served
    return who


async def compare(running: ServerUnderTest, judge: str) -> list[str]:
    """The lines that tell what was submitted."""
    command = ["--target", running.target, "feedback", "compare", "--live", NAME, "--judge", judge]
    command += ["--max-tokens", "96", "--min-tokens", "4", "--seed", "7"]
    command += [word for end in ENDS for word in ("--stop", end)]
    result = await asyncio.to_thread(CliRunner().invoke, main, command)
    assert result.exit_code == 0, result.output
    *lines, counts = result.stdout.splitlines()
    assert counts.startswith(f"{len(lines)} compared")
    return lines


async def job_number(running: ServerUnderTest, number: int) -> TrainingJob:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        jobs = [job async for job in running.client.training.list()]
        if len(jobs) == number:
            return max(jobs, key=lambda job: job.id)
        await asyncio.sleep(0.05)
    raise AssertionError(f"the policy started {len(jobs)} jobs")


async def mean_worth(running: ServerUnderTest, adapter: str) -> float:
    answers = [
        await running.client.generate(
            f"question {index}",
            adapter=adapter,
            max_tokens=96,
            min_tokens=4,
            n=16,
            temperature=1.0,
            seed=index,
            stop=ENDS,
        )
        for index in range(12)
    ]
    worths = [worth(choice.text) for answer in answers for choice in answer.choices]
    return sum(worths) / len(worths)
