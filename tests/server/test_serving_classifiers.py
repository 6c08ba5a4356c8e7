"""Over gRPC: classifiers and reward models through Score, and the tasks of one multitask file."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from graftwork import aio
from graftwork.errors import FailedPrecondition, InvalidArgument
from graftwork_server import attention
from graftwork_server.base_model import BaseModel, prepare_base_model
from graftwork_server.kernels.build import load_kernels
from graftwork_server.serve import running_server
from graftwork_server.settings import AdapterSettings, GrpcSettings, MetricsSettings, Settings
from peft import LoraConfig, MultitaskPromptTuningConfig
from torch import nn

from tests.adapters.methods.helpers import TOLERANCE
from tests.adapters.methods.test_classifiers import classifier_of, expected_scores
from tests.server.sampling.tiny_tokenizers import byte_level
from tests.support.peft_adapters import save_random_adapter
from tests.support.tiny_models import tiny_model

PROMPT = [5, 6, 7, 8]


def save_classifier(model: nn.Module, folder: Path, num_labels: int) -> Path:
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS")
    return save_random_adapter(classifier_of(model, num_labels), config, folder, seed=num_labels)


@asynccontextmanager
async def serving(model: nn.Module, tmp_path: Path) -> AsyncIterator[aio.AsyncClient]:
    load_kernels()
    attention.register()
    base: BaseModel = prepare_base_model(
        model, byte_level(), name="tiny", quantization="none", device=torch.device("cpu")
    )
    settings = Settings(
        data_dir=tmp_path / "data",
        adapters=AdapterSettings(roots=(tmp_path,)),
        grpc=GrpcSettings(port=0),
        metrics=MetricsSettings(port=0),
    )
    async with (
        running_server(settings, base) as server,
        aio.AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        yield client


async def test_classes_and_rewards(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folders = {f"labels-{n}": save_classifier(model, tmp_path / str(n), n) for n in (1, 3)}
    expected = {
        (name, ids): expected_scores(classifier_of(model, int(name[-1])), folder, list(ids))
        for name, folder in folders.items()
        for ids in [(5, 6, 7, 8), (5, 6, 7, 8, 9), (5, 6, 7, 8, 9, 10)]
    }
    async with serving(tiny_model("llama"), tmp_path) as client:
        for name, folder in folders.items():
            version = await client.adapters.create(name, str(folder))
            assert version.labels == tuple(f"LABEL_{i}" for i in range(int(name[-1])))
        for name in folders:
            alone = await client.score(PROMPT, adapter=name)
            pairs = await client.score(PROMPT, [[9], [9, 10]], adapter=name)
            found = [score.classification for score in (*alone.scores, *pairs.scores)]
            for classification, ids in zip(found, [(), (9,), (9, 10)], strict=True):
                wanted = expected[name, (*PROMPT, *ids)]
                logits = torch.tensor([scored.logit for scored in classification.classes])
                shares = torch.tensor([scored.probability for scored in classification.classes])
                torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=0)
                torch.testing.assert_close(shares, wanted.softmax(0), atol=TOLERANCE, rtol=0)
                is_reward = name == "labels-1"
                assert (classification.reward is not None) == is_reward
        with pytest.raises(FailedPrecondition, match="classifier"):
            await client.generate(PROMPT, adapter="labels-3")
        with pytest.raises(FailedPrecondition, match=r"labels-\d@1.*classifier cannot be scaled"):
            await client.score(PROMPT, adapters={"labels-1": 1, "labels-3": 0.5})
        with pytest.raises(FailedPrecondition, match=r"labels-1@1.*classifier cannot be scaled"):
            await client.score(PROMPT, adapter="labels-1", adapter_scale=0.5)
        with pytest.raises(InvalidArgument, match="completions"):
            await client.score(PROMPT)


async def test_a_version_for_each_task(tmp_path: Path) -> None:
    model = tiny_model("llama")
    config = MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=2, task_type="CAUSAL_LM")
    folder = save_random_adapter(model, config, tmp_path / "tasks", seed=1, strength=0.5)
    (folder / "README.md").unlink()
    async with serving(tiny_model("llama"), tmp_path) as client:
        created = await client.adapters.create("tasks", str(folder), task_id=0)
        uploaded = await client.adapters.upload("tasks", folder, task_id=1)
        again = await client.adapters.upload("tasks", folder, task_id=0)
        assert created.digest != uploaded.digest
        assert created.digest == again.digest
        one, two = await asyncio.gather(
            *(
                client.score(PROMPT, [[9, 10]], adapter=version.selector)
                for version in (created, uploaded)
            )
        )
        assert one.scores[0].total_logprob != two.scores[0].total_logprob
        for task_id in (None, 2):
            with pytest.raises(InvalidArgument, match="tasks"):
                await client.adapters.create("tasks", str(folder), task_id=task_id)
        with pytest.raises(InvalidArgument, match="task_id"):
            await client.adapters.create("tasks", str(folder), task_id=-1)
