"""LN tuning, modules_to_save and trainable tokens: parts of the base that are the adapter's own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase, ZeroEffect
from peft import (
    DeloraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    MissConfig,
    PeftConfig,
    RoadConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
)
from safetensors.torch import load_file, save_file
from torch import nn

from tests.adapters.methods.helpers import FAMILIES, check_mixed_batch, targets
from tests.adapters.methods.test_sequence_methods import change_config
from tests.support.engine import TinyEngine
from tests.support.peft_adapters import lora_config, save_random_adapter
from tests.support.tiny_models import tiny_model

TOKENS = [5, 7, 9, 20, 30, 40]
CAUSAL = {"task_type": "CAUSAL_LM"}


def is_gpt2(model: nn.Module) -> bool:
    return model.config.model_type == "gpt2"


def saving_lora(model: nn.Module, modules: list[str], **fields: object) -> LoraConfig:
    return lora_config(4, target_modules=targets(model), modules_to_save=modules, **fields)


def save(model: nn.Module, config: PeftConfig, folder: Path, seed: int = 1) -> Path:
    return save_random_adapter(model, config, folder, seed=seed, strength=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    norm = "ln_1" if is_gpt2(model) else "input_layernorm"
    final = "ln_f" if is_gpt2(model) else "norm"
    folders = [
        save(model, LNTuningConfig(**CAUSAL), tmp_path / "all"),
        save(model, LNTuningConfig(target_modules=[final], **CAUSAL), tmp_path / "final", 2),
        save(model, LNTuningConfig(target_modules=rf".*\.0\.{norm}", **CAUSAL), tmp_path / "0", 3),
    ]
    check_mixed_batch(model, folders, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_modules(family: str, tied: bool, tmp_path: Path) -> None:
    """Where head and embedding are one tensor, replacing one leaves the other as it is."""
    model = tiny_model(family, tie_word_embeddings=tied)
    embedding = "wte" if is_gpt2(model) else "embed_tokens"
    others = ["ln_f", "wpe", "c_fc"] if is_gpt2(model) else ["norm", "k_proj", "mlp.up_proj"]
    folders = [
        save(model, saving_lora(model, modules), tmp_path / f"saved{index}", index)
        for index, modules in enumerate([["lm_head"], [embedding], ["lm_head", embedding]])
    ]
    config = saving_lora(model, others, exclude_modules=["c_fc"] if is_gpt2(model) else None)
    folders.append(save(model, config, tmp_path / "others", 4))
    check_mixed_batch(model, folders, tmp_path)


def test_a_saved_module_that_holds_others(tmp_path: Path) -> None:
    model = tiny_model("llama")
    config = lora_config(4, target_modules=["q_proj"], modules_to_save=["mlp"])
    check_mixed_batch(model, [save(model, config, tmp_path / "mlp")], tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        LoHaConfig,
        partial(MissConfig, r=4),
        partial(DeloraConfig, r=4),
        partial(VBLoRAConfig, num_vectors=6, vector_length=4, save_only_topk_weights=True),
        partial(IA3Config, feedforward_modules=["down_proj"]),
        partial(RoadConfig, group_size=8),
    ],
)
def test_saved_modules_beside_other_methods(
    make: Callable[..., PeftConfig], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    config = make(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], **CAUSAL)
    folder = save(model, config, tmp_path / "both")
    lowered = TinyEngine(model).lower(folder)
    assert lowered.modules
    assert list(lowered.replaced) == ["lm_head"]
    check_mixed_batch(model, [folder], tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_trained_tokens(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    folders = [
        save(model, TrainableTokensConfig(token_indices=TOKENS, **CAUSAL), tmp_path / "alone"),
        save(
            model,
            lora_config(4, target_modules=targets(model), trainable_token_indices=TOKENS[::-1]),
            tmp_path / "lora_and_tokens",
            2,
        ),
    ]
    if not is_gpt2(model):
        by_module = {"embed_tokens": TOKENS, "lm_head": TOKENS[1:3]}
        if not tied:
            config = lora_config(
                4, target_modules=targets(model), trainable_token_indices=by_module
            )
            folders.append(save(model, config, tmp_path / "by_module", 3))
    check_mixed_batch(model, folders, tmp_path)


@pytest.mark.parametrize("quantization", ["int8"])
def test_a_quantized_base_serves_saved_modules(quantization: str, tmp_path: Path) -> None:
    model = tiny_model("llama", hidden_size=64)
    engine = TinyEngine(model, quantization=quantization)
    folders = [
        save(model, saving_lora(model, ["lm_head", "embed_tokens"]), tmp_path / "saved"),
        save(model, LNTuningConfig(**CAUSAL), tmp_path / "norms", 2),
    ]
    alone = [engine.run_logits([folder], [[5, 6, 7]])[0] for folder in folders]
    together = engine.run_logits([*folders, None], [[5, 6, 7]] * 3, chunk_size=2)
    for one, row in zip(alone, together[:2], strict=True):
        assert (one - row).abs().max() < 1e-3


def change_tensors(folder: Path, drop: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: t for name, t in load_file(path).items() if drop not in name}
    save_file(tensors, path)


class TestRefusals:
    model = tiny_model("llama")

    @pytest.fixture
    def engine(self) -> TinyEngine:
        return TinyEngine(self.model)

    def test_a_saved_module_without_tensors(self, engine: TinyEngine, tmp_path: Path) -> None:
        folder = save(self.model, saving_lora(self.model, ["lm_head"]), tmp_path)
        change_tensors(folder, "lm_head")
        with pytest.raises(InvalidArtifact, match="lm_head"):
            engine.lower(folder)

    def test_a_saved_module_that_the_config_does_not_name(
        self, engine: TinyEngine, tmp_path: Path
    ) -> None:
        folder = save(self.model, saving_lora(self.model, ["lm_head"]), tmp_path)
        change_config(folder, modules_to_save=None)
        with pytest.raises((InvalidArtifact, WrongBase), match="lm_head"):
            engine.lower(folder)

    def test_a_module_that_the_base_does_not_have(self, engine: TinyEngine, tmp_path: Path) -> None:
        folder = save(self.model, saving_lora(self.model, ["lm_head"]), tmp_path)
        change_config(folder, modules_to_save=["lm_head", "projector"])
        with pytest.raises(WrongBase, match="projector"):
            engine.lower(folder)

    def test_norms_as_they_were(self, engine: TinyEngine, tmp_path: Path) -> None:
        folder = save_random_adapter(
            self.model, LNTuningConfig(**CAUSAL), tmp_path, seed=1, strength=0.1
        )
        path = folder / "adapter_model.safetensors"
        own = dict(self.model.named_parameters())
        save_file(
            {
                name: own[name.removeprefix("base_model.model.").replace(".ln_tuning_layers", "")]
                for name in load_file(path)
            },
            path,
        )
        with pytest.raises(ZeroEffect):
            engine.lower(folder)

    def test_norms_missing(self, engine: TinyEngine, tmp_path: Path) -> None:
        folder = save(self.model, LNTuningConfig(**CAUSAL), tmp_path)
        change_tensors(folder, "layers.1.input_layernorm")
        with pytest.raises(InvalidArtifact, match="input_layernorm"):
            engine.lower(folder)

    @pytest.mark.parametrize("tokens", [[5, 7], [5, 5, 9, 20, 30, 40], [5, 7, 9, 20, 30, -1]])
    def test_tokens_that_contradict_the_tensors(
        self, tokens: list[int], engine: TinyEngine, tmp_path: Path
    ) -> None:
        config = TrainableTokensConfig(token_indices=TOKENS, **CAUSAL)
        folder = save(self.model, config, tmp_path)
        change_config(folder, token_indices=tokens)
        with pytest.raises((InvalidArtifact, WrongBase)):
            engine.lower(folder)

    def test_tokens_of_an_adapted_head(self, engine: TinyEngine, tmp_path: Path) -> None:
        config = lora_config(
            4, target_modules=["lm_head"], trainable_token_indices={"embed_tokens": TOKENS}
        )
        folder = save(self.model, config, tmp_path)
        assert engine.lower(folder).head_rows is None
        tied = tiny_model("llama", tie_word_embeddings=True)
        with pytest.raises(UnsupportedField, match="trainable_token_indices"):
            TinyEngine(tied).lower(folder)
