"""Versions that carry a prompt, with weights or without."""

import json

import pytest
from graftwork_adapters.artifact import read_artifact, read_prompt
from graftwork_adapters.errors import ArtifactTooLarge, InvalidArtifact, UnverifiedBase, WrongBase
from graftwork_adapters.folder import ALL_FILES, PROMPT_FILE, PROMPT_ONLY, adapter_files
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import check_base, lower
from graftwork_adapters.prompt_file import Example, VersionPrompt, parse_prompt
from graftwork_adapters.store import ImmutableStore
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.helpers import DescribedModel, edit_config, lowered_from, save_lora, tiny_llama

BASE = tiny_llama()
PROMPT = {
    "system": "Answer in rhyme.",
    "examples": [{"user": "What is rain?", "assistant": "A cloud in pain."}],
    "template": "Q: {input}\nA:",
}
PARSED = VersionPrompt(
    "Answer in rhyme.", (Example("What is rain?", "A cloud in pain."),), "Q: {input}\nA:"
)


def write_prompt(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / PROMPT_FILE).write_text(json.dumps(fields or PROMPT))
    return folder


def test_all_fields():
    assert parse_prompt(json.dumps(PROMPT).encode()) == PARSED


@pytest.mark.parametrize("field", PROMPT)
def test_one_field_is_enough(field):
    prompt = parse_prompt(json.dumps({field: PROMPT[field]}).encode())
    assert getattr(prompt, field) == getattr(PARSED, field)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs one of"),
        ([], "must be a JSON object"),
        ({"system": ""}, "system must be a text"),
        ({"system": None}, "system must be a text"),
        ({"system": "a", "sytem": "b"}, "'sytem' is no field"),
        ({"system": "\ud800"}, "not valid Unicode"),
        ({"template": "no input"}, "once, not 0"),
        ({"template": "{input} {input}"}, "once, not 2"),
        ({"examples": []}, "not empty"),
        ({"examples": {"user": "a"}}, "must be a list"),
        ({"examples": [{"user": "a"}]}, r"examples\[0\] needs exactly"),
        ({"examples": [{"user": "a", "assistant": 3}]}, r"examples\[0\].assistant must be"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(InvalidArtifact, match=message):
        parse_prompt(json.dumps(fields).encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(InvalidArtifact):
        parse_prompt(data)


def test_a_prompt_beside_weights_counts_for_the_digest(tmp_path):
    save_lora(tmp_path, BASE)
    plain = read_artifact(tmp_path, AdapterLimits())
    write_prompt(tmp_path)
    artifact = read_artifact(tmp_path, AdapterLimits())
    assert (artifact.method, artifact.prompt) == ("LORA", PARSED)
    assert artifact.digest != plain.digest
    assert artifact.size_bytes == plain.size_bytes + (tmp_path / PROMPT_FILE).stat().st_size
    assert lowered_from(tmp_path, BASE).rank == 4


@pytest.mark.parametrize("config", [None, {}, {"peft_type": PROMPT_ONLY}, {"peft_type": None}])
def test_a_prompt_alone(tmp_path, config):
    write_prompt(tmp_path)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    artifact = read_artifact(tmp_path, AdapterLimits())
    assert (artifact.method, artifact.prompt, artifact.tensors) == (PROMPT_ONLY, PARSED, {})
    assert lowered_from(tmp_path, BASE).tensors() == []
    assert check_base(artifact, DescribedModel(BASE), require_verified=True) is False


def test_a_prompt_for_another_base_is_refused(tmp_path):
    write_prompt(tmp_path)
    config = {"peft_type": PROMPT_ONLY, "graftwork_base_digest": "sha256:other"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(WrongBase):
        lowered_from(tmp_path, BASE)


def test_weights_with_a_prompt_still_need_a_verified_base(tmp_path):
    artifact = read_artifact(write_prompt(save_lora(tmp_path, BASE)), AdapterLimits())
    with pytest.raises(UnverifiedBase):
        check_base(artifact, DescribedModel(BASE), require_verified=True)


def test_a_config_whose_weights_are_missing_is_refused(tmp_path):
    write_prompt(save_lora(tmp_path, BASE))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidArtifact, match=r"safetensors is missing, which LORA needs"):
        lowered_from(tmp_path, BASE)


def test_an_unknown_field_beside_a_prompt_is_refused(tmp_path):
    write_prompt(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(InvalidArtifact, match="r = 4"):
        lowered_from(tmp_path, BASE)


def test_weights_that_call_themselves_a_prompt_are_refused(tmp_path):
    write_prompt(save_lora(tmp_path, BASE))
    edit_config(tmp_path, peft_type=PROMPT_ONLY)
    with pytest.raises(InvalidArtifact, match="not supported"):
        lower(read_artifact(tmp_path, AdapterLimits()), DescribedModel(BASE), max_rank=8)


def test_a_prompt_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(ArtifactTooLarge, match=PROMPT_FILE):
        read_artifact(write_prompt(tmp_path), AdapterLimits(max_config_bytes=10))


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_store_keeps_it(tmp_path, with_weights):
    source = tmp_path / "source"
    if with_weights:
        save_lora(source, BASE)
    write_prompt(source)
    files = adapter_files(source, [tmp_path])
    assert set(files) == set(ALL_FILES if with_weights else [PROMPT_FILE])
    store = ImmutableStore(tmp_path / "store", AdapterLimits())
    with store.stage() as staging:
        staging.copy(files)
        digest = staging.finish()
        staging.commit()
    assert digest == read_artifact(source, AdapterLimits()).digest
    assert set(store.files(digest)) == set(files)
    assert store.size_bytes(digest) == sum(path.stat().st_size for path in files.values())
    assert read_prompt(store.path(digest), AdapterLimits()) == PARSED
    (store.path(digest) / PROMPT_FILE).unlink()
    assert store.size_bytes(digest) != sum(path.stat().st_size for path in files.values())
    store.close()
