import pytest
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, WrongBase
from hypothesis import given
from hypothesis import strategies as st
from peft import RoadConfig

from tests.adapters.helpers import edit_config, lowered_from, make_peft
from tests.adapters.methods.parity import BASES, check_equals_peft, dtypes, few_examples, targets


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_road_equals_peft(base_name: str, variant: str, data: st.DataObject) -> None:
    names = st.lists(st.sampled_from(targets(base_name)), min_size=1, max_size=3, unique=True)
    config = RoadConfig(
        variant=variant,
        group_size=data.draw(st.sampled_from([2, 4, 8])),
        target_modules=data.draw(names),
        task_type="CAUSAL_LM",
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"variant": "road_3"}, UnsupportedField, "road_3"),
        ({"variant": "road_2"}, WrongBase, "road_theta"),
        ({"group_size": 3}, InvalidArtifact, "not even"),
        ({"group_size": 32}, WrongBase, "groups of 32"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(changes, error, match, tmp_path):
    make_peft(BASES["llama"], RoadConfig(group_size=4, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])
