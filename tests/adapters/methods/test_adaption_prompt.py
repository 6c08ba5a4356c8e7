"""LLaMA-Adapter on the families that PEFT defines it for."""

from pathlib import Path

import pytest
from graftwork_adapters.errors import InvalidArtifact, WrongBase, ZeroEffect
from peft import AdaptionPromptConfig
from torch import nn

from tests.adapters.methods.helpers import check_mixed_batch
from tests.adapters.methods.test_sequence_methods import change_config
from tests.support.engine import TinyEngine
from tests.support.peft_adapters import save_random_adapter
from tests.support.tiny_models import tiny_model

BASES: dict[str, dict[str, object]] = {
    "llama": {},
    "llama_with_bias": {"attention_bias": True},
    "gpt2": {},
}


def base(name: str) -> nn.Module:
    return tiny_model(name.partition("_")[0], **BASES[name])


def save(model: nn.Module, folder: Path, *, layers: int, seed: int = 1, gate: float = 0.8) -> Path:
    config = AdaptionPromptConfig(adapter_len=4, adapter_layers=layers, task_type="CAUSAL_LM")
    return save_random_adapter(model, config, folder, seed=seed, strength=gate)


@pytest.mark.parametrize("name", BASES)
def test_equals_peft(name: str, tmp_path: Path) -> None:
    model = base(name)
    folders = [save(model, tmp_path / f"{layers}", layers=layers, seed=layers) for layers in (1, 2)]
    check_mixed_batch(model, folders, tmp_path)


def test_other_families_are_refused(tmp_path: Path) -> None:
    folder = save(base("llama"), tmp_path, layers=1)
    with pytest.raises(WrongBase, match="qwen2"):
        TinyEngine(tiny_model("qwen2")).lower(folder)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("adapter_len", 5, InvalidArtifact),
        ("adapter_layers", 2, InvalidArtifact),
        ("adapter_layers", 3, WrongBase),
        ("target_modules", "mlp", WrongBase),
    ],
)
def test_a_config_that_contradicts(
    field: str, value: object, error: type[Exception], tmp_path: Path
) -> None:
    model = base("llama")
    folder = save(model, tmp_path, layers=1)
    change_config(folder, **{field: value})
    with pytest.raises(error):
        TinyEngine(model).lower(folder)


def test_closed_gates(tmp_path: Path) -> None:
    model = base("llama")
    folder = save(model, tmp_path, layers=2, gate=0.0)
    with pytest.raises(ZeroEffect):
        TinyEngine(model).lower(folder)
