"""Several adapters in one answer, over gRPC: the base plus the weighted sum of their changes."""

import asyncio
import copy
from pathlib import Path

import pytest
import torch
from graftwork import FailedPrecondition, InvalidArgument, NotFound
from peft import LoHaConfig, MissConfig
from torch import Tensor

from tests.support.peft_adapters import (
    load_peft,
    lora_config,
    prompt_tuning_config,
    save_random_adapter,
)
from tests.support.server import ServerUnderTest, serving
from tests.support.tiny_models import tiny_model
from tests.support.tiny_server import tiny_base, tiny_settings

TARGETS = ["q_proj", "down_proj"]
PROMPT, COMPLETION = [5, 6, 7, 8], [9, 10, 11]
MODEL = tiny_model("qwen2")  # has biases


def configs():
    common = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    return {
        "lora": lora_config(4, target_modules=TARGETS, bias="lora_only"),
        "rslora": lora_config(3, target_modules=["q_proj"], use_rslora=True),
        "dense": LoHaConfig(r=6, **common),
        "bat": MissConfig(r=8, init_weights="bat", **common),
        "dora": lora_config(4, target_modules=TARGETS, use_dora=True),
        "soft": prompt_tuning_config(3),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_random_adapter(MODEL, config, root / name, seed=seed, strength=0.2)
        for seed, (name, config) in enumerate(configs().items())
    }


@pytest.fixture
async def running(folders, tmp_path):
    async with serving(tiny_settings(tmp_path), tiny_base(MODEL)) as server:
        for name, folder in folders.items():
            await server.client.adapters.upload(name, folder)
        yield server


def merged(folders: dict[str, Path], weights: dict[str, float]) -> Tensor:
    """Log-probabilities of the completion under base + sum of weight * (PEFT's model - base)."""
    model = copy.deepcopy(MODEL)
    base = dict(MODEL.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            changed = load_peft(copy.deepcopy(MODEL), folders[name]).merge_and_unload()
            for key, parameter in changed.named_parameters():
                model.get_parameter(key).add_(weight * (parameter - base[key]))
        logits = model(torch.tensor([PROMPT + COMPLETION])).logits[0, len(PROMPT) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    return logprobs[range(len(COMPLETION)), COMPLETION]


async def scored(running: ServerUnderTest, **options) -> Tensor:
    result = await running.client.score(PROMPT, [COMPLETION], **options)
    return torch.tensor([token.logprob for token in result.scores[0].logprobs])


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"adapters": {"lora": 0.7, "rslora": 0.3}}, {"lora": 0.7, "rslora": 0.3}),
        (
            {"adapters": {"lora@1": 2.0, "dense": -0.5}, "adapter_scale": 0.5},
            {"lora": 1.0, "dense": -0.25},
        ),
        (
            {"adapters": {"dense": 0.4, "bat": 0.6, "lora": 1}},
            {"dense": 0.4, "bat": 0.6, "lora": 1},
        ),
        ({"adapter": "lora", "adapter_scale": 0.25}, {"lora": 0.25}),
        ({"adapter": "bat", "adapter_scale": 1.5}, {"bat": 1.5}),
    ],
)
async def test_equals_the_weighted_sum(running, folders, options, weights):
    expected = merged(folders, weights)
    torch.testing.assert_close(await scored(running, **options), expected, atol=1e-3, rtol=0)
    assert (expected - merged(folders, {})).abs().max() > 0.01


async def test_neighbours_do_not_mix(running, folders):
    """Compositions, their components and the base in one batch."""
    asked = [
        ({"adapters": {"lora": 0.5, "bat": 0.5}}, {"lora": 0.5, "bat": 0.5}),
        ({"adapter": "lora"}, {"lora": 1}),
        ({}, {}),
        ({"adapters": {"lora": -0.5, "bat": 0.5}}, {"lora": -0.5, "bat": 0.5}),
    ]
    found = await asyncio.gather(*(scored(running, **options) for options, _ in asked))
    for logprobs, (_, weights) in zip(found, asked, strict=True):
        torch.testing.assert_close(logprobs, merged(folders, weights), atol=1e-3, rtol=0)


async def test_what_served_is_listed(running):
    plain = await running.client.generate(PROMPT, adapter="lora", max_tokens=1)
    assert plain.served_by.components == ()
    both = await running.client.generate(
        PROMPT, adapters={"lora": 0.5, "bat": 2}, adapter_scale=0.5, max_tokens=1
    )
    assert str(both.served_by) == "lora@1:0.25 + bat@1:1"
    assert (both.served_by.adapter, both.served_by.version) == ("", 0)
    assert both.served_by.components[0].digest == plain.served_by.digest
    again = await running.client.generate(PROMPT, adapters={"bat": 1, "lora": 0.25}, max_tokens=1)
    assert again.served_by.digest == both.served_by.digest
    assert again.choices[0].token_ids == both.choices[0].token_ids
    scaled = await running.client.generate(PROMPT, adapter="lora", adapter_scale=0.5, max_tokens=1)
    assert (scaled.served_by.adapter, scaled.served_by.version) == ("lora", 1)
    assert scaled.served_by.digest not in {plain.served_by.digest, both.served_by.digest}
    alone = await running.client.generate(PROMPT, adapters={"lora": 1}, max_tokens=1)
    assert alone.served_by == plain.served_by


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapters": {"lora": 0.5, "dora": 0.5}}, ["dora@1", "LORA", "output scale"]),
        ({"adapter": "dora", "adapter_scale": 0.5}, ["dora@1", "output scale"]),
        ({"adapters": {"lora": 1, "soft": 1}}, ["soft@1", "PROMPT_TUNING", "virtual tokens"]),
    ],
)
async def test_what_does_not_add_up_is_refused(running, options, words):
    with pytest.raises(FailedPrecondition) as caught:
        await running.client.generate(PROMPT, **options)
    assert caught.value.reason == "CANNOT_COMPOSE"
    for word in words:
        assert word in str(caught.value)
    assert (await running.client.generate(PROMPT, adapter="dora", max_tokens=1)).text is not None


async def test_a_refused_part_lets_go_of_the_others(running):
    with pytest.raises(NotFound):
        await running.client.generate(PROMPT, adapters={"lora": 1, "nobody": 1})
    with pytest.raises(InvalidArgument):
        await running.client.generate(PROMPT, adapters={"lora": 1}, adapter="bat")
    await running.client.adapters.update("lora", live_version=0)
    await running.client.adapters.delete("lora@1")
    with pytest.raises(NotFound):
        await running.client.generate(PROMPT, adapters={"lora@1": 0.5})
