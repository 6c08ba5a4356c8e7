"""Folders that AdapterHub's `adapters` saves, imported and converted."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from graftwork_adapters.adapterhub import convert_folder, import_folder, is_adapterhub
from graftwork_adapters.bottleneck import BottleneckConfig
from graftwork_adapters.convert_command import convert
from graftwork_adapters.errors import InvalidArtifact, PathNotAllowed, UnsupportedField
from graftwork_adapters.limits import AdapterLimits
from safetensors.torch import load_file, save_file

from tests.adapters.methods.test_bottleneck import save
from tests.support.engine import TinyEngine
from tests.support.tiny_models import tiny_model

LIMITS = AdapterLimits()
CONFIGS = {
    "houlsby": {"mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"},
    "pfeiffer": {"mh_adapter": False, "original_ln_before": True, "non_linearity": "relu"},
}
DEFAULTS = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "inv_adapter": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "original_ln_after": True,
    "output_adapter": True,
    "phm_layer": False,
    "reduction_factor": 4,
    "residual_before_ln": True,
    "scaling": 1.0,
    "use_gating": False,
}
NAMES = {"down": "adapter_down.0", "up": "adapter_up"}


def save_as_adapterhub(family: str, placement: str, folder: Path, **changes: object) -> Path:
    """The same weights in our style, in `folder`/ours, and in AdapterHub's, in `folder`/hub."""
    activation = CONFIGS[placement]["non_linearity"]
    config = BottleneckConfig(placement, activation, reduction_factor=4)
    save(tiny_model(family), config, folder / "ours")
    tensors = {}
    for key, tensor in load_file(folder / "ours/adapter_model.safetensors").items():
        layer, role, part, kind = key.removeprefix("base_model.model.").rsplit(".", 3)
        tensors[f"{layer}.{role}s.adapters.task.{NAMES[part]}.{kind}"] = tensor
    hub = folder / "hub"
    hub.mkdir()
    fields = {
        "config": {**DEFAULTS, **CONFIGS[placement], **changes},
        "hidden_size": 32,
        "model_type": family,
        "name": "task",
        "version": "adapters.1.3.0",
    }
    (hub / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, hub / "adapter.safetensors")
    return hub


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", CONFIGS)
@pytest.mark.parametrize("pickled", [False, True])
def test_converted_folders_serve_alike(
    family: str, placement: str, pickled: bool, tmp_path: Path
) -> None:
    hub = save_as_adapterhub(family, placement, tmp_path)
    assert is_adapterhub(hub)
    assert not is_adapterhub(tmp_path / "ours")
    if pickled:
        torch.save(load_file(hub / "adapter.safetensors"), hub / "pytorch_adapter.bin")
        (hub / "adapter.safetensors").unlink()
        assert not is_adapterhub(hub)
    convert_folder(hub, tmp_path / "converted", LIMITS)
    engine = TinyEngine(tiny_model(family))
    folders = [tmp_path / "ours", tmp_path / "converted"]
    ours, converted = engine.run_logits(folders, [[5, 6, 7]] * 2)
    torch.testing.assert_close(ours, converted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_parallel", True),
        ("phm_layer", True),
        ("inv_adapter", "nice"),
        ("use_gating", True),
        ("scaling", "learned"),
        ("reduction_factor", {"default": 16}),
        ("non_linearity", "mish"),
        ("original_ln_after", False),
        ("output_adapter", False),
    ],
)
def test_architectures_of_another_arithmetic(field: str, value: object, tmp_path: Path) -> None:
    hub = save_as_adapterhub("llama", "houlsby", tmp_path, **{field: value})
    with pytest.raises(UnsupportedField, match=field):
        import_folder(hub, [tmp_path], LIMITS)


def test_tensors_of_another_kind(tmp_path: Path) -> None:
    hub = save_as_adapterhub("llama", "houlsby", tmp_path)
    save_file({"model.layers.0.loras.task.lora_A": torch.ones(2, 2)}, hub / "adapter.safetensors")
    with pytest.raises(InvalidArtifact, match="lora_A"):
        import_folder(hub, [tmp_path], LIMITS)


def test_a_pickle_that_is_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    hub = save_as_adapterhub("llama", "houlsby", tmp_path)
    (hub / "adapter.safetensors").unlink()
    torch.save({"key": Path("x")}, hub / "pytorch_adapter.bin")
    with pytest.raises(InvalidArtifact, match="more than tensors"):
        convert_folder(hub, tmp_path / "converted", LIMITS)
    assert not (tmp_path / "converted").exists()


def test_files_outside_the_roots(tmp_path: Path) -> None:
    hub = save_as_adapterhub("llama", "houlsby", tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    with pytest.raises(PathNotAllowed):
        import_folder(hub, [tmp_path / "root"], LIMITS)


def test_the_command(tmp_path: Path) -> None:
    hub = save_as_adapterhub("llama", "pfeiffer", tmp_path)
    result = CliRunner().invoke(convert, [str(hub), str(tmp_path / "converted")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "converted/adapter_config.json").exists()
    (hub / "adapter.safetensors").unlink()
    result = CliRunner().invoke(convert, [str(hub), str(tmp_path / "again")])
    assert result.exit_code == 1
    assert "pytorch_adapter.bin" in result.stderr
