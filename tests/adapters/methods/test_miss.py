import pytest
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from hypothesis import given
from hypothesis import strategies as st
from peft import MissConfig

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
def test_miss_equals_peft(base_name: str, data: st.DataObject) -> None:
    variant = data.draw(st.sampled_from([True, False, "bat", "mini"]))
    fields = data.draw(target_fields(base_name))
    # Ranks that divide no dimension are allowed, but for "bat".
    rank = data.draw(st.sampled_from([2, 4, 8]) if variant == "bat" else st.integers(1, 8))
    config = MissConfig(
        r=rank,
        mini_r=data.draw(st.sampled_from([1, 2, 4, 8])),
        init_weights=variant,
        bias=data.draw(st.sampled_from(["none", "MiSS_only"])) if variant != "bat" else "none",
        **fields,
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


def saved(folder, **fields):
    settings = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **fields}
    make_peft(BASES["llama"], MissConfig(**settings), folder)


def test_a_variant_of_another_shape_is_refused(tmp_path):
    saved(tmp_path)
    edit_config(tmp_path, init_weights="mini", mini_r=2)
    with pytest.raises(WrongBase, match=r"miss_block of .* has shape"):
        lowered_from(tmp_path, BASES["llama"])


def test_a_variant_that_is_not_known_is_refused(tmp_path):
    saved(tmp_path)
    edit_config(tmp_path, init_weights="bone")
    with pytest.raises(UnsupportedField, match="init_weights"):
        lowered_from(tmp_path, BASES["llama"])


@pytest.mark.parametrize("fields", [{"init_weights": "bat", "r": 5}, {"r": 17}])
def test_a_rank_that_does_not_fit_the_module_is_refused(tmp_path, fields):
    saved(tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(InvalidArtifact, match=r"r is 17|r, 5"):
        lowered_from(tmp_path, BASES["llama"])
