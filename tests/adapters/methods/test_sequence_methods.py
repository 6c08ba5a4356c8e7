"""Virtual tokens and key/value prefixes: prompt tuning, P-tuning, multitask prompt tuning, CPT and
prefix tuning."""

import json
from pathlib import Path

import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from peft import (
    CPTConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from torch import nn

from tests.adapters.methods.helpers import FAMILIES, PROMPTS, TOLERANCE, check_mixed_batch
from tests.support.engine import TinyEngine
from tests.support.peft_adapters import (
    load_peft,
    peft_remarks_ignored,
    reference_greedy,
    reference_logits,
    save_random_adapter,
)
from tests.support.tiny_models import tiny_model

CAUSAL = {"task_type": "CAUSAL_LM"}
CONFIGS = {
    "prompt": PromptTuningConfig(num_virtual_tokens=5, **CAUSAL),
    "p_tuning_mlp": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, **CAUSAL),
    "p_tuning_lstm": PromptEncoderConfig(
        num_virtual_tokens=3,
        encoder_hidden_size=8,
        encoder_reparameterization_type="LSTM",
        encoder_num_layers=1,
        **CAUSAL,
    ),
    "cpt": CPTConfig(
        cpt_token_ids=[7, 8, 9, 3],
        cpt_mask=[1, 1, 1, 1],
        cpt_tokens_type_mask=[1, 2, 3, 4],
        opt_projection_epsilon=20.0,
        opt_projection_format_epsilon=20.0,
        **CAUSAL,
    ),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, **CAUSAL),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_model(request.param)


def save(model: nn.Module, config: PeftConfig, folder: Path, seed: int = 1) -> Path:
    return save_random_adapter(model, config, folder, seed=seed, strength=0.3)


def test_all_in_one_batch(model: nn.Module, tmp_path: Path) -> None:
    folders = [
        save(model, config, tmp_path / name, seed)
        for seed, (name, config) in enumerate(CONFIGS.items())
    ]
    check_mixed_batch(model, folders, tmp_path)


def save_projected_prefix(model: nn.Module, folder: Path) -> Path:
    config = PrefixTuningConfig(
        num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16, **CAUSAL
    )
    config.token_dim = (
        model.config.hidden_size
        if model.config.model_type == "gpt2"
        else model.config.num_key_value_heads * 8
    )
    return save(model, config, folder)


def test_projected_prefix(tmp_path: Path) -> None:
    """The reference is the file loaded without its projection, as PEFT itself does to serve it."""
    for family in ("llama", "gpt2"):
        model = tiny_model(family)
        folder = save_projected_prefix(model, tmp_path / family)
        check_mixed_batch(model, [folder], tmp_path / f"{family}-others")


def multitask(model: nn.Module, folder: Path, task: int | None) -> Path:
    config = MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=3, num_ranks=2, **CAUSAL)
    save(model, config, folder)
    if task is not None:
        change_config(folder, graftwork_task_id=task)
    return folder


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_multitask_prompt_tuning_folds_one_task(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folders = [multitask(model, tmp_path / str(task), task) for task in range(3)]
    engine = TinyEngine(model)
    prompts = [PROMPTS[0]] * 3
    tree = load_peft(model, folders[0])
    logits = engine.run_logits(folders, prompts)
    for task in range(3):
        with torch.no_grad(), peft_remarks_ignored():
            expected = tree(
                input_ids=torch.tensor([PROMPTS[0]]),
                task_ids=torch.tensor([task]),
                use_cache=False,
            ).logits[0, -len(PROMPTS[0]) :]
        torch.testing.assert_close(logits[task], expected, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(logits[0], logits[1], atol=10 * TOLERANCE)


@pytest.mark.parametrize("task", [None, 3])
def test_a_task_must_be_chosen_among_those_there_are(task: int | None, tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = multitask(model, tmp_path, task)
    with pytest.raises(InvalidArtifact, match="3 tasks"):
        TinyEngine(model).lower(folder)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_prefix_cache_and_preemption(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS[name], tmp_path / name)
    engine = TinyEngine(model)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[3], PROMPTS[0]]
    folders = [folder, folder, folder, None]
    answers, scheduler = engine.generate(folders, prompts, 12, max_running=2, num_blocks=9)
    for row, prompt, answer in zip(folders, prompts, answers, strict=True):
        expected, _ = reference_greedy(model, row, prompt, 12)
        assert answer == expected
    assert scheduler.num_preemptions
    assert scheduler.blocks.num_hit_tokens


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("prompt", "num_virtual_tokens", 6),
        ("p_tuning_mlp", "token_dim", 16),
        ("cpt", "num_virtual_tokens", 3),
        ("prefix", "num_virtual_tokens", 4),
        ("prefix", "num_layers", 3),
    ],
)
def test_config_and_tensors_must_agree(name: str, field: str, value: int, tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS[name], tmp_path)
    change_config(folder, **{field: value})
    with pytest.raises(InvalidArtifact):
        TinyEngine(model).lower(folder)


def test_a_prefix_for_another_shape_of_heads_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS["prefix"], tmp_path)
    change_config(folder, num_attention_heads=4)
    with pytest.raises(WrongBase, match="num_attention_heads"):
        TinyEngine(model).lower(folder)


def test_the_reference_reads_the_prefix(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS["prefix"], tmp_path)
    difference = reference_logits(model, folder, [5, 6]) - reference_logits(model, None, [5, 6])
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("chunk_size", [1000, 3])
def test_nothing_predicts_the_first_token_after_a_prefix(chunk_size: int, tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS["prefix"], tmp_path)
    logprobs = TinyEngine(model).prompt_logprobs(folder, PROMPTS[0], chunk_size)
    assert [logprob.token_id for logprob in logprobs] == PROMPTS[0]
    assert logprobs[0].logprob is None
    expected = reference_logits(model, folder, PROMPTS[0]).log_softmax(-1)
    for position, logprob in enumerate(logprobs[1:]):
        wanted = float(expected[position, PROMPTS[0][position + 1]])
        assert logprob.logprob == pytest.approx(wanted, abs=TOLERANCE)
