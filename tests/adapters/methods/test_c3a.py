import pytest
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from hypothesis import given
from hypothesis import strategies as st
from peft import C3AConfig

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
def test_c3a_equals_peft(base_name: str, data: st.DataObject) -> None:
    sizes = st.sampled_from([1, 2, 4, 8])
    config = C3AConfig(
        block_size=data.draw(sizes),
        block_size_pattern=data.draw(
            patterns(base_name, sizes).filter(lambda found: len(found) < 2)
        ),
        bias=data.draw(st.sampled_from(["none", "c3a_only"])),
        **data.draw(target_fields(base_name)),
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"block_size": 8}, WrongBase, "c3a_kernel"),
        ({"block_size": 5}, WrongBase, "multiples of 5"),
        ({"block_size_pattern": {"q_proj": 0.5}}, InvalidArtifact, "block_size_pattern"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    make_peft(BASES["llama"], C3AConfig(block_size=4, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])
