import json

import pytest
from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2, training_service_pb2
from graftwork_trainer.datasets.settings import DatasetSettings


def spec(**fields):
    selection = feedback_service_pb2.ExampleSelection(format="sft", tasks=["a"])
    return training_service_pb2.DatasetSpec(selection=selection, **fields)


def test_unset_fields_take_their_defaults():
    settings = DatasetSettings.from_spec(spec())
    assert settings == DatasetSettings(selection=spec().selection)
    assert (settings.format, settings.scrub, settings.golden_share) == ("sft", True, 0.05)


def test_set_fields_are_taken_even_at_zero():
    sent = spec(scrub=False, golden_share=0, validation_share=0.3, mixture={"a": 0.7})
    settings = DatasetSettings.from_spec(sent)
    assert (settings.scrub, settings.golden_share, settings.validation_share) == (False, 0, 0.3)
    assert settings.mixture == {"a": 0.7}


def test_settings_read_back_from_json():
    settings = DatasetSettings.from_spec(spec(balance=0.5, mixture={"a": 1}, max_per_class=3))
    assert DatasetSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"validation_share": 0}, "validation_share"),
        ({"validation_share": 0.6}, "validation_share"),
        ({"golden_share": float("nan")}, "golden_share"),
        ({"duplicate_similarity": 1.5}, "duplicate_similarity"),
        ({"duplicate_similarity": 0}, "duplicate_similarity"),
        ({"max_per_class": -1}, "max_per_class"),
        ({"mixture": {"a": 0}}, 'mixture["a"]'),
        ({"mixture": {"a": float("inf")}}, 'mixture["a"]'),
        ({"augmentation": -1}, "augmentation"),
        ({"augmentation": 1000}, "augmentation"),
        ({"balance": 2}, "balance"),
        ({"snapshot": "sha256:00"}, "snapshot"),
    ],
)
def test_what_is_out_of_range_is_named(fields, field):
    with pytest.raises(InvalidFieldError) as caught:
        DatasetSettings.from_spec(spec(**fields))
    assert caught.value.field == f"dataset.{field}"


def test_the_format_must_be_known():
    with pytest.raises(InvalidFieldError, match="classification"):
        DatasetSettings.from_spec(training_service_pb2.DatasetSpec())
