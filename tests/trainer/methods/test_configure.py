import pytest
from graftwork.status import InvalidFieldError
from graftwork_trainer.methods.attach import attach_adapter
from graftwork_trainer.methods.catalogue import find_method
from graftwork_trainer.methods.configure import configure


def settings(model, method="LORA", config=(), frozen_layers=0):
    return configure(model, method, dict(config), frozen_layers=frozen_layers, total_steps=100)


@pytest.fixture(scope="module")
def model(written_base):
    return written_base().load().model


def test_defaults_and_overrides(model):
    config = settings(model)
    assert (config.r, config.lora_alpha, config.task_type) == (16, 32, "CAUSAL_LM")
    assert config.target_modules == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert settings(model, "lora", {"r": 4, "use_dora": True}).r == 4


def test_every_base_has_its_own_modules(written_base):
    for quantization in ("none", "int8"):
        config = settings(written_base("gpt2", quantization).load().model)
        assert config.target_modules == {"c_attn", "c_proj", "c_fc"}


def test_adalora_prunes_within_the_steps(model):
    config = settings(model, "ADALORA")
    assert (config.tinit, config.tfinal, config.total_step) == (10, 33, 100)


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("NOPE", {}, r"method: NOPE: is no method that trains; there are LORA"),
        ("XLORA", {}, r"method: XLORA: it mixes other adapters"),
        ("LORA", {"rank": 3}, r"method_config\.rank: is no field of LORA; these are"),
        ("LORA", {"task_type": "SEQ_CLS"}, r"method_config\.task_type: is set by the trainer"),
        ("LORA", {"init_lora_weights": "pissa"}, r"init_lora_weights: must be one of .*base's"),
        ("LORA", {"init_lora_weights": "olora"}, "init_lora_weights"),
        ("LORA", {"init_lora_weights": "loftq"}, "init_lora_weights"),
        ("LORA", {"use_qalora": True}, r"method_config: .*use_qalora"),
        ("LORA", {"r": 0}, "method_config"),
        ("LORA", {"target_modules": ["absent"]}, "absent"),
        ("BOTTLENECK", {"placement": "sideways"}, r"method_config: is refused: placement"),
        ("PROMPT_TUNING", {"num_virtual_tokens": 0}, "num_virtual_tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(written_base, method, config, message):
    model = written_base().load().fresh_model()
    with pytest.raises(InvalidFieldError, match=message):
        attach_adapter(model, method, config, frozen_layers=0, total_steps=10)


@pytest.mark.parametrize(
    ("method", "frozen_layers", "message"),
    [("LORA", 2, "must be below the base's 2 layers"), ("PROMPT_TUNING", 1, "nothing in the")],
)
def test_frozen_layers_must_leave_some(model, method, frozen_layers, message):
    with pytest.raises(InvalidFieldError, match=rf"hyperparameters\.frozen_layers: .*{message}"):
        settings(model, method, frozen_layers=frozen_layers)


def test_names_are_taken_in_any_case():
    assert find_method("lora").peft_type == "LORA"
