from pathlib import Path

import pytest
import torch
from graftwork_server.default_model import default_model_path
from transformers import AutoModelForCausalLM, PreTrainedModel


@pytest.fixture(scope="session")
def model_path() -> Path:
    path = default_model_path()
    if not path.is_dir():
        pytest.fail("the default model is not there: run `make model`")
    return path


@pytest.fixture(scope="session")
def float_model(model_path: Path) -> PreTrainedModel:
    """The default model in float32, as transformers loads it. Not to be changed."""
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
