"""What is generated, over gRPC, against transformers on the same weights."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from graftwork import Choice, FinishReason, Generation
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.peft_adapters import (
    lora_config,
    prompt_tuning_config,
    reference_greedy,
    save_random_adapter,
)
from tests.support.saved_models import FAMILIES, load_reference, save_tiny_model, tiny_tokenizer
from tests.support.server import ServerUnderTest, serving, tiny_settings

PROMPTS = [list(range(40, 100)), [5], [300, 17, 8, 120], list(range(200, 231))]
END = 0  # the tiny models' end token
Reference = PreTrainedModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def path_of(family: str) -> Path:
        path = folder / family
        return path if path.exists() else save_tiny_model(family, path)

    return path_of


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny references lose more by waiting for each other's threads than they gain."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def qwen(models: Callable[[str], Path]) -> Path:
    return models("qwen2")


@pytest.fixture(scope="module")
def reference(qwen: Path) -> Reference:
    return load_reference(qwen)


@pytest.fixture
async def running(qwen: Path, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    async with serving(tiny_settings(tmp_path, qwen)) as server:
        yield server
        await server.check_idle()


def greedy(model: Reference, prompt: list[int], num_tokens: int, **options: Any) -> list[int]:
    """What transformers generates, the end token included."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=END,
        **options,
    )
    return output[0, len(prompt) :].tolist()


def logits_of(model: Reference, token_ids: list[int]) -> Tensor:
    """(num_tokens, vocab_size)"""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].float()


def token_ids(generation: Generation) -> list[int]:
    return list(generation.choices[0].token_ids)


# Tokens


@pytest.mark.parametrize("family", FAMILIES)
async def test_greedy_tokens_are_those_of_transformers(
    family: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_reference(models(family))
    async with serving(tiny_settings(tmp_path, models(family))) as running:
        answers = await running.planned_together(
            *(running.client.generate(prompt, max_tokens=40) for prompt in PROMPTS)
        )
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            assert token_ids(answer) == greedy(model, prompt, 40)
            ended = token_ids(answer)[-1] == END
            expected = FinishReason.STOP if ended else FinishReason.LENGTH
            assert answer.choices[0].finish_reason is expected
        await running.check_idle()


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_quantized_base_is_the_model_over_its_own_weights(
    family: str, quantization: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = tiny_settings(tmp_path, models(family), model={"quantization": quantization})
    async with serving(settings) as running:
        model = load_reference(models(family))
        for name in running.base.linear_modules:
            weight = running.base.weight(name)
            parameter = model.get_submodule(name).weight
            parameter.data.copy_(weight.T if family == "gpt2" and name != "lm_head" else weight)
        prompt = PROMPTS[0]
        answer = await running.client.generate(
            prompt, max_tokens=16, ignore_eos=True, logprobs=5, prompt_logprobs=0
        )
    expected = logits_of(model, [*prompt, *token_ids(answer)]).log_softmax(-1)
    rows = expected[len(prompt) - 1 : -1]
    for row, logprob in zip(rows, answer.choices[0].logprobs, strict=True):
        assert logprob.logprob == pytest.approx(float(row[logprob.token_id]), abs=0.02)
        assert logprob.logprob >= float(row.max()) - 0.02


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_conversation_goes_through_the_template(
    family: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    messages = [
        {"role": "system", "content": "Short words."},
        {"role": "user", "content": "¿Qué tal? 🙂"},
    ]
    rendered = tiny_tokenizer().apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    prompt = tiny_tokenizer()(rendered, add_special_tokens=False)["input_ids"]
    async with serving(tiny_settings(tmp_path, models(family))) as running:
        tokenized = await running.client.tokenize(messages)
        assert (tokenized.text, list(tokenized.token_ids)) == (rendered, prompt)
        answer = await running.client.generate(messages, max_tokens=12)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(prompt)
        assert token_ids(answer) == greedy(load_reference(models(family)), prompt, 12)


async def test_the_parts_of_a_stream_make_up_the_answer(running: ServerUnderTest) -> None:
    request = pb.GenerateRequest(
        text="The quick", max_tokens=60, ignore_eos=True, n=2, logprobs=2, prompt_logprobs=1
    )
    request.sampling.temperature = 1.0
    request.sampling.seed = 7
    async with grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        whole = await stub.Generate(request)
        parts = [part async for part in stub.StreamGenerate(request)]
    assert len(parts) > 2  # as many as the network has room for: tokens that wait go together
    assert len({part.group_id for part in parts}) == 1
    assert all(part.served_by == whole.served_by for part in parts)
    assert list(parts[0].prompt_logprobs) == list(whole.prompt_logprobs)
    assert [part.HasField("create_time") for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.HasField("usage") for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[0].seed == whole.seed == 7
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens == 120
    for choice in whole.choices:
        deltas = [d for part in parts for d in part.deltas if d.index == choice.index]
        assert "".join(d.text for d in deltas) == choice.text
        assert [t for d in deltas for t in d.token_ids] == list(choice.token_ids)
        assert [p for d in deltas for p in d.logprobs] == list(choice.logprobs)
        assert len({d.generation_id for d in deltas}) == 1
        assert [bool(d.finish_reason) for d in deltas] == [False] * (len(deltas) - 1) + [True]
        assert choice.text == tiny_tokenizer().decode(
            list(choice.token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


async def test_a_seed_gives_the_same_tokens_whatever_the_batch(running: ServerUnderTest) -> None:
    async def one(seed: int, prompt: list[int]) -> list[int]:
        answer = await running.client.generate(
            prompt, max_tokens=30, ignore_eos=True, temperature=0.9, top_p=0.95, top_k=50, seed=seed
        )
        assert answer.seed == seed
        return token_ids(answer)

    alone = [await one(seed, PROMPTS[0]) for seed in range(4)]
    assert len({tuple(tokens) for tokens in alone}) == 4
    together = await running.planned_together(
        *(one(seed, PROMPTS[0]) for seed in range(4)),
        *(one(100 + index, prompt) for index, prompt in enumerate(PROMPTS * 3)),
    )
    assert together[:4] == alone


async def test_a_drawn_seed_is_told_and_reproduces(running: ServerUnderTest) -> None:
    drawn = await running.client.generate(PROMPTS[0], max_tokens=20, temperature=1.0)
    again = await running.client.generate(
        PROMPTS[0], max_tokens=20, temperature=1.0, seed=drawn.seed
    )
    assert token_ids(again) == token_ids(drawn)
    other = await running.client.generate(PROMPTS[0], max_tokens=20, temperature=1.0)
    assert other.seed != drawn.seed


async def test_several_answers_of_one_request(running: ServerUnderTest) -> None:
    several = await running.client.generate(
        PROMPTS[0], max_tokens=20, ignore_eos=True, temperature=1.0, seed=3, n=4
    )
    alone = await running.client.generate(
        PROMPTS[0], max_tokens=20, ignore_eos=True, temperature=1.0, seed=3
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert len({choice.generation_id for choice in several.choices}) == 4
    assert len({choice.token_ids for choice in several.choices}) == 4
    assert several.choices[0].token_ids == alone.choices[0].token_ids
    assert several.usage is not None
    assert several.usage.prompt_tokens == len(PROMPTS[0])
    assert several.usage.completion_tokens == 80


# Ends


async def test_stop_strings(running: ServerUnderTest) -> None:
    plain = await running.client.generate(PROMPTS[1], max_tokens=60, ignore_eos=True)
    stop = plain.text[25:28]
    end = plain.text.index(stop)
    async with running.client.stream(
        PROMPTS[1], max_tokens=60, ignore_eos=True, stop=["never there", stop]
    ) as stream:
        text = "".join([delta.text async for delta in stream])
    choice = stream.result.choices[0]
    assert text == choice.text == plain.text[:end]
    assert (choice.finish_reason, choice.stop_string) == (FinishReason.STOP, stop)
    assert list(choice.token_ids) == token_ids(plain)[: len(choice.token_ids)]
    assert len(choice.token_ids) < 60


async def test_stop_tokens(running: ServerUnderTest) -> None:
    plain = await running.client.generate(PROMPTS[1], max_tokens=40, ignore_eos=True)
    tokens = token_ids(plain)
    stop = tokens[10]
    first = tokens.index(stop)
    answer = await running.client.generate(PROMPTS[1], max_tokens=40, stop_token_ids=[stop])
    choice = answer.choices[0]
    assert list(choice.token_ids) == tokens[: first + 1]
    assert choice.finish_reason is FinishReason.STOP
    assert choice.text == tiny_tokenizer().decode(tokens[:first], skip_special_tokens=True)


async def test_min_tokens_hold_stop_tokens_back(running: ServerUnderTest) -> None:
    always_end = {END: 100.0}
    at_once = await running.client.generate(PROMPTS[0], max_tokens=20, logit_bias=always_end)
    assert token_ids(at_once) == [END]
    assert at_once.text == ""
    assert at_once.choices[0].finish_reason is FinishReason.STOP
    held = await running.client.generate(
        PROMPTS[0], max_tokens=20, min_tokens=6, logit_bias=always_end
    )
    assert len(token_ids(held)) == 7
    assert token_ids(held).index(END) == 6
    ignored = await running.client.generate(
        PROMPTS[0], max_tokens=20, ignore_eos=True, logit_bias=always_end
    )
    assert token_ids(ignored) == [END] * 20
    assert ignored.choices[0].finish_reason is FinishReason.LENGTH


async def test_the_context_ends_an_answer(running: ServerUnderTest, reference: Reference) -> None:
    context = (await running.client.model()).limits.max_context_tokens
    prompt = [40 + i % 200 for i in range(context - 5)]
    answer = await running.client.generate(prompt, ignore_eos=True)
    assert token_ids(answer) == greedy(reference, prompt, 5, eos_token_id=[])
    assert answer.choices[0].finish_reason is FinishReason.LENGTH


# Log-probabilities


async def test_logprobs_are_those_of_the_model(
    running: ServerUnderTest, reference: Reference
) -> None:
    """The model's own, whatever temperature, bias and penalties made of them."""
    prompt = PROMPTS[0]
    answer = await running.client.generate(
        prompt,
        max_tokens=20,
        ignore_eos=True,
        temperature=1.5,
        top_k=5,
        seed=1,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        logit_bias={90: 3.0},
        logprobs=6,
        prompt_logprobs=4,
    )
    choice = answer.choices[0]
    expected = logits_of(reference, [*prompt, *choice.token_ids]).log_softmax(-1)
    assert len(choice.logprobs) == 20
    for row, token in zip(expected[len(prompt) - 1 : -1], choice.logprobs, strict=True):
        check_logprob(row, token, 6)
    assert [token.token_id for token in answer.prompt_logprobs] == prompt
    assert answer.prompt_logprobs[0].logprob is None
    assert answer.prompt_logprobs[0].top == ()
    for row, token in zip(expected, answer.prompt_logprobs[1:], strict=False):
        check_logprob(row, token, 4)


def check_logprob(row: Tensor, token: Any, num_top: int) -> None:
    assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-3)
    assert token.token == tiny_tokenizer().decode([token.token_id])
    best = row.topk(num_top)
    assert [top.logprob for top in token.top] == pytest.approx(best.values.tolist(), abs=1e-3)
    if (best.values.diff().abs() > 1e-3).all():
        assert [top.token_id for top in token.top] == best.indices.tolist()


async def test_logprobs_without_alternatives(running: ServerUnderTest) -> None:
    none = await running.client.generate(PROMPTS[0], max_tokens=3)
    assert (none.choices[0].logprobs, none.prompt_logprobs) == ((), ())
    plain = await running.client.generate(
        PROMPTS[0], max_tokens=3, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    assert [len(token.top) for token in plain.choices[0].logprobs] == [0, 0, 0]
    assert [len(token.top) for token in plain.prompt_logprobs] == [0] * len(PROMPTS[0])


async def test_score_gives_the_logprobs_of_completions(
    running: ServerUnderTest, reference: Reference
) -> None:
    tokenizer = tiny_tokenizer()
    texts = [" lazy dog", "?", " jumps over the old stone bridge"]
    prompt = tokenizer("The quick brown")["input_ids"]
    result = await running.client.score("The quick brown", [*texts, [5, 6, 7]])
    completions = [tokenizer(text)["input_ids"] for text in texts] + [[5, 6, 7]]
    for ids, score in zip(completions, result.scores, strict=True):
        rows = logits_of(reference, [*prompt, *ids]).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(ids)[:, None]).squeeze(1).tolist()
        assert [token.token_id for token in score.logprobs] == ids
        assert [token.logprob for token in score.logprobs] == pytest.approx(expected, abs=1e-3)
        assert score.total_logprob == pytest.approx(sum(expected), abs=1e-2)


# Sampling parameters


async def test_logit_bias(running: ServerUnderTest) -> None:
    first = token_ids(await running.client.generate(PROMPTS[0], max_tokens=1))[0]
    away = await running.client.generate(PROMPTS[0], max_tokens=1, logit_bias={first: -100.0})
    assert token_ids(away) != [first]
    towards = await running.client.generate(PROMPTS[0], max_tokens=5, logit_bias={77: 100.0})
    assert token_ids(towards) == [77] * 5


async def test_repetition_penalty_is_that_of_transformers(
    running: ServerUnderTest, reference: Reference
) -> None:
    for prompt in PROMPTS:
        answer = await running.client.generate(prompt, max_tokens=30, repetition_penalty=1.8)
        assert token_ids(answer) == greedy(reference, prompt, 30, repetition_penalty=1.8)


async def test_presence_and_frequency_penalties(
    running: ServerUnderTest, reference: Reference
) -> None:
    prompt, output = PROMPTS[1], list[int]()
    for _ in range(30):
        logits = logits_of(reference, [*prompt, *output])[-1]
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=len(logits))
        output.append(int((logits - 0.7 * (counts > 0) - 0.4 * counts).argmax()))
    answer = await running.client.generate(
        prompt, max_tokens=30, ignore_eos=True, presence_penalty=0.7, frequency_penalty=0.4
    )
    assert token_ids(answer) == output


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-30}]
)
async def test_the_narrowest_filters_are_greedy(
    options: dict[str, Any], running: ServerUnderTest
) -> None:
    plain = await running.client.generate(PROMPTS[0], max_tokens=20, ignore_eos=True)
    narrow = await running.client.generate(
        PROMPTS[0], max_tokens=20, ignore_eos=True, seed=1, **{"temperature": 5.0, **options}
    )
    assert token_ids(narrow) == token_ids(plain)


# Constraints

SCHEMA = {
    "type": "object",
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["fox", "dog"]},
        "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["size", "kind", "flags"],
    "additionalProperties": False,
}


async def test_json_schema(running: ServerUnderTest) -> None:
    answers = await asyncio.gather(
        *(
            running.client.generate(
                "The answer:", json_schema=SCHEMA, temperature=1.0, seed=seed, max_tokens=400
            )
            for seed in range(6)
        )
    )
    for answer in answers:
        value = json.loads(answer.text)
        assert 0 <= value["size"] <= 99
        assert value["kind"] in ("fox", "dog")
        assert 1 <= len(value["flags"]) <= 2
        assert answer.choices[0].finish_reason is FinishReason.STOP


async def test_regex_and_choice(running: ServerUnderTest) -> None:
    dates = await running.client.generate(
        "On", regex=r"[0-9]{4}-(0[1-9]|1[0-2])", n=4, temperature=2.0, max_tokens=40
    )
    for choice in dates.choices:
        assert re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", choice.text)
        assert choice.finish_reason is FinishReason.STOP
    values = ["naïve", "fox (brown)", "🙂"]
    chosen = await running.client.generate("Say", choice=values, n=8, temperature=5.0, seed=2)
    assert {choice.text for choice in chosen.choices} <= set(values)
    assert len({choice.text for choice in chosen.choices}) > 1


# Scheduling changes nothing


async def answers_to(running: ServerUnderTest, **options: Any) -> list[Choice]:
    prompts = [*PROMPTS, [p + 3 for p in PROMPTS[0]], list(range(60, 180))]
    answers = await running.planned_together(
        *(
            running.client.generate(prompt, max_tokens=24, ignore_eos=True, **options)
            for prompt in prompts
        )
    )
    await running.check_idle()
    return [answer.choices[0] for answer in answers]


@pytest.mark.parametrize(
    ("engine", "preempts"),
    [
        ({"max_tokens_per_step": 7, "max_num_sequences": 6}, False),
        ({"max_num_sequences": 1}, False),
        ({"block_size": 1}, False),
        # Twelve blocks of the cache, where the six answers need 27 at their ends.
        ({"kv_cache_bytes": 12 * 8192 * 2}, True),
    ],
    ids=["chunked", "one-by-one", "small-blocks", "preempted"],
)
async def test_scheduling_changes_no_token(
    engine: dict[str, Any], preempts: bool, qwen: Path, tmp_path: Path
) -> None:
    async with serving(tiny_settings(tmp_path / "plain", qwen)) as running:
        expected = await answers_to(running)
        assert running.server.scheduler.num_preemptions == 0
    async with serving(tiny_settings(tmp_path / "other", qwen, engine=engine)) as running:
        found = await answers_to(running)
        assert bool(running.server.scheduler.num_preemptions) == preempts
        sampled = await answers_to(running, temperature=1.0, seed=5)
        assert sampled[0].token_ids != found[0].token_ids
    for before, after in zip(expected, found, strict=True):
        assert (after.token_ids, after.text) == (before.token_ids, before.text)


async def test_prompt_logprobs_in_chunks(qwen: Path, tmp_path: Path, reference: Reference) -> None:
    engine = {"max_tokens_per_step": 7, "max_num_sequences": 2}
    prompt = PROMPTS[0]
    async with serving(tiny_settings(tmp_path, qwen, engine=engine)) as running:
        for _ in range(2):  # the second time the prompt is in the prefix cache
            answer = await running.client.generate(prompt, max_tokens=2, prompt_logprobs=0)
            found = [token.logprob for token in answer.prompt_logprobs]
            rows = logits_of(reference, prompt).log_softmax(-1)
            expected = [float(rows[i, token]) for i, token in enumerate(prompt[1:])]
            assert found[0] is None
            assert found[1:] == pytest.approx(expected, abs=1e-3)


async def test_the_prefix_cache_changes_no_token(running: ServerUnderTest) -> None:
    prompt = PROMPTS[0]
    first = await running.client.generate(prompt, max_tokens=20, ignore_eos=True, logprobs=0)
    again = await running.client.generate(prompt, max_tokens=20, ignore_eos=True, logprobs=0)
    longer = await running.client.generate(
        [*prompt, *token_ids(first)[:10]], max_tokens=10, ignore_eos=True
    )
    assert first.usage is not None
    assert again.usage is not None
    assert longer.usage is not None
    assert first.usage.cached_prompt_tokens == 0
    assert again.usage.cached_prompt_tokens == (len(prompt) - 1) // 16 * 16
    assert longer.usage.cached_prompt_tokens == (len(prompt) + 9) // 16 * 16
    assert token_ids(again) == token_ids(first)
    assert token_ids(longer) == token_ids(first)[10:]


async def test_the_prefix_cache_can_be_switched_off(qwen: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, qwen, engine={"prefix_cache": False})
    async with serving(settings) as running:
        for _ in range(2):
            answer = await running.client.generate(PROMPTS[0], max_tokens=5, n=2)
            assert answer.usage is not None
            assert answer.usage.cached_prompt_tokens == 0
        await running.check_idle()


# Adapters

TARGETS = {
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
}


def adapter_config(family: str, **changes: Any) -> Any:
    return lora_config(4, **{**TARGETS.get(family, {}), **changes})


@pytest.mark.parametrize("family", FAMILIES)
async def test_adapters_of_every_family_answer_as_in_peft(
    family: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_reference(models(family))
    configs = {
        "lora": adapter_config(family),
        "rslora": adapter_config(family, use_rslora=True),
        "dora": adapter_config(family, use_dora=True),
        "prompt": prompt_tuning_config(5),
    }
    folders: dict[str, Path | None] = {
        name: save_random_adapter(model, config, tmp_path / name, seed=seed, strength=0.1)
        for seed, (name, config) in enumerate(configs.items())
    }
    prompt = PROMPTS[3]
    async with serving(tiny_settings(tmp_path, models(family))) as running:
        for name, folder in folders.items():
            await running.client.adapters.create(name, str(folder))
            await running.client.adapters.load(name)
        folders[""] = None
        answers = await running.planned_together(
            *(
                running.client.generate(prompt, adapter=name, max_tokens=16, ignore_eos=True)
                for name in folders
            )
        )
        # Virtual tokens predict the first token of the prompt; nothing else does.
        tuned = await running.client.generate(prompt, adapter="prompt", prompt_logprobs=0)
        assert [token.token_id for token in tuned.prompt_logprobs] == prompt
        assert None not in [token.logprob for token in tuned.prompt_logprobs]
        await running.check_idle()
    outputs = [token_ids(answer) for answer in answers]
    assert len({tuple(output) for output in outputs}) == len(folders)
    for output, folder in zip(outputs, folders.values(), strict=True):
        assert output == reference_greedy(model, folder, prompt, 16)[0]


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
async def test_a_base_row_has_the_same_bits_beside_any_adapter(
    quantization: str, qwen: Path, reference: Reference, tmp_path: Path
) -> None:
    configs = [lora_config(4), lora_config(8, use_dora=True), prompt_tuning_config(5)]
    folders = [
        save_random_adapter(reference, config, tmp_path / f"a{seed}", seed=seed, strength=0.1)
        for seed, config in enumerate(configs)
    ]
    settings = tiny_settings(tmp_path, qwen, model={"quantization": quantization})
    async with serving(settings) as running:

        async def base_row(neighbours: list[str]) -> Choice:
            # Log-probabilities of the prompt have every position computed, whatever is cached.
            options: Any = {"max_tokens": 8, "ignore_eos": True, "logprobs": 20}
            row, *_ = await running.planned_together(
                running.client.generate(PROMPTS[0], prompt_logprobs=20, **options),
                *(
                    running.client.generate(
                        [7 + index, *PROMPTS[3]], adapter=name, prompt_logprobs=0, **options
                    )
                    for index, name in enumerate(neighbours)
                ),
            )
            return row.prompt_logprobs, row.choices[0].logprobs

        alone = await base_row([])
        beside_base = await base_row(["", "", ""])
        for index, folder in enumerate(folders):
            await running.client.adapters.create(f"a{index}", str(folder))
            await running.client.adapters.load(f"a{index}")
        assert await base_row([]) == alone
        assert await base_row(["", "", ""]) == beside_base
        assert await base_row(["a0", "a0", "a0"]) == beside_base
        # DoRA and mixing; a prompt-tuned row has more tokens, thus another plan.
        assert await base_row(["a1", "a0", ""]) == beside_base
        mixed = await base_row(["a0", "a1", "a2"])
        assert await base_row(["a2", "a1", "a0"]) == mixed
        assert (await running.client.model()).digest == running.base.compute_digest()


async def test_another_version_never_finds_the_prefix_of_the_last(
    running: ServerUnderTest, reference: Reference, tmp_path: Path
) -> None:
    folders = [
        save_random_adapter(reference, lora_config(4), tmp_path / f"v{seed}", seed=seed, strength=1)
        for seed in (1, 2)
    ]
    prompt = PROMPTS[0]
    expected = [reference_greedy(reference, folder, prompt, 12)[0] for folder in folders]
    assert expected[0] != expected[1]
    for number, folder in enumerate(folders, start=1):
        await running.client.adapters.create("poet", str(folder), make_live=True)
        for cached in (0, 48):
            answer = await running.client.generate(
                prompt, adapter="poet", max_tokens=12, ignore_eos=True
            )
            assert answer.served_by.version == number
            assert token_ids(answer) == expected[number - 1]
            assert answer.usage is not None
            assert answer.usage.cached_prompt_tokens == cached
    await running.client.adapters.rollback("poet")
    answer = await running.client.generate(prompt, adapter="poet", max_tokens=12, ignore_eos=True)
    assert (answer.served_by.version, token_ids(answer)) == (1, expected[0])
