"""Every method that changes linear modules, in one batch with LoRA and the base, equals PEFT."""

from pathlib import Path

import pytest
import torch
from graftwork_server.kernels.segments import Segments
from graftwork_server.packed_adapter import pack_adapter
from peft import (
    BOFTConfig,
    C3AConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LoKrConfig,
    OFTConfig,
    PeftConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    VeraConfig,
)

from tests.support.engine import TinyEngine
from tests.support.peft_adapters import lora_config, reference_logits, save_random_adapter
from tests.support.tiny_models import tiny_model, with_linears

# PEFT's SHiRA remarks on sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
TOLERANCE = 1e-3
FAMILIES = ["llama", "gpt2", "qwen2", "gemma"]
TARGETS = {"gpt2": ["c_attn", "c_fc", "mlp.c_proj"]}
PROMPTS = [[5 + row, 6, 7, 20 + 3 * row, 9][: 3 + row % 3] for row in range(20)]


def configs(family: str) -> dict[str, PeftConfig]:
    targets = TARGETS.get(family, ["q_proj", "v_proj", "up_proj", "down_proj"])
    fields = {"target_modules": targets, "task_type": "CAUSAL_LM"}
    return {
        "lora": lora_config(4, target_modules=targets),
        "ia3": IA3Config(feedforward_modules=targets[-1:], **fields),
        "road": RoadConfig(variant="road_4", group_size=8, **fields),
        "hra": HRAConfig(r=4, **fields),
        "oft": OFTConfig(oft_block_size=8, **fields),
        "oft_shared": OFTConfig(oft_block_size=8, block_share=True, **fields),
        "boft": BOFTConfig(boft_block_size=4, **fields),
        "lokr": LoKrConfig(r=4, **fields),
        "c3a": C3AConfig(block_size=8, **fields),
        "shira": ShiraConfig(r=2, **fields),
        "fourierft": FourierFTConfig(n_frequency=60, **fields),
        "vera": VeraConfig(r=12, **fields),
        "vera_too": VeraConfig(r=12, **fields),
        "randlora": RandLoraConfig(r=8, randlora_alpha=2, **fields),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_of_all_methods(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    # PEFT refuses GPT-2's Conv1D for most of these: there the reference has equivalent nn.Linears.
    reference = with_linears(model)
    folders: list[Path | None] = [None]
    for seed, (name, config) in enumerate(configs(family).items()):
        folders.append(
            save_random_adapter(reference, config, tmp_path / name, seed=seed, strength=0.1)
        )
    folders += [None, tmp_path / "vera", tmp_path / "oft"]
    prompts = PROMPTS[: len(folders)]
    expected = [
        reference_logits(reference, folder, prompt)
        for folder, prompt in zip(folders, prompts, strict=True)
    ]
    plain = [reference_logits(reference, None, prompt) for prompt in prompts]
    engine = TinyEngine(model)
    for chunk_size in (1000, 2):
        found = engine.run_logits(folders, prompts, chunk_size)
        for row, folder in enumerate(folders):
            difference = (found[row] - expected[row]).abs().max()
            assert difference < TOLERANCE, (folder, difference)
            if folder is not None:
                assert (found[row] - plain[row]).abs().max() > 10 * TOLERANCE, folder


def test_a_cleared_slot_leaves_nothing(tmp_path: Path) -> None:
    model = tiny_model("llama")
    engine = TinyEngine(model)
    names = [f"model.layers.1.{name}" for name in ("self_attn.q_proj", "mlp.down_proj")]
    segments = Segments.from_lengths([(-1, 1), (0, 2)])

    def outputs() -> list[torch.Tensor]:
        torch.manual_seed(0)
        modules = [engine.base.model.get_submodule(name) for name in names]
        with torch.inference_mode(), engine.adapters.step(segments, segments):
            return [module(torch.randn(3, module.base.in_features)) for module in modules]

    before = outputs()
    for seed, (name, config) in enumerate(configs("llama").items()):
        folder = save_random_adapter(model, config, tmp_path / name, seed=seed, strength=0.1)
        engine.adapters.place(0, pack_adapter(engine.lower(folder), engine.base, None))
        for changed, plain in zip(outputs(), before, strict=True):
            assert torch.equal(changed[0], plain[0])
            assert not torch.allclose(changed[1:], plain[1:], atol=1e-3), name
        engine.adapters.clear(0)
        assert all(map(torch.equal, outputs(), before)), name
