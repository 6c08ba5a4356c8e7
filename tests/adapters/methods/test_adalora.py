import pytest
from graftwork_adapters.errors import InvalidArtifact
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig
from safetensors.torch import load_file, save_file

from tests.adapters.helpers import (
    check_parity,
    edit_config,
    load_peft,
    lowered_from,
    make_peft,
)
from tests.adapters.methods.parity import (
    BASES,
    check_equals_peft,
    dtypes,
    few_examples,
    target_fields,
)

Q0 = "model.layers.0.self_attn.q_proj"


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_adalora_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = AdaLoraConfig(
        init_r=data.draw(st.integers(1, 8)),
        lora_alpha=data.draw(st.sampled_from([1, 3, 8, 0.7, 0])),
        total_step=10,
        bias=data.draw(st.sampled_from(["none", "lora_only"])),
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(BASES[base_name], config, dtype=data.draw(dtypes))


def prune(folder, masks):
    """As PEFT saves an AdaLoRA whose ranks it has shared out."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for module, mask in masks.items():
        kept = [index for index, flag in enumerate(mask) if flag]
        prefix = f"base_model.model.{module}.lora_"
        for part in "AE":
            tensors[prefix + part] = tensors[prefix + part][kept].contiguous()
        tensors[f"{prefix}B"] = tensors[f"{prefix}B"][:, kept].contiguous()
    save_file(tensors, path)
    edit_config(folder, rank_pattern={f"{module}.lora_E": mask for module, mask in masks.items()})


def saved(folder, **fields):
    config = AdaLoraConfig(
        init_r=4,
        total_step=10,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        **fields,
    )
    make_peft(BASES["llama"], config, folder)


@few_examples
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.sampled_from([8, 0]))
def test_pruned_ranks_equal_peft(tmp_path_factory, mask, alpha):
    folder = tmp_path_factory.mktemp("adalora")
    saved(folder, lora_alpha=alpha)
    prune(folder, {Q0: mask})
    adapter = lowered_from(folder, BASES["llama"])
    assert (Q0 in adapter.modules) == any(mask)
    check_parity(load_peft(BASES["llama"], folder), BASES["llama"], adapter)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({f"{Q0}.lora_E": [True]}, "list of init_r, 4, booleans"),
        ({f"{Q0}.lora_E": 2}, "list of init_r, 4, booleans"),
        ({f"{Q0}.lora_E": [True, True, False, False]}, "rank 4, but .* says 2"),
        ({"model.layers.7.q_proj.lora_E": [True] * 4}, "speaks of model.layers.7"),
        ([True], "object or null"),
    ],
)
def test_a_rank_pattern_that_the_tensors_contradict_is_refused(tmp_path, pattern, message):
    saved(tmp_path)
    edit_config(tmp_path, rank_pattern=pattern)
    with pytest.raises(InvalidArtifact, match=message):
        lowered_from(tmp_path, BASES["llama"])
