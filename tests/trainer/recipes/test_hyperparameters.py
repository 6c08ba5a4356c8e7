import pytest
from graftwork.status import InvalidFieldError
from graftwork.v1.training_service_pb2 import Hyperparameters as Message
from graftwork_trainer.recipes.hyperparameters import Hyperparameters


def test_names_are_those_of_the_wire():
    assert set(Hyperparameters.__dataclass_fields__) == {f.name for f in Message.DESCRIPTOR.fields}


def test_what_is_left_out_has_its_default():
    assert Hyperparameters.parse({"schedule": "", "epochs": None}) == Hyperparameters()


def test_json_numbers_are_taken_for_what_is_meant():
    parsed = Hyperparameters.parse({"batch_size": 4.0, "epochs": 2, "train_on_prompt": True})
    assert (parsed.batch_size, parsed.epochs, parsed.train_on_prompt) == (4, 2.0, True)
    assert type(parsed.batch_size) is int
    assert type(parsed.epochs) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0}, "learning_rate: must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a number"),
        ({"epochs": -1}, "epochs"),
        ({"max_steps": 0}, "max_steps"),
        ({"batch_size": 0}, "batch_size: must be from 1"),
        ({"batch_size": 1.5}, "batch_size: must be a whole number, is 1.5"),
        ({"batch_size": True}, "batch_size: must be a whole number"),
        ({"gradient_accumulation": 0}, "gradient_accumulation"),
        ({"max_length": 1}, "max_length"),
        ({"warmup": 1}, "warmup: is a share of the steps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"max_gradient_norm": 0}, "max_gradient_norm"),
        ({"schedule": "step"}, "schedule: must be one of linear, cosine, constant"),
        ({"seed": -1}, "seed"),
        ({"train_on_prompt": 1}, "train_on_prompt: must be true or false"),
        ({"frozen_layers": -1}, "frozen_layers"),
        ({"shifted_attention_group": 3}, "shifted_attention_group: must be an even number"),
        ({"rank": 3}, "rank: is no hyperparameter; these are learning_rate"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(InvalidFieldError, match=rf"^hyperparameters\.{message}"):
        Hyperparameters.parse(values)
