"""Each way a file can be wrong is refused, and the error names what is wrong."""

import contextlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graftwork_adapters import bottleneck
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.errors import (
    AdapterError,
    ArtifactTooLarge,
    InvalidArtifact,
    PathNotAllowed,
    RankOverCap,
    UnsupportedField,
    UnsupportedMethod,
    WrongBase,
    ZeroEffect,
)
from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE, adapter_files
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import lower
from graftwork_adapters.methods import find_methods
from graftwork_adapters.methods.refused import REFUSED
from graftwork_adapters.stamp import read_stamp, stamp_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftType, PromptTuningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.adapters.helpers import (
    DescribedModel,
    load_peft,
    make_peft,
    save_lora,
    tiny_gpt2,
    tiny_llama,
)

BASE = tiny_llama()
DESCRIBED = DescribedModel(BASE)
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_lora(tmp_path / "adapter", BASE)


@pytest.fixture
def prompt_folder(tmp_path: Path) -> Path:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    make_peft(BASE, config, tmp_path / "prompt")
    return tmp_path / "prompt"


def load(folder: Path, *, max_rank: int = 8) -> LoweredAdapter:
    return lower(read_artifact(folder, AdapterLimits()), DESCRIBED, max_rank=max_rank)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / WEIGHTS_FILE
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def write_weights(folder: Path, header: object, data: bytes = b"") -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = struct.pack("<Q", len(encoded))
    (folder / WEIGHTS_FILE).write_bytes(length + encoded + data)


def entry(start: int, stop: int, shape: tuple[int, ...], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({}, b"", "holds no tensor"),
        ({"a": entry(0, 8, (2,))}, bytes(4), "truncated"),
        ({"a": entry(0, 8, (2,))}, bytes(9), "followed by other data"),
        ({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12), "overlaps another"),
        ({"a": entry(0, 8, (2,)), "b": entry(12, 20, (2,))}, bytes(20), "leaves a gap"),
        ({"a": entry(0, 8, (3,))}, bytes(8), "takes 12 bytes"),
        ({"a": entry(0, 0, (0, 2**21))}, b"", "is empty"),
        ({"a": entry(8, 0, (2,))}, bytes(8), "data_offsets"),
        ({"a": entry(0, 8, (-2, -1))}, bytes(8), "shape must be"),
        ({"a": entry(0, 8, (1, 1, 1, 1, 2))}, bytes(8), "shape must be"),
        ({"a": entry(0, 8, (1,), "F64")}, bytes(8), "dtype 'F64' is not supported"),
        ({"a": entry(0, 8, (1,), ["F32"])}, bytes(8), "is not supported"),
        ({"a": {"dtype": "F32"}}, b"", "needs exactly"),
        ({"a": 3}, b"", "needs exactly"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ([], b"", "must be a JSON object"),
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "'a' is repeated"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
    ],
)
def test_broken_headers(folder: Path, header: Any, data: bytes, message: str) -> None:
    write_weights(folder, header, data)
    with pytest.raises(InvalidArtifact, match=message):
        read_artifact(folder, AdapterLimits())


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**63) + b"{}"])
def test_files_without_a_header(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InvalidArtifact, match="truncated"):
        read_artifact(folder, AdapterLimits())


def test_truncation_anywhere_is_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS_FILE).read_bytes()
    for length in range(0, len(whole), 97):
        (folder / WEIGHTS_FILE).write_bytes(whole[:length])
        with pytest.raises(InvalidArtifact):
            read_artifact(folder, AdapterLimits())


@settings(max_examples=60)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_flipped_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = save_lora(tmp_path_factory.getbasetemp() / "flipped", BASE)
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    data[position % len(data)] = value
    (folder / WEIGHTS_FILE).write_bytes(data)
    with contextlib.suppress(AdapterError):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    edit_weights(folder, lambda tensors: tensors[Q_A].view(-1)[3].fill_(value))
    with pytest.raises(InvalidArtifact, match=r"q_proj.*NaN or infinity"):
        read_artifact(folder, AdapterLimits())


def test_files_over_the_limit(folder: Path) -> None:
    with pytest.raises(ArtifactTooLarge, match=WEIGHTS_FILE):
        read_artifact(folder, AdapterLimits(max_weights_bytes=1000))
    with pytest.raises(ArtifactTooLarge, match=CONFIG_FILE):
        read_artifact(folder, AdapterLimits(max_config_bytes=100))


def test_pickles_are_refused_by_name_with_the_fix(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        InvalidArtifact, match=r"adapter_model\.bin is a pickle.*safe_serialization"
    ):
        adapter_files(folder, [folder])


@pytest.mark.parametrize("filename", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_files(folder: Path, filename: str) -> None:
    (folder / filename).unlink()
    with pytest.raises(InvalidArtifact, match=f"{filename} is missing"):
        adapter_files(folder, [folder])


def test_links_out_of_the_roots(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / CONFIG_FILE).unlink()
    (folder / CONFIG_FILE).symlink_to(secret)
    with pytest.raises(PathNotAllowed):
        adapter_files(folder, [folder])


def test_a_pipe_does_not_hang(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)
    with pytest.raises(InvalidArtifact, match="not a regular file"):
        read_artifact(folder, AdapterLimits())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": None}, "peft_type must be a string"),
        ({"r": 0}, "r must be a positive integer"),
        ({"r": True}, "r must be a positive integer"),
        ({"r": 5}, "rank 4, but adapter_config.json says 5"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number"),
        ({"rank_pattern": {"q_proj": 4.5}}, "rank_pattern gives .* the rank 4.5"),
        ({"rank_pattern": [4]}, "rank_pattern must be an object"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 4, but adapter_config.json says 2"),
        ({"rank_pattern": {"(": 2}}, "is not a regular expression"),
        ({"rank_pattern": {"((.|[a-z._0-9])+)+[!?]": 2}}, "take too long"),
        ({"rank_pattern": {"((a{1000}){1000}){1000}": 2}}, "repeats more than"),
        ({"rank_pattern": {"(a{e<=1})": 2}}, "repeats more than"),
        ({"rank_pattern": {"(?i)[a-\\U0010ffff]": 2}}, "is not plain ASCII"),
        ({"rank_pattern": {"(?R)": 2}}, "is not a regular expression"),
        ({"rank_pattern": {"a" * 5000: 2}}, "longer than"),
        ({"target_modules": "(" * 2000 + ")" * 2000}, "is not a regular expression"),
        ({"target_modules": None}, "target_modules must name modules"),
        ({"target_modules": ["q_proj"]}, "tensors for .*v_proj, which target_modules do not"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "match .*o_proj of the base, but"),
        ({"target_modules": ["q_proj", 3]}, "target_modules must be"),
        ({"use_dora": True}, "disagree about lora_magnitude_vector"),
        ({"lora_bias": True}, "disagree about lora_B.bias"),
        ({"use_rslora": 1}, "use_rslora must be true or false"),
        ({"lora_alpha": 1e300}, "overflow"),
        ({"modules_to_save": ["lm_head"]}, "match lm_head of the base, but there are no tensors"),
        ({"task_type": "SEQ_CLS"}, "holds no linear head named score or classifier"),
        ({"trainable_token_indices": [1, 2]}, "no trained tokens for model.embed_tokens"),
    ],
)
def test_configs_that_disagree_with_their_tensors(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    edit_config(folder, **fields)
    with pytest.raises(InvalidArtifact, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("arrow_config", {"top_k": 2}),
        ("bias", "some"),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "pissa_niter_4"),
        ("kasa_config", {"beta": 1}),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("megatron_config", {"a": 1}),
        ("monteclora_config", {"a": 1}),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("task_type", "TOKEN_CLS"),
        ("use_bdlora", {"nblocks": 2}),
        ("use_qalora", True),
        ("velora_config", {"scale": 1}),
        ("a_field_of_the_future", 3),
    ],
)
def test_fields_that_change_the_arithmetic(folder: Path, field: str, value: object) -> None:
    edit_config(folder, **{field: value})
    with pytest.raises(UnsupportedField, match=field):
        load(folder)


def test_every_field_that_peft_writes_is_accounted_for(folder: Path) -> None:
    """A new PEFT with a new field in use must not be read as if the field were not there."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config.keys() >= LoraConfig().to_dict().keys() - {"runtime_config"}
    load(folder)


def test_switched_off_unknown_fields_are_let_pass(folder: Path) -> None:
    edit_config(folder, a_field_of_the_future=None, another=False)
    load(folder)


@pytest.mark.parametrize("peft_type", [*REFUSED, "NEXTYEARSLORA"])
def test_methods_that_are_not_supported(folder: Path, peft_type: str) -> None:
    edit_config(folder, peft_type=peft_type)
    why = re.escape(REFUSED.get(peft_type, "it is no method of PEFT's that this version knows"))
    with pytest.raises(
        UnsupportedMethod, match=f'"{peft_type}" is not supported: {why}; supported are ADALORA'
    ):
        load(folder)


def test_every_method_of_peft_is_served_or_refused_with_a_reason() -> None:
    served = find_methods().keys() - {bottleneck.PEFT_TYPE}
    assert served | REFUSED.keys() == {peft_type.value for peft_type in PeftType}
    assert not served & REFUSED.keys()


def test_rank_over_the_cap(folder: Path) -> None:
    with pytest.raises(RankOverCap, match=r"rank 4 of .* cap of 3"):
        load(folder, max_rank=3)


def test_tensors_that_nobody_knows(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update(other=torch.ones(1)))
    with pytest.raises(InvalidArtifact, match="'other' is none that this method knows"):
        load(folder)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(torch.ones(4, 16).long(), "must hold floating point"), (torch.ones(0, 16), "is empty")],
)
def test_tensors_of_a_kind_that_lora_does_not_use(folder: Path, tensor, message) -> None:
    edit_weights(folder, lambda tensors: tensors.update({Q_A: tensor}))
    with pytest.raises(InvalidArtifact, match=message):
        load(folder)


def test_half_a_pair(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(Q_A))
    with pytest.raises(InvalidArtifact, match=r"q_proj disagree about lora_A\.weight"):
        load(folder)


@pytest.mark.parametrize("other", [tiny_llama(hidden=32), tiny_gpt2()])
def test_adapters_of_other_bases(other: torch.nn.Module, tmp_path: Path) -> None:
    targets = ["c_attn"] if "GPT2" in type(other).__name__ else ["q_proj"]
    save_lora(tmp_path, other, target_modules=targets)
    with pytest.raises(WrongBase):
        load(tmp_path)


def test_zero_effect(folder: Path) -> None:
    edit_weights(folder, lambda ts: [t.zero_() for name, t in ts.items() if "lora_B" in name])
    with pytest.raises(ZeroEffect):
        load(folder)


def test_zero_effect_by_scale_or_by_disjoint_ranks(folder: Path) -> None:
    def keep_different_ranks(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensor[1:].zero_()
            else:
                tensor[:, 0].zero_()

    edit_weights(folder, keep_different_ranks)
    with pytest.raises(ZeroEffect):
        load(folder)


def test_alpha_zero_has_no_effect(folder: Path) -> None:
    edit_config(folder, lora_alpha=0)
    with pytest.raises(ZeroEffect):
        load(folder)


def test_untrained_dora_has_no_effect_but_its_magnitude_alone_has(tmp_path: Path) -> None:
    save_lora(tmp_path, BASE, use_dora=True)

    def untrain(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.zero_()
            if "magnitude" in name:
                module = name.removeprefix("base_model.model.").removesuffix(
                    ".lora_magnitude_vector"
                )
                tensor.copy_(DESCRIBED.weight(module).norm(dim=1))

    edit_weights(tmp_path, untrain)
    with pytest.raises(ZeroEffect):
        load(tmp_path)
    edit_weights(
        tmp_path, lambda ts: [t.mul_(1.01) for name, t in ts.items() if "magnitude" in name]
    )
    load(tmp_path)


def test_embedding_lora(tmp_path: Path) -> None:
    save_lora(tmp_path, BASE, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UnsupportedField, match="embedding"):
        load(tmp_path)


def test_biases_of_norms(tmp_path: Path) -> None:
    base = tiny_gpt2()
    save_lora(tmp_path, base, target_modules=["c_attn"], bias="all", fan_in_fan_out=True)
    artifact = read_artifact(tmp_path, AdapterLimits())
    with pytest.raises(UnsupportedField, match=r"bias of .*ln_1"):
        lower(artifact, DescribedModel(base), max_rank=8)


def test_biases_that_the_config_does_not_promise(tmp_path: Path) -> None:
    save_lora(tmp_path, BASE, bias="lora_only")
    edit_weights(
        tmp_path,
        lambda ts: ts.update({Q_A.replace("lora_A.weight", "base_layer.bias"): torch.ones(16)}),
    )
    with pytest.raises(InvalidArtifact, match=r"bias of .*q_proj"):
        load(tmp_path)


def test_another_output_head_in_the_file(tmp_path: Path) -> None:
    save_lora(tmp_path, BASE, target_modules=["lm_head"])
    load(tmp_path)
    edit_weights(tmp_path, lambda ts: ts["base_model.model.lm_head.base_layer.weight"].mul_(1.1))
    with pytest.raises(WrongBase, match="save_embedding_layers=False"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"num_virtual_tokens": 5},
            InvalidArtifact,
            r"num_virtual_tokens and token_dim: \(5, 16\)",
        ),
        ({"token_dim": 8}, InvalidArtifact, r"num_virtual_tokens and token_dim: \(4, 8\)"),
        ({"token_dim": None}, InvalidArtifact, "token_dim must be"),
        ({"num_transformer_submodules": 2}, UnsupportedField, "num_transformer_submodules"),
        ({"modules_to_save": ["lm_head"]}, InvalidArtifact, "no tensors for it"),
    ],
)
def test_prompt_tuning_configs(
    prompt_folder: Path, fields: dict[str, Any], error: type[AdapterError], message: str
) -> None:
    edit_config(prompt_folder, **fields)
    with pytest.raises(error, match=message):
        load(prompt_folder)


def test_prompt_tuning_of_another_hidden_size_or_past_the_context(prompt_folder: Path) -> None:
    def resize(rows: int, columns: int) -> None:
        edit_config(prompt_folder, num_virtual_tokens=rows, token_dim=columns)
        edit_weights(
            prompt_folder, lambda ts: ts.update(prompt_embeddings=torch.zeros(rows, columns))
        )

    resize(4, 8)
    with pytest.raises(WrongBase, match="hidden size 8"):
        load(prompt_folder)
    resize(64, 16)
    with pytest.raises(InvalidArtifact, match="no room for a prompt"):
        load(prompt_folder)
    resize(63, 16)
    assert load(prompt_folder).num_virtual_tokens == 63


def test_prompt_tuning_files_hold_nothing_else(prompt_folder: Path) -> None:
    edit_weights(prompt_folder, lambda ts: ts.update(other=torch.ones(1)))
    with pytest.raises(InvalidArtifact, match="prompt_embeddings alone"):
        load(prompt_folder)


def test_stamped_files_still_load_in_peft(folder: Path) -> None:
    stamp_folder(folder, DESCRIBED.digest)
    artifact = read_artifact(folder, AdapterLimits())
    assert read_stamp(artifact.config, artifact.metadata) == DESCRIBED.digest
    load(folder)
    load_peft(BASE, folder)


def test_two_stamps_that_differ(folder: Path) -> None:
    stamp_folder(folder, DESCRIBED.digest)
    edit_config(folder, graftwork_base_digest="sha256:" + "c" * 64)
    with pytest.raises(InvalidArtifact, match="differs between config and weights"):
        load(folder)
