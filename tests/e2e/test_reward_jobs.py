"""From preferences to a reward model, and from that to a policy trained on it, by jobs."""

import json

import pytest
from graftwork.feedback_types import Answer, Preference

from tests.e2e.test_training import ended, importable, running, submit
from tests.support.server import ServerUnderTest
from tests.support.tiny_serving import one_torch_thread, tiny_base

__all__ = ["importable", "one_torch_thread", "running", "tiny_base"]

TASK = "kindness"
LENIENT = {
    "few_shot": 0,
    "max_examples": 20,
    "min_gain_over_base": -1.0,
    "max_regression": 1.0,
    "max_other_task_regression": 1.0,
}


async def prefer_kindness(running: ServerUnderTest, count: int) -> None:
    await submit(
        running,
        [
            {
                "prompt": f"prompt number {index}",
                "task": TASK,
                "preference": Preference(
                    Answer(text=f" yes {index} please"), Answer(text=f" no {index} now")
                ),
                "author": f"a{index}",
            }
            for index in range(count)
        ],
    )


@pytest.mark.slow
async def test_preferences_become_a_reward_that_trains_a_policy(running: ServerUnderTest) -> None:
    training = running.client.training
    await prefer_kindness(running, 120)
    dataset = {"selection": {"tasks": [TASK]}, "duplicate_similarity": 1.0}
    job = await training.start(
        "critic",
        recipe="reward",
        dataset=dataset,
        hyperparameters={"learning_rate": 0.005, "epochs": 2.0, "max_length": 64},
        gate=LENIENT,
    )
    job = await ended(running, job)
    assert job.state.value == "succeeded", job
    assert "accuracy" in job.message
    version = await running.client.adapters.get_version("critic")
    assert len(version.labels) == 1
    score = await running.client.score("prompt", [" yes please", " no now"], adapter="critic")
    rewards = [entry.classification.reward for entry in score.scores if entry.classification]
    assert rewards[0] > rewards[1]

    job = await training.start(
        "kind",
        recipe="rloo",
        dataset={"selection": {"tasks": [TASK], "format": "preference"}},
        hyperparameters={"learning_rate": 0.01, "batch_size": 16, "max_length": 64},
        recipe_options={
            "rewards": [{"kind": "adapter", "adapter": "critic"}],
            "iterations": 4,
            "prompts": 8,
            "max_tokens": 6,
        },
        gate=LENIENT,
    )
    job = await ended(running, job)
    assert job.state.value == "succeeded", job
    report = await training.report(job.id)
    assert "## Rollouts" in report.markdown
    assert len(json.loads(report.json)["rollouts"]) == 4
    versions = [v async for v in running.client.adapters.versions("kind")]
    assert [v.ephemeral for v in versions] == [False]  # the policies are gone


async def test_a_job_whose_reward_is_missing_is_refused(running: ServerUnderTest) -> None:
    await prefer_kindness(running, 2)
    with pytest.raises(Exception, match=r"recipe_options.rewards: is missing"):
        await running.client.training.start(
            "kind", recipe="ppo", dataset={"selection": {"tasks": [TASK], "format": "preference"}}
        )
