import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact, RankOverCap, WrongBase
from graftwork_adapters.folder import WEIGHTS_FILE
from hypothesis import given
from hypothesis import strategies as st
from peft import VeraConfig
from safetensors.torch import load_file, save_file

from tests.adapters.helpers import edit_config, lowered_from, make_peft
from tests.adapters.methods.parity import (
    BASES,
    check_equals_peft,
    dtypes,
    few_examples,
    target_fields,
)


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_vera_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = VeraConfig(
        r=data.draw(st.integers(1, 40)),
        projection_prng_key=data.draw(st.sampled_from([0, 5])),
        bias=data.draw(st.sampled_from(["none", "vera_only"])),
        fan_in_fan_out=base_name == "gpt2",
        **data.draw(target_fields(base_name)),
    )
    config.save_projection = data.draw(st.booleans())  # the constructor warns of False
    check_equals_peft(BASES[base_name], config, dtype=data.draw(dtypes))


def make_vera(folder, *, save_projection=True):
    config = VeraConfig(r=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    config.save_projection = save_projection
    make_peft(BASES["llama"], config, folder)
    return folder


def test_projections_are_held_once_saved_or_drawn(tmp_path):
    adapters = [
        lowered_from(make_vera(tmp_path / str(saved), save_projection=saved), BASES["llama"])
        for saved in (True, False)
    ]
    shared = {
        id(module.added_term.shared) for adapter in adapters for module in adapter.modules.values()
    }
    assert len(shared) == 1
    projections = next(iter(adapters[0].modules.values())).added_term.shared
    own = adapters[0].num_bytes - projections.a.nbytes - projections.b.nbytes
    assert own == 4 * sum(6 + (16 if "q_proj" in name else 24) for name in adapters[0].modules)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"r": 5}, WrongBase, "vera_lambda_d"),
        ({"r": 10**9}, RankOverCap, "rank 1000000000"),
        ({"save_projection": False}, InvalidArtifact, "save_projection"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    edit_config(make_vera(tmp_path), **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])


def test_projections_of_another_shape_or_half_missing_are_refused(tmp_path):
    tensors = load_file(make_vera(tmp_path) / WEIGHTS_FILE)
    tensors["base_model.vera_A"] = torch.zeros(6, 17)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(WrongBase, match="vera_A"):
        lowered_from(tmp_path, BASES["llama"])
    del tensors["base_model.vera_A"]
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(InvalidArtifact, match="save_projection"):
        lowered_from(tmp_path, BASES["llama"])
