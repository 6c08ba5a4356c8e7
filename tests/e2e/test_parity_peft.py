"""One mixed batch over gRPC, on the real model, against PEFT alone with each adapter.

What "equal" means is said in docs/parity.md: with float32 weights logits agree within 1e-3; on a
quantized base, compared with PEFT on the same quantized weights, within 1% of the adapter's own
largest effect, and the divergence per token is at most 1e-4. Log-probabilities are compared, which
differ from logits by one number per position.
"""

import asyncio
import random
from pathlib import Path

import pytest
import torch
from graftwork import Generation
from graftwork_server.base_model import BaseModel
from graftwork_server.default_model import default_model_path
from graftwork_server.serve import load_base
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.support.peft_adapters import (
    alias,
    lora_config,
    prompt_tuning_config,
    reference_logits,
    save_random_adapter,
)
from tests.support.server import ServerUnderTest, server_settings, serving

NEW_TOKENS = 12
NUM_TOP = 20

PROMPTS = {
    "lora": "Name three rivers of Europe and the seas they reach.",
    "rslora": "Write a short poem about a lighthouse in winter.",
    "dora": "Explain to a child why boats float.",
    "prompt": "Give me a recipe for pancakes with few ingredients.",
    "patterns": "What should I pack for a week in the mountains?",
    "base": "List the planets from the sun outwards.",
}


@pytest.fixture(scope="module")
def adapter_folders(
    float_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path | None]:
    folder = tmp_path_factory.mktemp("adapters")
    configs = {
        "lora": lora_config(16),
        "rslora": lora_config(8, use_rslora=True),
        "dora": lora_config(4, use_dora=True),
        "prompt": prompt_tuning_config(12),
        "patterns": lora_config(
            8, rank_pattern={"q_proj": 4, "down_proj": 12}, alpha_pattern={"v_proj": 48}
        ),
    }
    found: dict[str, Path | None] = {"base": None}
    for seed, (name, config) in enumerate(configs.items()):
        found[name] = save_random_adapter(
            float_model, config, folder / name, seed=seed, strength=0.01
        )
    return found


@pytest.mark.model
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
async def test_each_row_of_a_mixed_batch_equals_peft_alone(
    quantization: str,
    float_model: PreTrainedModel,
    adapter_folders: dict[str, Path | None],
    tmp_path: Path,
) -> None:
    # A rounded factor would differ from the file's: what is compared here is the mixing.
    settings = server_settings(
        tmp_path,
        model={"quantization": quantization},
        adapters={
            "roots": [str(f.parent) for f in adapter_folders.values() if f],
            "factor_dtype": "file",
        },
    )
    base = load_base(settings)
    reference = reference_model(float_model, base)
    async with serving(settings, base) as running:
        for name, folder in adapter_folders.items():
            if folder is not None:
                await running.client.adapters.create(name, str(folder))
        names = list(PROMPTS)
        first = await generate_together(running, names)
        random.Random(0).shuffle(names)
        second = await generate_together(running, names)
        for name in PROMPTS:
            check_row(name, first[name], reference, adapter_folders[name], quantization)
            assert second[name].choices[0].token_ids == first[name].choices[0].token_ids
        assert (await running.client.model()).digest == base.compute_digest() == base.digest


async def generate_together(running: ServerUnderTest, names: list[str]) -> dict[str, Generation]:
    answers = await asyncio.gather(
        *(
            running.client.generate(
                PROMPTS[name],
                adapter="" if name == "base" else name,
                max_tokens=NEW_TOKENS,
                ignore_eos=True,
                logprobs=NUM_TOP,
            )
            for name in names
        )
    )
    return dict(zip(names, answers, strict=True))


def reference_model(float_model: PreTrainedModel, base: BaseModel) -> torch.nn.Module:
    """The float model with its linear weights replaced by the base's dequantized ones."""
    reference = alias(float_model)
    for name, module in reference.named_modules():
        if name in base.linear_modules and isinstance(module, torch.nn.Linear | Conv1D):
            module.weight = torch.nn.Parameter(base.weight(name), requires_grad=False)
    return reference


def check_row(
    name: str,
    answer: Generation,
    reference: torch.nn.Module,
    folder: Path | None,
    quantization: str,
) -> None:
    choice = answer.choices[0]
    prompt = tokenize(PROMPTS[name])
    token_ids = [*prompt, *choice.token_ids]
    logits = reference_logits(reference, folder, token_ids)[len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    # The plain base has no adapter's effect to compare with; int8 rounds activations to 16 bits.
    tolerance = 1e-2 if quantization == "int8" else 1e-3
    if quantization != "none" and folder is not None:
        plain = reference_logits(reference, None, token_ids)[len(prompt) - 1 : -1]
        tolerance = 0.01 * float((logits - plain).abs().max())
    for position, logprob in enumerate(choice.logprobs):
        margin = top_margin(logits[position])
        if margin > 2 * tolerance:
            assert choice.token_ids[position] == int(logits[position].argmax()), (name, position)
        ids = torch.tensor([top.token_id for top in logprob.top])
        ours = torch.tensor([top.logprob for top in logprob.top])
        theirs = expected[position, ids]
        assert (ours - theirs).abs().max() <= tolerance, (name, position)
        assert divergence_of(theirs, ours) <= 1e-4, (name, position)
    assert len(choice.logprobs) == NEW_TOKENS


def divergence_of(theirs: Tensor, ours: Tensor) -> float:
    """From the log-probabilities of the same few tokens: all others count as one."""
    rest, our_rest = (1 - logprobs.double().exp().sum() for logprobs in (theirs, ours))
    told = (theirs.exp() * (theirs - ours)).sum()
    return float(told + (rest * (rest / our_rest).log() if rest > 0 else 0.0))


def top_margin(logits: Tensor) -> float:
    best, second = logits.topk(2).values.tolist()
    return best - second


def tokenize(text: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(default_model_path())(text)["input_ids"])
