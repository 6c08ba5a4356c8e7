import pytest
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from hypothesis import given
from hypothesis import strategies as st
from peft import OFTConfig

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
def test_oft_equals_peft(base_name: str, data: st.DataObject) -> None:
    by_size = data.draw(st.booleans())
    config = OFTConfig(
        r=0 if by_size else data.draw(st.integers(1, 8)),
        oft_block_size=data.draw(st.integers(2, 9)) if by_size else 0,
        use_cayley_neumann=data.draw(st.booleans()),
        num_cayley_neumann_terms=data.draw(st.integers(1, 7)),
        coft=data.draw(st.booleans()),
        eps=data.draw(st.sampled_from([6e-5, 0.1])),
        block_share=data.draw(st.booleans()),
        bias=data.draw(st.sampled_from(["none", "oft_only"])),
        **data.draw(target_fields(base_name)),
    )
    if config.use_cayley_neumann and config.num_cayley_neumann_terms == 1:
        config.num_cayley_neumann_terms = 2  # a single term changes nothing
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"oft_block_size": 8}, WrongBase, "oft_R"),
        ({"block_share": True}, WrongBase, "oft_R"),
        ({"r": 4}, InvalidArtifact, "one of r and oft_block_size"),
        ({"oft_block_size": 0}, InvalidArtifact, "one of r and oft_block_size"),
        ({"oft_block_size": [4, 4]}, InvalidArtifact, "oft_block_size"),
        ({"peft_version": "0.17.1"}, UnsupportedField, "0.18"),
        ({"num_cayley_neumann_terms": 10**9}, UnsupportedField, "num_cayley_neumann_terms"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    make_peft(BASES["llama"], OFTConfig(oft_block_size=4, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])
