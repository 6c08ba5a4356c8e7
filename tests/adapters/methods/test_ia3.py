import copy

import pytest
from graftwork_adapters.errors import InvalidArtifact, WrongBase, ZeroEffect
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, get_peft_model

from tests.adapters.helpers import edit_config, lowered_from, make_peft
from tests.adapters.methods.parity import (
    BASES,
    check_equals_peft,
    dtypes,
    few_examples,
    targets,
)


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_ia3_equals_peft(base_name: str, data: st.DataObject) -> None:
    names = st.lists(st.sampled_from(targets(base_name)), min_size=1, max_size=4, unique=True)
    chosen = data.draw(names)
    feedforward = data.draw(st.lists(st.sampled_from(chosen), max_size=2, unique=True))
    config = IA3Config(
        target_modules=chosen,
        feedforward_modules=feedforward,
        fan_in_fan_out=base_name == "gpt2",
        task_type="CAUSAL_LM",
    )
    check_equals_peft(BASES[base_name], config, dtype=data.draw(dtypes))


def test_patterns_choose_modules_and_their_kind(tmp_path):
    config = IA3Config(
        target_modules=r".*\.1\..*(q|down)_proj",
        feedforward_modules=r".*down_proj",
        task_type="CAUSAL_LM",
    )
    adapter = check_equals_peft(BASES["llama_with_bias"], config)
    assert len(adapter.modules) == 2


def test_another_kind_than_the_tensors_is_refused(tmp_path):
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    make_peft(BASES["llama"], config, tmp_path)
    edit_config(tmp_path, feedforward_modules=["q_proj"])
    with pytest.raises(WrongBase, match="ia3_l"):
        lowered_from(tmp_path, BASES["llama"])
    edit_config(tmp_path, feedforward_modules=None)
    with pytest.raises(InvalidArtifact, match="feedforward_modules"):
        lowered_from(tmp_path, BASES["llama"])


def test_an_untrained_adapter_is_refused(tmp_path):
    config = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(copy.deepcopy(BASES["llama"]), config).save_pretrained(tmp_path)
    with pytest.raises(ZeroEffect):
        lowered_from(tmp_path, BASES["llama"])
