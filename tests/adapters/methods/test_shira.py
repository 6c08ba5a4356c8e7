import pytest
import torch
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from graftwork_adapters.folder import WEIGHTS_FILE
from hypothesis import given
from hypothesis import strategies as st
from peft import ShiraConfig
from safetensors.torch import load_file, save_file

from tests.adapters.helpers import edit_config, lowered_from, make_peft
from tests.adapters.methods.parity import BASES, check_equals_peft, dtypes, few_examples, targets

# PEFT's own forward remarks on sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
INDICES = "base_model.model.model.layers.0.self_attn.q_proj.shira_indices"


@few_examples
@given(st.data())
@pytest.mark.parametrize("base_name", BASES)
def test_shira_equals_peft(base_name: str, data: st.DataObject) -> None:
    names = st.lists(st.sampled_from(targets(base_name)), min_size=1, max_size=3, unique=True)
    config = ShiraConfig(
        r=data.draw(st.integers(1, 4)),
        random_seed=data.draw(st.sampled_from([None, 3])),
        target_modules=data.draw(names),
        task_type="CAUSAL_LM",
    )
    check_equals_peft(
        BASES[base_name], config, dtype=data.draw(dtypes), needs_linears=base_name == "gpt2"
    )


@pytest.mark.parametrize(
    ("place", "error", "match"),
    [
        ((-1, 0), InvalidArtifact, "negative"),
        ((16, 0), WrongBase, "row 16"),
        ((0, 2**31 - 1), WrongBase, "column 2147483647"),
        (None, InvalidArtifact, "twice"),
    ],
)
def test_places_outside_the_weight_or_twice_are_refused(place, error, match, tmp_path):
    make_peft(BASES["llama"], ShiraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    indices = tensors[INDICES]
    indices[:, 0] = indices[:, 1] if place is None else torch.tensor(place)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(error, match=match):
        lowered_from(tmp_path, BASES["llama"])


def test_another_rank_or_places_that_are_no_integers_are_refused(tmp_path):
    make_peft(BASES["llama"], ShiraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    edit_config(tmp_path, r=3)
    with pytest.raises(WrongBase, match="shira_weight"):
        lowered_from(tmp_path, BASES["llama"])
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors[INDICES] = tensors[INDICES].float()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(InvalidArtifact, match="integers"):
        lowered_from(tmp_path, BASES["llama"])
