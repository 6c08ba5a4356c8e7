import pytest
from graftwork_adapters.canonical_linear import Kronecker
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.lokr import _two_factors
from hypothesis import given
from hypothesis import strategies as st
from peft import LoKrConfig
from peft.tuners.lokr.layer import factorization

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
def test_lokr_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = LoKrConfig(
        r=data.draw(st.integers(1, 6)),
        alpha=data.draw(st.sampled_from([1, 3, 8, 0.7])),
        decompose_both=data.draw(st.booleans()),
        decompose_factor=data.draw(st.sampled_from([-1, 1, 2, 3, 8])),
        rank_pattern=data.draw(patterns(base_name, st.integers(1, 6))),
        alpha_pattern=data.draw(patterns(base_name, st.integers(1, 6))),
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@given(st.integers(1, 600), st.sampled_from([-1, 1, 2, 3, 8, 100]))
def test_two_factors_are_those_of_peft(dimension: int, factor: int) -> None:
    assert _two_factors(dimension, factor) == factorization(dimension, factor)


def test_the_cheaper_form_is_chosen(tmp_path):
    small = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    pair = check_equals_peft(BASES["llama"], LoKrConfig(r=1, decompose_factor=1, **small))
    assert all(module.low_rank is not None for module in pair.modules.values())
    kronecker = check_equals_peft(BASES["llama"], LoKrConfig(r=4, **small))
    assert all(isinstance(m.added_term, Kronecker) for m in kronecker.modules.values())


def test_parts_that_the_config_does_not_ask_for_are_refused(tmp_path):
    make_peft(BASES["llama"], LoKrConfig(r=4, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, r=1)
    with pytest.raises(InvalidArtifact, match="lokr_w2"):
        lowered_from(tmp_path, BASES["llama"])
    edit_config(tmp_path, r=4, decompose_factor=0)
    with pytest.raises(InvalidArtifact, match="decompose_factor"):
        lowered_from(tmp_path, BASES["llama"])


def test_an_integer_past_every_float_is_refused(tmp_path):
    make_peft(BASES["llama"], LoKrConfig(r=8, target_modules=["q_proj"]), tmp_path)
    for field in ("r", "alpha"):
        edit_config(tmp_path, **{"r": 8, "alpha": 8, field: 10**400})
        with pytest.raises(InvalidArtifact, match="64 bits"):
            lowered_from(tmp_path, BASES["llama"])
