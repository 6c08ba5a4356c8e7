"""Prompt look-up over gRPC: the same answers, in fewer steps."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from graftwork import Choice, InvalidArgument, Message
from graftwork_server.attention import kv_bytes_per_block
from graftwork_server.engine_parts import kv_shapes

from tests.support.peft_adapters import lora_config, prompt_tuning_config, save_random_adapter
from tests.support.saved_models import load_reference, save_tiny_model
from tests.support.server import ServerUnderTest, server_settings, serving, tiny_settings
from tests.support.tiny_serving import one_torch_thread

__all__ = ["one_torch_thread"]

# A tiny random model soon says the same again, which is what is looked up.
PROMPTS = [list(range(40, 75)), [9, 8, 7] * 9, [300, 17, 8, 120]]
TEXT = (
    "The lighthouse at Marrow Point was built in 1874 by two brothers from the village. Its lamp "
    "could be seen for nineteen miles, and ships that came from the north steered by it."
)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.6, "seed": 11},
    "filtered": {"temperature": 0.8, "seed": 4, "top_p": 0.8, "top_k": 40, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.02, "presence_penalty": 0.01, "frequency_penalty": 0.02},
    "bias": {"logit_bias": {50: 0.5, 60: -0.5}},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 1},
    "several": {"n": 3, "temperature": 0.5, "seed": 3},
    "stop": {"stop_token_ids": list(range(0, 360, 4)), "min_tokens": 25, "ignore_eos": False},
    "regex": {"regex": r"(ab|cd){5}[a-f0-9]{0,60}", "ignore_eos": False},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("model") / "llama", seed=1)


@pytest.fixture(params=["int8", "none"])
async def running(
    request: pytest.FixtureRequest, model: Path, tmp_path: Path
) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(tmp_path, model, model={"quantization": request.param})
    async with serving(settings) as server:
        yield server
        await server.check_idle()


async def answers(
    running: ServerUnderTest, prompt_lookup_tokens: int, adapters: tuple[str, ...] = ("",)
) -> list[Choice]:
    """Of all prompts with all options, each through one of the adapters, in mixed batches."""
    calls = []
    for index, prompt in enumerate(PROMPTS):
        for turn, options in enumerate(OPTIONS.values()):
            fields: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True, "logprobs": 0}
            fields |= {"prompt_lookup_tokens": prompt_lookup_tokens, **options}
            adapter = adapters[(index + turn) % len(adapters)]
            calls.append(running.client.generate(prompt, adapter=adapter, **fields))
    return [choice for answer in await asyncio.gather(*calls) for choice in answer.choices]


def told(choice: Choice) -> tuple[Any, ...]:
    return choice.token_ids, choice.text, choice.finish_reason, choice.stop_string


def check_equal(plain: list[Choice], guessed: list[Choice], *, bits: bool) -> None:
    for before, after in zip(plain, guessed, strict=True):
        assert told(after) == told(before)
        if bits:
            assert after.logprobs == before.logprobs
        else:
            assert [token.logprob for token in after.logprobs] == pytest.approx(
                [token.logprob for token in before.logprobs], abs=1e-4
            )


async def test_no_option_changes_with_it(running: ServerUnderTest) -> None:
    scheduler = running.server.scheduler
    plain = await answers(running, 0)
    assert scheduler.num_draft_tokens == 0
    for most in (1, 8):
        guessed = await answers(running, most)
        check_equal(plain, guessed, bits=running.base.quantization == "int8")
        accepted = scheduler.num_accepted_tokens
        assert len(plain) < accepted < scheduler.num_draft_tokens


async def test_adapters_of_one_batch(running: ServerUnderTest, model: Path, tmp_path: Path) -> None:
    reference = load_reference(model)
    configs = {
        "lora": lora_config(4),
        "dora": lora_config(8, use_dora=True),
        "prompt": prompt_tuning_config(5),
    }
    for seed, (name, config) in enumerate(configs.items()):
        folder = save_random_adapter(reference, config, tmp_path / name, seed=seed, strength=0.1)
        await running.client.adapters.create(name, str(folder), make_live=True)
    names = ("", *configs)
    plain = await answers(running, 0, names)
    guessed = await answers(running, 8, names)
    check_equal(plain, guessed, bits=running.base.quantization == "int8")
    assert running.server.scheduler.num_accepted_tokens > len(plain)


async def test_few_blocks(model: Path, tmp_path: Path) -> None:
    """Sequences are preempted, and resume with what the prefix cache has kept of guesses."""
    kinds = {"quantization": "int8"}
    async with serving(tiny_settings(tmp_path / "many", model, model=kinds)) as running:
        plain = await answers(running, 0)
        per_block = tiny_block_bytes(running)
    engine = {"kv_cache_bytes": 16 * per_block}
    settings = tiny_settings(tmp_path / "few", model, model=kinds, engine=engine)
    async with serving(settings) as running:
        check_equal(plain, await answers(running, 8), bits=True)
        assert running.server.scheduler.num_preemptions
        assert running.server.scheduler.num_accepted_tokens
        await running.check_idle()


def tiny_block_bytes(running: ServerUnderTest) -> int:
    shapes = kv_shapes(running.base)
    block_size = running.server.scheduler.config.block_size
    return kv_bytes_per_block(shapes, block_size, running.base.dtype)


async def test_a_stop_string_ends_within_a_draft(running: ServerUnderTest) -> None:
    for prompt in PROMPTS:
        plain = await running.client.generate(prompt, max_tokens=48, ignore_eos=True)
        text = plain.choices[0].text
        for start in (20, 25, 30):
            stop = text[start : start + 3]
            if not stop.isprintable():
                continue
            before, after = [
                await running.client.generate(
                    prompt,
                    max_tokens=48,
                    ignore_eos=True,
                    stop=stop,
                    prompt_lookup_tokens=most,
                )
                for most in (0, 8)
            ]
            assert told(after.choices[0]) == told(before.choices[0])
            assert after.usage is not None
            assert before.usage is not None
            assert after.usage.completion_tokens == before.usage.completion_tokens
            await running.check_idle()


async def test_a_stream_ends_like_the_answer(running: ServerUnderTest) -> None:
    plain = await running.client.generate(PROMPTS[1], max_tokens=40, ignore_eos=True)
    async with running.client.stream(
        PROMPTS[1], max_tokens=40, ignore_eos=True, prompt_lookup_tokens=8
    ) as stream:
        sizes = [len(delta.token_ids) async for delta in stream]
        assert told(stream.result.choices[0]) == told(plain.choices[0])
    assert sum(sizes) == 40


async def test_it_is_limited_and_can_be_switched_off(model: Path, tmp_path: Path) -> None:
    for most, message in ((4, "is 5, and must be at least 0 and at most 4"), (0, "is off")):
        settings = tiny_settings(
            tmp_path / str(most), model, limits={"max_prompt_lookup_tokens": most}
        )
        async with serving(settings) as running:
            assert (await running.client.model()).limits.max_prompt_lookup_tokens == most
            with pytest.raises(InvalidArgument, match=message) as caught:
                await running.client.generate("hi", prompt_lookup_tokens=5)
            assert caught.value.field == "prompt_lookup_tokens"


@pytest.mark.model
async def test_the_default_model_repeats_a_text(tmp_path: Path) -> None:
    """In fewer steps, with the same bits."""
    prompt = [Message("user", f"Repeat this text word for word.\n\n{TEXT}")]
    async with serving(server_settings(tmp_path)) as running:
        found = []
        for most in (0, 8):
            answer = await running.client.generate(
                prompt, max_tokens=64, logprobs=2, prompt_lookup_tokens=most
            )
            found.append((told(answer.choices[0]), answer.choices[0].logprobs))
        assert found[0] == found[1]
        scheduler = running.server.scheduler
        assert scheduler.num_accepted_tokens > 0.5 * len(answer.choices[0].token_ids)
