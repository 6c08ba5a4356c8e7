"""QLoRA on CUDA, over what a server there writes."""

import copy

import pytest
import torch
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import lower
from graftwork_server import attention
from graftwork_server.base_model import prepare_base_model
from graftwork_server.shared_weights import share_weights
from graftwork_trainer.base.model import load_training_base
from graftwork_trainer.recipes.sft import train_sft

from tests.server.sampling.tiny_tokenizers import byte_level
from tests.support.tiny_models import tiny_model
from tests.trainer.examples import make_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=["nf4", "int8"])
def served(request):
    attention.register()
    return prepare_base_model(
        copy.deepcopy(tiny_model("llama", hidden_size=64, head_dim=16, intermediate_size=128)),
        byte_level(),
        name="tiny",
        quantization=request.param,
        device=torch.device("cuda"),
    )


def test_the_trainer_has_the_weights_that_serve(served, tmp_path):
    folder = share_weights(served, tmp_path)
    base = load_training_base(folder, torch.device("cuda"))
    for name in base.description.packed:
        module = base.model.get_submodule(name)
        x = torch.randn(4, module.in_features, device="cuda")
        expected = torch.nn.functional.linear(x, served.weight(name).cuda())
        torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)


def test_it_trains_with_a_paged_optimizer(served, tmp_path):
    folder = share_weights(served, tmp_path / "bases")
    losses = []
    run = make_run(
        load_training_base(folder, torch.device("cuda")),
        tmp_path,
        progress=lambda report: losses.append(report.loss),
    )
    artifact = read_artifact(train_sft(run), AdapterLimits())
    assert losses[-1] < losses[0] / 2
    lower(artifact, served, max_rank=64)
