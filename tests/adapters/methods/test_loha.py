import pytest
from graftwork_adapters.errors import InvalidArtifact, RankOverCap
from hypothesis import given
from hypothesis import strategies as st
from peft import LoHaConfig

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
def test_loha_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = LoHaConfig(
        r=data.draw(st.integers(1, 6)),
        alpha=data.draw(st.sampled_from([1, 3, 8, 0.7])),
        rank_pattern=data.draw(patterns(base_name, st.integers(1, 6))),
        alpha_pattern=data.draw(patterns(base_name, st.integers(1, 6))),
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@pytest.mark.parametrize(("rank", "expected"), [(3, 9), (4, 16), (5, 0)])
def test_the_rank_is_the_square_until_a_dense_delta_is_smaller(rank: int, expected: int) -> None:
    config = LoHaConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapter = check_equals_peft(BASES["llama"], config)
    assert adapter.rank == expected


def test_the_rank_that_is_capped_is_the_lowered_one(tmp_path):
    config = LoHaConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
    make_peft(BASES["llama"], config, tmp_path)
    with pytest.raises(RankOverCap, match="rank 9"):
        lowered_from(tmp_path, BASES["llama"], max_rank=8)


def test_a_rank_that_the_tensors_do_not_have_is_refused(tmp_path):
    make_peft(BASES["llama"], LoHaConfig(r=3, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, r=4)
    with pytest.raises(InvalidArtifact, match=r"rank 3, but .* says 4"):
        lowered_from(tmp_path, BASES["llama"])
