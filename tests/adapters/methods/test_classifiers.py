"""Classifiers and reward models: SEQ_CLS adapters of several methods, scored in one batch."""

from pathlib import Path

import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from peft import (
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from tests.adapters.methods.helpers import FAMILIES, PROMPTS, TOLERANCE, targets
from tests.adapters.methods.test_sequence_methods import change_config
from tests.support.engine import TinyEngine
from tests.support.peft_adapters import load_peft, peft_remarks_ignored, save_random_adapter
from tests.support.tiny_models import tiny_model

CLASSIFIER = {"task_type": "SEQ_CLS"}


def classifier_of(model: nn.Module, num_labels: int) -> nn.Module:
    """PEFT's base for such adapters, over the same backbone."""
    labels = {index: f"LABEL_{index}" for index in range(num_labels)}
    fields = {**model.config.to_dict(), "id2label": labels, "label2id": None}
    config = model.config.__class__(**fields)
    with peft_remarks_ignored():
        classifier = AutoModelForSequenceClassification.from_config(config)
    prefix = model.base_model_prefix
    setattr(classifier, prefix, getattr(model, prefix))
    return classifier.eval()


def configs(model: nn.Module) -> dict[str, PeftConfig]:
    return {
        "lora": LoraConfig(r=4, target_modules=targets(model), **CLASSIFIER),
        "norms": LNTuningConfig(**CLASSIFIER),
        "prompt": PromptTuningConfig(num_virtual_tokens=4, **CLASSIFIER),
        "p_tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, **CLASSIFIER),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, **CLASSIFIER),
    }


def expected_scores(classifier: nn.Module, folder: Path, prompt: list[int]) -> torch.Tensor:
    tree, inputs = load_peft(classifier, folder), torch.tensor([prompt])
    with torch.no_grad(), peft_remarks_ignored():
        if tree.peft_config["default"].peft_type == "PREFIX_TUNING":
            # PEFT's forward refuses this transformers here; it would compute the same.
            return tree.base_model(inputs, past_key_values=tree.get_prompt(1)).logits[0]
        return tree(input_ids=inputs, use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_in_one_batch(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    folders, wanted, prompts = [], [], []
    for index, (name, config) in enumerate(configs(model).items()):
        classifier = classifier_of(model, num_labels=1 + index % 3)
        folder = save_random_adapter(classifier, config, tmp_path / name, seed=index, strength=0.3)
        prompt = PROMPTS[index % len(PROMPTS)]
        folders.append(folder)
        prompts.append(prompt)
        wanted.append(expected_scores(classifier, folder, prompt))
    engine = TinyEngine(model)
    for max_tokens_per_step in (64, 5):
        scores = engine.classify(folders, prompts, max_tokens_per_step)
        for folder, score, expected in zip(folders, scores, wanted, strict=True):
            torch.testing.assert_close(
                torch.tensor(score),
                expected,
                atol=TOLERANCE,
                rtol=0,
                msg=lambda m, f=folder: f"{f}: {m}",
            )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    classifier = classifier_of(tiny_model("llama"), num_labels=3)
    config = LoraConfig(r=4, target_modules=["q_proj"], **CLASSIFIER)
    return save_random_adapter(classifier, config, tmp_path / "lora", seed=1)


@pytest.fixture(scope="module")
def engine() -> TinyEngine:
    return TinyEngine(tiny_model("llama"))


def test_labels_have_names(saved: Path, engine: TinyEngine) -> None:
    assert engine.lower(saved).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    change_config(saved, graftwork_labels=["bad", "fair", "good"])
    assert engine.lower(saved).labels == ("bad", "fair", "good")


@pytest.mark.parametrize("labels", [["bad", "good"], ["bad", "bad", "good"]])
def test_labels_that_contradict_the_head(
    labels: list[str], saved: Path, engine: TinyEngine
) -> None:
    change_config(saved, graftwork_labels=labels)
    with pytest.raises(InvalidArtifact, match="labels"):
        engine.lower(saved)


def test_a_classifier_without_a_head(saved: Path, engine: TinyEngine) -> None:
    path = saved / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(path).items() if "score" not in name}, path)
    with pytest.raises(InvalidArtifact, match="score or classifier"):
        engine.lower(saved)


def test_a_head_of_another_width(saved: Path, engine: TinyEngine) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.score.weight"] = torch.ones(3, 16)
    save_file(tensors, path)
    with pytest.raises(WrongBase, match="labels"):
        engine.lower(saved)


def test_a_head_that_the_task_does_not_have(saved: Path, engine: TinyEngine) -> None:
    change_config(saved, task_type="CAUSAL_LM", modules_to_save=None)
    with pytest.raises(InvalidArtifact):
        engine.lower(saved)
