"""A tiny base with adapters on disk, for tests of what a server does with them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import torch
from graftwork import Generation
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub
from transformers import PreTrainedModel

from tests.support.peft_adapters import lora_config, save_random_adapter
from tests.support.saved_models import load_reference, save_tiny_model
from tests.support.server import ServerUnderTest

PROMPT = list(range(40, 75))


@dataclass(slots=True)
class TinyBase:
    """A model's folder, and PEFT folders for it, made as they are asked for."""

    model: Path
    folder: Path
    reference: PreTrainedModel
    _adapters: dict[int, Path] = field(default_factory=dict)

    def adapter(self, seed: int) -> str:
        """A rank-4 LoRA that changes answers; another seed is another adapter."""
        if seed not in self._adapters:
            self._adapters[seed] = save_random_adapter(
                self.reference, lora_config(4), self.folder / str(seed), seed=seed, strength=1.0
            )
        return str(self._adapters[seed])


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny_model("llama", folder / "model", seed=1)
    return TinyBase(model, folder / "adapters", load_reference(model))


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Tiny references lose more by waiting for each other's threads than they gain."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


async def ask(running: ServerUnderTest, adapter: str = "", num_tokens: int = 12) -> Generation:
    return await running.client.generate(
        PROMPT, adapter=adapter, max_tokens=num_tokens, ignore_eos=True
    )


def tokens_of(generation: Generation) -> list[int]:
    return list(generation.choices[0].token_ids)


async def model_digest(running: ServerUnderTest) -> str:
    """Computed anew over the weights in memory."""
    async with grpc.aio.insecure_channel(running.target) as channel:
        model = await GenerationServiceStub(channel).GetModel(
            pb.GetModelRequest(recompute_digest=True)
        )
    return model.digest
