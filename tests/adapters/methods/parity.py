"""Random configs of weight methods, and the check that lowering equals PEFT on them."""

import tempfile
from pathlib import Path

import torch
from graftwork_adapters.canonical import LoweredAdapter
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from peft import PeftConfig
from torch import nn

from tests.adapters.helpers import (
    check_merged,
    check_parity,
    load_peft,
    lowered_from,
    make_peft,
    tiny_gpt2,
    tiny_llama,
)
from tests.support.tiny_models import with_linears

BASES = {
    "llama": tiny_llama(),
    "llama_with_bias": tiny_llama(attention_bias=True),
    "gpt2": tiny_gpt2(),
}
_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_GPT2 = ["c_attn", "c_proj", "c_fc"]

few_examples = settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def targets(base_name: str) -> list[str]:
    return _GPT2 if base_name == "gpt2" else _LLAMA


@st.composite
def target_fields(draw: st.DrawFn, base_name: str) -> dict[str, object]:
    """Fields of any weight method that say which modules it changes."""
    chosen = st.lists(st.sampled_from(targets(base_name)), min_size=1, max_size=3, unique=True)
    return {
        "target_modules": draw(chosen),
        "layers_to_transform": draw(st.sampled_from([None, 0, [0, 1], [1]])),
        "task_type": "CAUSAL_LM",
    }


def patterns(base_name: str, values: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, int]]:
    """Sorted, as PEFT sorts a config's patterns when it saves them: in another order another one
    may match first, and then PEFT cannot load what it has saved."""
    keys = [*targets(base_name), r"layers\.1\..*", r"(h|layers)\.0\.[a-z_]+\.c_attn", "0.*proj"]
    chosen = st.dictionaries(st.sampled_from(keys), values, max_size=2)
    return chosen.map(lambda found: dict(sorted(found.items())))


def check_equals_peft(
    base: nn.Module,
    config: PeftConfig,
    *,
    dtype: torch.dtype = torch.float32,
    needs_linears: bool = False,
) -> LoweredAdapter:
    """Lowers a random adapter of the config, and compares each module with PEFT's, as it computes
    and as it merges."""
    peft_base = with_linears(base) if needs_linears else base
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        make_peft(peft_base, config, path, dtype=dtype)
        model = load_peft(peft_base, path)
        adapter = lowered_from(path, base)
        check_parity(model, base, adapter)
        check_merged(model, base, adapter)
    return adapter
