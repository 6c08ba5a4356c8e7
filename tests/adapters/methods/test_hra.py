import copy

import pytest
from graftwork_adapters.errors import InvalidArtifact, RankOverCap, ZeroEffect
from hypothesis import given
from hypothesis import strategies as st
from peft import HRAConfig, get_peft_model

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
def test_hra_equals_peft(base_name: str, data: st.DataObject) -> None:
    config = HRAConfig(
        r=data.draw(st.integers(1, 20)),
        apply_GS=data.draw(st.booleans()),
        bias=data.draw(st.sampled_from(["none", "hra_only"])),
        **data.draw(target_fields(base_name)),
    )
    if config.apply_GS:
        config.r = min(config.r, 16)  # more vectors than dimensions have no orthogonal directions
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


def test_an_untrained_adapter_is_refused(tmp_path):
    model = get_peft_model(copy.deepcopy(BASES["llama"]), HRAConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(ZeroEffect):
        lowered_from(tmp_path, BASES["llama"])


def test_a_rank_that_the_tensors_do_not_have_or_over_the_cap_is_refused(tmp_path):
    make_peft(BASES["llama"], HRAConfig(r=4, target_modules=["q_proj"]), tmp_path)
    with pytest.raises(RankOverCap):
        lowered_from(tmp_path, BASES["llama"], max_rank=3)
    edit_config(tmp_path, r=5)
    with pytest.raises(InvalidArtifact, match=r"rank 4, but .* says 5"):
        lowered_from(tmp_path, BASES["llama"])
