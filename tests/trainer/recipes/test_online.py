"""PPO, GRPO and RLOO against a real server over a tiny base that maps the same weights."""

import asyncio
import itertools
import json
from statistics import mean

import pytest
from graftwork.status import InvalidFieldError
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.limits import AdapterLimits
from graftwork_trainer.recipes.grpo import train_grpo, train_rloo
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.learner import NothingToLearn
from graftwork_trainer.recipes.online import ServingAccess
from graftwork_trainer.recipes.ppo import train_ppo
from graftwork_trainer.recipes.run import TrainingRun, TrainingStopped, read_summary
from graftwork_trainer.rewards.errors import UnknownPlugin
from graftwork_trainer.rollouts import HISTORY_FILE
from safetensors.torch import load_file

from tests.support.server import serving, tiny_settings

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
OPTIONS = {
    "rewards": [{"kind": "regex", "pattern": "[aeiou]"}],
    "iterations": 12,
    "prompts": 8,
    "max_tokens": 6,
    "kl_coefficient": 0.01,
    "stop_kl": 10.0,
}
ALGORITHMS = {
    "ppo": (train_ppo, {"num_samples": 4}),
    "grpo": (train_grpo, {"num_samples": 4}),
    "rloo": (train_rloo, {"num_samples": 4}),
}


def make_run(base, folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"format": "sft", "prompt": {"text": f"prompt number {n}"}} for n in range(10)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parameters = {"batch_size": 16, "learning_rate": 2e-2, "warmup": 0.0, "schedule": "constant"}
    parameters |= changes.pop("hyperparameters", {})
    changes.setdefault("method_config", LORA)
    return TrainingRun(
        base=base,
        train=folder / "train.jsonl",
        folder=folder / "run",
        hyperparameters=Hyperparameters.parse(parameters),
        threads=1,
        **changes,
    )


class Loop:
    """A server, and trainings in a thread beside it."""

    def __init__(self, running) -> None:
        self.running = running

    async def train(self, algorithm, run, **options):
        train, defaults = ALGORITHMS[algorithm]
        access = ServingAccess(self.running.target, adapter="policy", owner="job", task="words")
        return await asyncio.to_thread(train, run, access, {**OPTIONS, **defaults, **options})


@pytest.fixture
async def loop(written_base, tmp_path):
    base = written_base()
    settings = tiny_settings(tmp_path / "server", base.folder)
    async with serving(settings, base.served) as running:
        yield Loop(running)
        await running.check_idle()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_reward_rises(loop, written_base, tmp_path, algorithm):
    base, reports = written_base(), []
    run = make_run(base.load(), tmp_path, progress=reports.append)
    folder = await loop.train(algorithm, run)

    rewards = [report.metrics["reward"] for report in reports]
    # Of 32 answers each: one iteration's mean strays by a tenth.
    assert mean(rewards[-3:]) > rewards[0] + 0.1, rewards
    assert reports[-1].metrics["kl"] > 0.05 > abs(reports[0].metrics["kl"])
    assert all(report.metrics["sampler_gap"] < 0.05 for report in reports)
    summary = read_summary(run.folder)
    assert summary.metrics["reward"] > summary.metrics["first_reward"]
    assert len(json.loads((run.folder / HISTORY_FILE).read_text())) == summary.steps
    assert read_artifact(folder, AdapterLimits()).method == "LORA"
    versions = [v async for v in loop.running.client.adapters.versions()]
    assert versions == []  # the policies are gone


@pytest.mark.parametrize("dropout", [0.0, 0.3])
async def test_a_stopped_run_goes_on_to_the_same_result(loop, written_base, tmp_path, dropout):
    base, config = written_base().load(), {**LORA, "lora_dropout": dropout}
    run = make_run(base, tmp_path / "whole", method_config=config)
    whole = await loop.train("ppo", run, iterations=5)

    steps, asked = [], itertools.count()
    halves = make_run(
        base,
        tmp_path / "halves",
        method_config=config,
        progress=lambda report: steps.append(report.step),
        should_stop=lambda: next(asked) == 2,
    )
    with pytest.raises(TrainingStopped):
        await loop.train("ppo", halves, iterations=5)
    found = load_file(await loop.train("ppo", halves, iterations=5) / "adapter_model.safetensors")
    assert steps == [1, 2, 3, 4, 5]
    for name, tensor in load_file(whole / "adapter_model.safetensors").items():
        assert found[name] == pytest.approx(tensor, abs=1e-5)


async def test_a_reward_that_tells_nothing_apart_is_an_error(loop, written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path)
    rewards = [{"kind": "regex", "pattern": ".*"}]
    with pytest.raises(NothingToLearn, match="every answer of 5 iterations is worth 1"):
        await loop.train("grpo", run, rewards=rewards)
    assert not run.adapter_folder.exists()


async def test_a_plugin_that_is_not_there_is_an_error(loop, written_base, tmp_path):
    with pytest.raises(UnknownPlugin):
        await loop.train(
            "grpo",
            make_run(written_base().load(), tmp_path),
            rewards=[{"kind": "plugin", "name": "nobody"}],
        )


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"num_samples": 17}, "recipe_options.num_samples: is 17"),
        ({}, {"rewards": []}, "recipe_options.rewards"),
        ({}, {"clip": 2}, "recipe_options.clip"),
        ({"method": "PROMPT_TUNING", "method_config": {}}, {}, "method: PROMPT_TUNING does not"),
    ],
)
async def test_what_cannot_be_trained_is_refused(
    loop, written_base, tmp_path, changes, options, message
):
    run = make_run(written_base().load(), tmp_path, **changes)
    with pytest.raises(InvalidFieldError, match=message):
        await loop.train("grpo", run, **options)
