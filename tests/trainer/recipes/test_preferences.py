"""DPO, KTO, ORPO and the reward model, against TRL alone on the same dequantized weights."""

import itertools
import json
import random

import pytest
import torch
from graftwork.status import InvalidFieldError
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import check_base, lower
from graftwork_trainer.recipes.dpo import train_dpo
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.kto import train_kto
from graftwork_trainer.recipes.orpo import train_orpo
from graftwork_trainer.recipes.reward import train_reward
from graftwork_trainer.recipes.run import TrainingRun, TrainingStopped, read_summary
from safetensors.torch import load_file

from benchmarks.trl_alone import losses_of_trl, plain_arguments, unpaired

RECIPES = {"dpo": train_dpo, "kto": train_kto, "orpo": train_orpo, "reward": train_reward}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
RATE = 5e-3


def make_pairs(count: int = 16) -> list[dict[str, str]]:
    """The chosen answers end kindly."""
    draw = random.Random(0)
    words = ["stone", "bridge", "rain", "fox", "dog", "question", "answer"]
    pairs = []
    for number in range(count):
        prompt = f"{number}: " + " ".join(draw.choices(words, k=3))
        answer = " " + " ".join(draw.choices(words, k=draw.randint(1, 4)))
        pairs.append({"prompt": prompt, "chosen": f"{answer} please", "rejected": f"{answer} now"})
    return pairs


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def examples_of(recipe, pairs):
    if recipe == "kto":
        return [
            {**row, "format": "unpaired", "prompt": {"text": row["prompt"]}}
            for row in unpaired(pairs)
        ]
    name = "reward" if recipe == "reward" else "preference"
    return [{**pair, "format": name, "prompt": {"text": pair["prompt"]}} for pair in pairs]


def make_run(base, folder, recipe, pairs=None, validation=(), **changes):
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        "batch_size": 4, "learning_rate": RATE, "warmup": 0.0, "max_length": 128,
        **changes.pop("hyperparameters", {}),
    }  # fmt: skip
    train = examples_of(recipe, make_pairs() if pairs is None else pairs)
    changes.setdefault("method_config", LORA)
    return TrainingRun(
        base=base,
        train=write(folder / "train.jsonl", train),
        validation=write(folder / "validation.jsonl", examples_of(recipe, validation))
        if validation
        else None,
        folder=folder / "run",
        hyperparameters=Hyperparameters.parse(parameters),
        threads=1,
        **changes,
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_losses_are_those_of_trl_alone(written_base, tmp_path, recipe, quantization):
    base, pairs, losses = written_base("llama", quantization).load(), make_pairs(), []
    run = make_run(
        base, tmp_path / "ours", recipe, progress=lambda report: losses.append(report.loss)
    )
    RECIPES[recipe](run)

    steps = 8 if recipe == "kto" else 4
    arguments = plain_arguments(
        tmp_path, steps, seed=0, data_seed=0, learning_rate=RATE,
        per_device_train_batch_size=4, lr_scheduler_type="linear",
    )  # fmt: skip
    lora = {**LORA, "task_type": "CAUSAL_LM"}
    expected = losses_of_trl(recipe, base, pairs, lora=lora, arguments=arguments, max_length=128)

    assert len(losses) == len(expected) == steps
    assert losses == pytest.approx(expected, abs=1e-3)
    assert max(losses) - min(losses) > 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_learned_holds_and_is_served(written_base, tmp_path, recipe):
    base = written_base()
    before = {name: t.clone() for name, t in base.load().model.state_dict().items()}
    training = base.load()
    run = make_run(
        training, tmp_path, recipe, make_pairs(24), make_pairs(40)[24:],
        hyperparameters={"epochs": 12 if recipe == "orpo" else 3},
    )  # fmt: skip
    folder = RECIPES[recipe](run)

    summary = read_summary(run.folder)
    name = "accuracy" if recipe == "reward" else "rewards/accuracies"
    if recipe != "kto":  # whose figures are of each side alone
        assert summary.metrics[name] > 0.9
    assert summary.validation_loss is not None
    artifact = read_artifact(folder, AdapterLimits())
    assert check_base(artifact, base.served)
    lowered = lower(artifact, base.served, max_rank=64)
    assert len(lowered.labels) == (1 if recipe == "reward" else 0)
    if recipe == "reward":
        assert 0 <= summary.metrics["calibration_error"] <= 0.5
    for key, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_a_reward_models_accuracy_is_the_share_of_pairs_won(written_base, tmp_path):
    """Also where the last batch is smaller than the others."""
    held_out, seed = make_pairs(7), {"max_steps": 1, "seed": 2}
    run = make_run(written_base().load(), tmp_path, "reward", None, held_out, hyperparameters=seed)
    RECIPES["reward"](run)
    won = read_summary(run.folder).metrics["accuracy"] * len(held_out)
    assert 0 < round(won) < len(held_out)
    assert won == pytest.approx(round(won), abs=1e-4)


@pytest.mark.parametrize("recipe", ["dpo", "reward"])
def test_a_stopped_run_goes_on_to_the_same_result(written_base, tmp_path, recipe):
    base, train = written_base().load(), RECIPES[recipe]
    weights = train(make_run(base, tmp_path / "whole", recipe)) / "adapter_model.safetensors"
    steps = itertools.count(1)
    halves = make_run(base, tmp_path / "halves", recipe, should_stop=lambda: next(steps) == 2)
    with pytest.raises(TrainingStopped):
        train(halves)
    found = load_file(train(halves) / "adapter_model.safetensors")
    for key, tensor in load_file(weights).items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)


def test_a_version_is_gone_on_from_and_is_the_reference(written_base, tmp_path):
    base, losses = written_base().load(), []
    initial = train_dpo(make_run(base, tmp_path / "first", "dpo", hyperparameters={"epochs": 2}))
    run = make_run(
        base, tmp_path / "second", "dpo", method_config={}, initial=initial,
        progress=lambda report: losses.append(report.loss),
    )  # fmt: skip
    train_dpo(run)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # nothing has moved from the reference


@pytest.mark.parametrize(
    ("recipe", "examples", "message"),
    [
        ("dpo", [], "dataset: holds no example"),
        ("dpo", [("a", "b", "b")], "all 1 examples prefer an answer to itself"),
        ("dpo", [("a", "b" * 300, "c")], "max_length: is 128 tokens, and each of the 1"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(written_base, tmp_path, recipe, examples, message):
    pairs = [dict(zip(("prompt", "chosen", "rejected"), e, strict=True)) for e in examples]
    with pytest.raises(InvalidFieldError, match=message):
        RECIPES[recipe](make_run(written_base().load(), tmp_path, recipe, pairs))


def test_answers_that_are_all_good_are_refused(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, "kto")
    good = [json.loads(line) for line in run.train.read_text().splitlines()]
    write(run.train, [row for row in good if row["label"]])
    with pytest.raises(InvalidFieldError, match="all 16 answers are good"):
        train_kto(run)
    with pytest.raises(InvalidFieldError, match="batch_size: must be at least 2"):
        train_kto(
            make_run(written_base().load(), tmp_path, "kto", hyperparameters={"batch_size": 1})
        )


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_are_checked(written_base, tmp_path, recipe):
    run = make_run(written_base().load(), tmp_path, recipe)
    with pytest.raises(InvalidFieldError, match=r"recipe_options.gamma: Extra inputs"):
        RECIPES[recipe](run, {"gamma": 1})


def test_rewards_come_from_ties_margins_and_numbers(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, "reward")
    common = {"format": "reward", "prompt": {"text": "Say: "}}
    rated = [{**common, "completion": f"word {n}", "reward": n / 2} for n in range(3)]
    tie = {**common, "chosen": "one", "rejected": "two", "tie": True}
    wide = {**common, "chosen": "three", "rejected": "four", "margin": 2.0}
    write(run.train, [*rated, tie, wide])
    train_reward(run)
    assert read_summary(run.folder).train_examples == 3 + 2 + 1

    other = make_run(written_base().load(), tmp_path / "other", "reward")
    write(other.train, [tie, tie])
    with pytest.raises(InvalidFieldError, match="all 2 comparisons are ties"):
        train_reward(other)
    write(other.train, [{**rated[0], "reward": "high"}])
    with pytest.raises(InvalidFieldError, match=r"train.jsonl\[1\].reward: must be a finite"):
        train_reward(other)
