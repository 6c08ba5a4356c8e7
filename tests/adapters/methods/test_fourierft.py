import pytest
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from hypothesis import given
from hypothesis import strategies as st
from peft import FourierFTConfig

from tests.adapters.helpers import edit_config, lowered_from, make_peft
from tests.adapters.methods.parity import (
    BASES,
    check_equals_peft,
    dtypes,
    few_examples,
    patterns,
    target_fields,
)


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_fourierft_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = FourierFTConfig(
        n_frequency=data.draw(st.integers(1, 128)),
        n_frequency_pattern=data.draw(
            patterns(base_name, st.integers(1, 128)).filter(lambda found: len(found) < 2)
        ),
        scaling=data.draw(st.sampled_from([1.0, 150.0])),
        random_loc_seed=data.draw(st.sampled_from([0, 777])),
        bias=data.draw(st.sampled_from(["none", "fourierft_only"])),
        fan_in_fan_out=base_name == "gpt2",
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(BASES[base_name], config, dtype=data.draw(dtypes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"n_frequency": 11}, WrongBase, "fourierft_spectrum"),
        ({"n_frequency": 10**6}, InvalidArtifact, "do not fit"),
        ({"random_loc_seed": None}, InvalidArtifact, "random_loc_seed"),
        ({"random_loc_seed": -1}, InvalidArtifact, "random_loc_seed"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    make_peft(BASES["llama"], FourierFTConfig(n_frequency=10, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])
