"""Tiny bases as the server writes them, with the models that they were made of."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from graftwork_server import attention
from graftwork_server.base_model import BaseModel, prepare_base_model
from graftwork_server.kernels.build import load_kernels
from graftwork_server.shared_weights import share_weights
from graftwork_trainer.base.model import TrainingBase, load_training_base

from tests.server.sampling.tiny_tokenizers import byte_level
from tests.support.tiny_models import tiny_model


@dataclass(frozen=True)
class WrittenBase:
    """A base in the server, and its folder."""

    served: BaseModel
    folder: Path
    original: torch.nn.Module  # in float32, not quantized

    def load(self) -> TrainingBase:
        return load_training_base(self.folder)


@pytest.fixture(scope="session")
def written_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., WrittenBase]:
    """A function of family and quantization; the same base for the same arguments."""
    made: dict[tuple[str, str], WrittenBase] = {}

    def make(family: str = "llama", quantization: str = "int8") -> WrittenBase:
        key = (family, quantization)
        if key not in made:
            load_kernels()
            attention.register()
            model = tiny_model(family)
            served = prepare_base_model(
                copy.deepcopy(model),
                byte_level(),
                name="tiny",
                quantization=quantization,
                device=torch.device("cpu"),
            )
            folder = share_weights(served, tmp_path_factory.mktemp("bases"))
            made[key] = WrittenBase(served, folder, model)
        return made[key]

    return make


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models lose more by waiting for each other's threads than they gain."""
    torch.set_num_threads(1)
