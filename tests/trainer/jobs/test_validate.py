"""What a spec may say, and how it is told what is wrong."""

import math

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from graftwork.status import InvalidFieldError
from graftwork.v1 import training_service_pb2 as pb
from graftwork_trainer.jobs.catalogue import RECIPE_FORMATS, Catalogue
from graftwork_trainer.jobs.spec import PromotionMode
from graftwork_trainer.jobs.validate import parse_spec

CATALOGUE = Catalogue(RECIPE_FORMATS, frozenset({"LORA", "IA3"}))


def parse(**fields: object):
    return parse_spec(ParseDict({"adapter": "poet", **fields}, pb.TrainingJobSpec()), CATALOGUE)


def test_defaults():
    spec = parse()
    assert (spec.recipe, spec.method, spec.initial_version) == ("sft", "LORA", "")
    assert spec.dataset.settings.format == "sft"
    assert (spec.hyperparameters.batch_size, spec.hyperparameters.learning_rate) == (8, None)
    assert spec.promotion.mode is PromotionMode.LIVE
    assert spec.gate.few_shot == 4
    assert spec.limits.max_duration_s == 86_400
    assert spec.search is None


def test_what_is_given_is_taken():
    spec = parse(
        recipe="kto",
        method="IA3",
        method_config={"r": 8, "alpha": 0.5, "target_modules": ["q_proj"]},
        hyperparameters={"learning_rate": 1e-4, "seed": "7", "schedule": "cosine"},
        search={"trials": 3, "parameters": ["rank", "rank"]},
        promotion={"mode": "MODE_CANARY", "canary_percent": 20},
        limits={"max_duration": "90s", "max_retries": 0},
    )
    assert spec.method_config == {"r": 8, "alpha": 0.5, "target_modules": ["q_proj"]}
    assert spec.hyperparameters.learning_rate == 1e-4
    assert spec.dataset.settings.format == "unpaired"
    assert spec.search.parameters == ("rank",)
    assert spec.promotion.canary_percent == 20
    assert (spec.limits.max_duration_s, spec.limits.max_retries) == (90, 0)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"adapter": "No Name"}, "spec.adapter", "lower case"),
        ({"recipe": "magic"}, "spec.recipe", "one of dpo, grpo, kto"),
        ({"method": "lora"}, "spec.method", "one of IA3, LORA"),
        ({"initial_version": "poet@x"}, "spec.initial_version", "positive integer"),
        ({"initial_version": "poet@1", "method": "LORA"}, "spec.method", "leave one of them out"),
        (
            {"initial_version": "poet@1", "method_config": {"r": 1}},
            "spec.method_config",
            "leave one of them out",
        ),
        (
            {"dataset": {"selection": {"format": "poem"}}},
            "spec.dataset.selection.format",
            "unpaired",
        ),
        (
            {"dataset": {"selection": {"format": "unpaired"}}},
            "spec.dataset.selection.format",
            "one of sft, classification",
        ),
        (
            {
                "dataset": {
                    "selection": {"after": "2026-01-02T00:00:00Z", "before": "2026-01-01T00:00:00Z"}
                }
            },
            "spec.dataset.selection.before",
            "later",
        ),
        ({"dataset": {"snapshot": "sha256:1"}}, "spec.dataset.snapshot", "64"),
        ({"recipe_options": {"beta": 1}}, "spec.recipe_options.beta", "Extra"),
        (
            {"recipe": "dpo", "recipe_options": {"beta": 0}},
            "spec.recipe_options.beta",
            "greater than 0",
        ),
        ({"recipe": "ppo"}, "spec.recipe_options.rewards", "is missing"),
        (
            {"recipe": "rloo", "recipe_options": {"rewards": [{"kind": "regex", "pattern": "("}]}},
            "spec.recipe_options.rewards[0]",
            "no regular expression",
        ),
        (
            {
                "recipe": "grpo",
                "recipe_options": {"rewards": [{"kind": "regex", "pattern": "x"}]},
                "search": {"trials": 2},
            },
            "spec.search",
            "no validation loss",
        ),
        (
            {"dataset": {"snapshot": "sha256:" + "0" * 64, "scrub": False}},
            "spec.dataset.scrub",
            "fixed by the snapshot",
        ),
        ({"dataset": {"validation_share": 0.001}}, "spec.dataset.validation_share", "0.01"),
        ({"dataset": {"mixture": {"a": -1}}}, 'spec.dataset.mixture["a"]', "greater than 0"),
        (
            {"dataset": {"selection": {"tasks": ["a", "b"]}, "mixture": {"a": 1}}},
            "spec.dataset.mixture",
            "no weight",
        ),
        (
            {"hyperparameters": {"learning_rate": 0}},
            "spec.hyperparameters.learning_rate",
            "above 0",
        ),
        (
            {"hyperparameters": {"learning_rate": "NaN"}},
            "spec.hyperparameters.learning_rate",
            "nan",
        ),
        ({"hyperparameters": {"batch_size": 0}}, "spec.hyperparameters.batch_size", "1"),
        ({"hyperparameters": {"epochs": -1}}, "spec.hyperparameters.epochs", "above 0"),
        ({"hyperparameters": {"schedule": "steps"}}, "spec.hyperparameters.schedule", "cosine"),
        ({"hyperparameters": {"max_length": 1}}, "spec.hyperparameters.max_length", ""),
        (
            {"hyperparameters": {"shifted_attention_group": 7}},
            "spec.hyperparameters.shifted_attention_group",
            "even",
        ),
        ({"search": {"trials": 0}}, "spec.search.trials", "1 to 100"),
        ({"search": {"trials": 5, "parameters": ["luck"]}}, "spec.search.parameters", "rank"),
        (
            {"search": {"trials": 5, "parameters": ["rank"]}, "initial_version": "poet@1"},
            "spec.search.parameters",
            "initial_version",
        ),
        ({"gate": {"min_f1": 1.5}}, "spec.gate.min_f1", "at most 1"),
        ({"promotion": {"canary_percent": 5}}, "spec.promotion.canary_percent", "MODE_CANARY"),
        (
            {"promotion": {"mode": "MODE_CANARY", "canary_feedback": 0}},
            "spec.promotion.canary_feedback",
            "at least 1",
        ),
        ({"limits": {"max_duration": "0s"}}, "spec.limits.max_duration", "above 0"),
        ({"limits": {"max_memory_bytes": "-1"}}, "spec.limits.max_memory_bytes", "negative"),
        ({"limits": {"max_retries": 101}}, "spec.limits.max_retries", "100"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(fields: dict, field: str, words: str):
    with pytest.raises(InvalidFieldError) as caught:
        parse(**fields)
    assert caught.value.field == field
    assert words in caught.value.message


def test_an_endless_duration_is_refused():
    spec = pb.TrainingJobSpec(
        adapter="poet", limits=pb.JobLimits(max_duration=Duration(seconds=-5))
    )
    with pytest.raises(InvalidFieldError, match="max_duration"):
        parse_spec(spec, CATALOGUE)
    spec = pb.TrainingJobSpec(adapter="poet")
    spec.promotion.mode = 9
    with pytest.raises(InvalidFieldError, match="mode"):
        parse_spec(spec, CATALOGUE)
    spec = pb.TrainingJobSpec(adapter="poet")
    spec.hyperparameters.weight_decay = math.inf
    with pytest.raises(InvalidFieldError, match="weight_decay"):
        parse_spec(spec, CATALOGUE)
