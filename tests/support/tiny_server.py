"""A whole server over a tiny random model."""

import copy
from pathlib import Path

import torch
from graftwork_server import attention
from graftwork_server.base_model import BaseModel, prepare_base_model
from graftwork_server.kernels.build import load_kernels
from graftwork_server.settings import Settings

from tests.server.sampling.tiny_tokenizers import byte_level
from tests.support.server import server_settings


def tiny_base(model: torch.nn.Module, **tokenizer_options: object) -> BaseModel:
    """A copy of `model` in float32, so that the model itself can still be given to PEFT."""
    load_kernels()
    attention.register()
    return prepare_base_model(
        copy.deepcopy(model),
        byte_level(**tokenizer_options),
        name="tiny",
        quantization="none",
        device=torch.device("cpu"),
    )


def tiny_settings(folder: Path) -> Settings:
    return server_settings(folder, engine={"kv_cache_bytes": "4MiB"})
