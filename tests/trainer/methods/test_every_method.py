from statistics import mean

import pytest
from graftwork.status import InvalidFieldError
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import check_base, lower
from graftwork_trainer.methods.catalogue import trainable_methods
from graftwork_trainer.recipes.sft import train_sft

from tests.trainer.examples import make_run

# PEFT remarks on configs that are unusual but valid, and calls deprecated parts of transformers.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

METHODS = sorted(trainable_methods())
OF_EACH_KIND = ["LORA", "IA3", "OFT", "PROMPT_TUNING", "PREFIX_TUNING", "BOTTLENECK"]
SMALL = {"VERA": {"r": 8}, "FOURIERFT": {"n_frequency": 20}, "BOTTLENECK": {"reduction_factor": 4}}


def check_it_trains(base, method, folder, **changes):
    losses = []
    run = make_run(
        base.load(),
        folder,
        method=method,
        method_config=SMALL.get(method, {}),
        progress=lambda report: losses.append(report.loss),
        hyperparameters={"learning_rate": 0.03, **changes},
    )
    artifact = read_artifact(train_sft(run), AdapterLimits())
    first_epoch, second_epoch = losses[:8], losses[8:]
    assert mean(second_epoch) < mean(first_epoch)
    assert check_base(artifact, base.served)
    return lower(artifact, base.served, max_rank=512)  # raises where it has no effect


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_and_the_server_takes_it(method, written_base, tmp_path):
    check_it_trains(written_base(), method, tmp_path)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("method", OF_EACH_KIND)
def test_on_other_quantizations(method, quantization, written_base, tmp_path):
    check_it_trains(written_base("llama", quantization), method, tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
@pytest.mark.parametrize("method", ["LORA", "PROMPT_TUNING", "BOTTLENECK"])
def test_on_other_families(method, family, written_base, tmp_path):
    check_it_trains(written_base(family), method, tmp_path)


@pytest.mark.parametrize("method", ["LORA", "IA3", "LN_TUNING", "ADAPTION_PROMPT", "BOTTLENECK"])
def test_frozen_layers_get_nothing(method, written_base, tmp_path):
    lowered = check_it_trains(written_base(), method, tmp_path, frozen_layers=1)
    parts = [lowered.modules, lowered.replaced, lowered.bottlenecks]
    changed = [name for part in parts for name in part] + [
        f"model.layers.{index}" for index in lowered.gated_prompts
    ]
    assert changed
    assert all(name.startswith("model.layers.1") for name in changed)


def test_conv1d_is_refused_where_peft_cannot(written_base, tmp_path):
    run = make_run(written_base("gpt2", "none").load(), tmp_path, method="OFT")
    with pytest.raises(InvalidFieldError, match=r"method: OFT cannot be trained .* Conv1D"):
        train_sft(run)
