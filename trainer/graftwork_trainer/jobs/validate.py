"""From the wire's TrainingJobSpec to the checked one. Raises InvalidFieldError for the first field
that is not acceptable, or that contradicts another."""

import math
import re
from typing import Any

from google.protobuf import json_format, struct_pb2
from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2
from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.selector import parse_name, parse_selector

from graftwork_trainer.datasets.examples import FORMATS
from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.jobs.catalogue import DEFAULT_METHOD, DEFAULT_RECIPE, Catalogue
from graftwork_trainer.jobs.checks import Fields
from graftwork_trainer.jobs.spec import (
    DatasetSpec,
    JobSpec,
    LimitsSpec,
    PromotionMode,
    PromotionSpec,
    SearchSpec,
)
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.options import OPTIONS

SEARCHABLE = ("learning_rate", "rank", "epochs", "batch_size")
MAX_TRIALS = 100

_MAX_HELD_OUT = 0.9
_MAX_STEPS = 10_000_000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODES = {
    pb.PromotionSpec.MODE_UNSPECIFIED: PromotionMode.LIVE,
    pb.PromotionSpec.MODE_NONE: PromotionMode.NONE,
    pb.PromotionSpec.MODE_LIVE: PromotionMode.LIVE,
    pb.PromotionSpec.MODE_CANARY: PromotionMode.CANARY,
}


def parse_spec(spec: pb.TrainingJobSpec, catalogue: Catalogue, *, path: str = "spec") -> JobSpec:
    """`path` is where the request has the spec, such as "policy.spec"."""
    fields = Fields(spec, path)
    recipe = fields.one_of("recipe", catalogue.recipe_formats, default=DEFAULT_RECIPE)
    initial_version = _initial_version(spec, fields)
    method = fields.one_of(
        "method", catalogue.methods, default="" if initial_version else DEFAULT_METHOD
    )
    hyperparameters = parse_hyperparameters(spec.hyperparameters, f"{path}.hyperparameters")
    return JobSpec(
        adapter=parse_name(spec.adapter, field=fields.name("adapter")),
        recipe=recipe,
        method=method,
        method_config=_plain(spec.method_config),
        dataset=parse_dataset(spec.dataset, catalogue.recipe_formats[recipe], f"{path}.dataset"),
        hyperparameters=hyperparameters,
        initial_version=initial_version,
        search=_search(spec, hyperparameters, fields) if spec.HasField("search") else None,
        gate=parse_gate(spec.gate, f"{path}.gate"),
        promotion=parse_promotion(spec.promotion, f"{path}.promotion"),
        limits=parse_limits(spec.limits, f"{path}.limits"),
        recipe_options=_recipe_options(spec, recipe, fields),
    )


def _recipe_options(spec: pb.TrainingJobSpec, recipe: str, fields: Fields) -> dict[str, Any]:
    values = _plain(spec.recipe_options)
    known = OPTIONS[recipe].parse(values, fields.name("recipe_options"))
    if known.is_online and spec.HasField("search"):
        raise fields.fail("search", f"does not go with {recipe}, which has no validation loss")
    return values


def parse_dataset(spec: pb.DatasetSpec, formats: tuple[str, ...], path: str) -> DatasetSpec:
    """`formats` are those that the recipe learns from; the first is the default."""
    fields = Fields(spec, path)
    if spec.snapshot:
        _check_snapshot(spec, fields)
        return DatasetSpec(snapshot=spec.snapshot)
    filled = pb.DatasetSpec()
    filled.CopyFrom(spec)
    filled.selection.CopyFrom(_selection(spec.selection, formats, f"{path}.selection"))
    _check_mixture(spec, fields)
    try:
        settings = DatasetSettings.from_spec(filled)
    except InvalidFieldError as error:
        below = (error.field or "").removeprefix("dataset")
        raise InvalidFieldError(f"{path}{below}", error.description) from None
    if settings.validation_share + settings.golden_share > _MAX_HELD_OUT:
        raise fields.fail(
            "golden_share",
            f"and validation_share must be at most {_MAX_HELD_OUT} together, so that enough is "
            "left to train on",
        )
    return DatasetSpec(settings=settings)


def parse_hyperparameters(spec: pb.Hyperparameters, path: str) -> Hyperparameters:
    fields = Fields(spec, path)
    given = {
        field.name: fields.number(field.name, None)
        if field.has_presence
        else getattr(spec, field.name)
        for field, _ in spec.ListFields()
    }
    parsed = Hyperparameters(**given)
    parsed.check(path)
    if parsed.shifted_attention_group > parsed.max_length:
        raise fields.fail(
            "shifted_attention_group",
            f"must be at most max_length ({parsed.max_length}); got "
            f"{parsed.shifted_attention_group}",
        )
    return parsed


def parse_gate(spec: pb.GateSpec, path: str) -> GateSpec:
    number = Fields(spec, path).number
    defaults = GateSpec()
    return GateSpec(
        min_accuracy=number("min_accuracy", None, at_least=0, at_most=1),
        min_f1=number("min_f1", None, at_least=0, at_most=1),
        max_regression=number("max_regression", defaults.max_regression, at_least=0, at_most=1),
        # A negative gain is how much worse than the base is still acceptable.
        min_gain_over_base=number(
            "min_gain_over_base", defaults.min_gain_over_base, at_least=-1, at_most=1
        ),
        max_other_task_regression=number(
            "max_other_task_regression", defaults.max_other_task_regression, at_least=0, at_most=1
        ),
        max_examples=number("max_examples", defaults.max_examples, at_least=1, at_most=100_000),
        few_shot=number("few_shot", defaults.few_shot, at_least=0, at_most=64),
    )


def parse_promotion(spec: pb.PromotionSpec, path: str) -> PromotionSpec:
    fields = Fields(spec, path)
    mode = _MODES.get(spec.mode)
    if mode is None:
        raise fields.fail("mode", "must be MODE_NONE, MODE_LIVE or MODE_CANARY")
    if mode is not PromotionMode.CANARY:
        for name in ("canary_percent", "canary_feedback", "canary_tolerance"):
            if spec.HasField(name):
                raise fields.fail(name, "is for MODE_CANARY: set mode, or leave it out")
    return PromotionSpec(
        mode=mode,
        canary_percent=fields.number("canary_percent", 10, at_least=1, at_most=99),
        canary_feedback=fields.number("canary_feedback", 20, at_least=1, at_most=1_000_000),
        canary_tolerance=fields.number("canary_tolerance", 0.1, at_least=0, at_most=1),
    )


def parse_limits(spec: pb.JobLimits, path: str) -> LimitsSpec:
    fields = Fields(spec, path)
    duration_s = LimitsSpec().max_duration_s
    if spec.HasField("max_duration"):
        duration_s = spec.max_duration.ToNanoseconds() / 1e9
        if duration_s <= 0:
            raise fields.fail("max_duration", f"must be above 0; got {duration_s:g} s")
    if spec.max_memory_bytes < 0:
        raise fields.fail("max_memory_bytes", "must not be negative; 0 is no limit")
    return LimitsSpec(
        max_duration_s=duration_s,
        max_memory_bytes=spec.max_memory_bytes,
        max_retries=fields.number("max_retries", 2, at_least=0, at_most=100),
    )


def _initial_version(spec: pb.TrainingJobSpec, fields: Fields) -> str:
    if not spec.initial_version:
        return ""
    selector = parse_selector(spec.initial_version, field=fields.name("initial_version"))
    for name in ("method", "method_config"):
        if spec.method if name == "method" else spec.HasField("method_config"):
            raise fields.fail(
                name,
                "is that of initial_version, which the job goes on from: leave one of them out",
            )
    return str(selector)


def _selection(
    selection: feedback_service_pb2.ExampleSelection, formats: tuple[str, ...], path: str
) -> feedback_service_pb2.ExampleSelection:
    fields = Fields(selection, path)
    format_name = fields.one_of("format", FORMATS, default=formats[0])
    if format_name not in formats:
        raise fields.fail(
            "format",
            f"{format_name!r} is not what the recipe learns from; it must be one of "
            f"{', '.join(formats)}",
        )
    after = selection.after.ToNanoseconds()
    if (
        selection.HasField("after")
        and selection.HasField("before")
        and after >= selection.before.ToNanoseconds()
    ):
        raise fields.fail("before", "must be later than after")
    if selection.HasField("reward_threshold"):
        if format_name != "unpaired":
            raise fields.fail(
                "reward_threshold", f'is for the format "unpaired", not {format_name!r}'
            )
        if not math.isfinite(selection.reward_threshold):
            raise fields.fail("reward_threshold", "must be a finite number")
    filled = feedback_service_pb2.ExampleSelection()
    filled.CopyFrom(selection)
    filled.format = format_name
    return filled


def _check_snapshot(spec: pb.DatasetSpec, fields: Fields) -> None:
    if _DIGEST.fullmatch(spec.snapshot) is None:
        raise fields.fail("snapshot", 'must be a digest, "sha256:" and 64 hexadecimal digits')
    for field, _ in spec.ListFields():
        if field.name != "snapshot":
            raise fields.fail(
                field.name,
                "is fixed by the snapshot, which is used as it is: leave one of them out",
            )


def _check_mixture(spec: pb.DatasetSpec, fields: Fields) -> None:
    tasks = set(spec.selection.tasks)
    if not spec.mixture or not tasks:
        return
    if unknown := sorted(spec.mixture.keys() - tasks):
        raise fields.fail(
            "mixture", f"names task {unknown[0][:80]!r}, which selection.tasks does not"
        )
    if missing := sorted(tasks - spec.mixture.keys()):
        raise fields.fail("mixture", f"has no weight for task {missing[0][:80]!r}: give it one")


def _search(
    spec: pb.TrainingJobSpec, hyperparameters: Hyperparameters, outer: Fields
) -> SearchSpec:
    search = spec.search
    fields = Fields(search, outer.name("search"))
    if not 1 <= search.trials <= MAX_TRIALS:
        raise fields.fail("trials", f"must be 1 to {MAX_TRIALS}; got {search.trials}")
    for name in search.parameters:
        if name not in SEARCHABLE:
            raise fields.fail(
                "parameters", f"{name[:80]!r} cannot be searched; {', '.join(SEARCHABLE)} can"
            )
    parameters = tuple(dict.fromkeys(search.parameters)) or SEARCHABLE
    if "rank" in parameters and spec.initial_version:
        if search.parameters:
            raise fields.fail("parameters", "rank is that of initial_version: leave it out")
        parameters = tuple(name for name in parameters if name != "rank")
    steps = fields.number("steps_per_trial", None, at_least=1, at_most=_MAX_STEPS)
    if steps is not None and hyperparameters.max_steps and steps > hyperparameters.max_steps:
        raise fields.fail(
            "steps_per_trial",
            f"must be at most hyperparameters.max_steps ({hyperparameters.max_steps}); got {steps}",
        )
    return SearchSpec(search.trials, parameters, steps)


def _plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as Python values; whole numbers as int, since a Struct has doubles only."""
    return {key: _whole(value) for key, value in json_format.MessageToDict(struct).items()}


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value
