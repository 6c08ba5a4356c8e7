import pytest
from graftwork_adapters.errors import InvalidArtifact, RankOverCap, WrongBase
from graftwork_adapters.folder import WEIGHTS_FILE
from hypothesis import given
from hypothesis import strategies as st
from peft import RandLoraConfig
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
def test_randlora_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = RandLoraConfig(
        r=data.draw(st.integers(1, 20)),
        randlora_alpha=data.draw(st.sampled_from([4, 8])),
        projection_prng_key=data.draw(st.sampled_from([0, 5])),
        sparse=data.draw(st.booleans()),
        very_sparse=data.draw(st.booleans()),
        bias=data.draw(st.sampled_from(["none", "randlora_only"])),
        fan_in_fan_out=base_name == "gpt2",
        **data.draw(target_fields(base_name)),
    )
    config.save_projection = data.draw(st.booleans())  # the constructor warns of False
    check_equals_peft(BASES[base_name], config, dtype=data.draw(dtypes))


def make_randlora(folder):
    config = RandLoraConfig(r=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    make_peft(BASES["llama"], config, folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"r": 5}, WrongBase, "randlora_lambda"),
        ({"r": 10**9}, RankOverCap, "rank 1000000000"),
        ({"save_projection": False}, InvalidArtifact, "save_projection"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    edit_config(make_randlora(tmp_path), **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])


def test_copies_of_the_bases_that_differ_are_refused(tmp_path):
    tensors = load_file(make_randlora(tmp_path) / WEIGHTS_FILE)
    key = next(key for key in tensors if key.endswith("q_proj.randlora_A"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(InvalidArtifact, match="differs from the shared randlora_A"):
        lowered_from(tmp_path, BASES["llama"])
