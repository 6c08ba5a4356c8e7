"""Options that say what a training job is to do, and the spec that they make."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from graftwork.cli.options import aware, time_options

F = TypeVar("F", bound=Callable[..., Any])

# Options of the command -> the field of the spec that they set.
_FIELDS = {
    "recipe": "recipe",
    "method": "method",
    "initial_version": "initial_version",
    "tasks": "dataset.selection.tasks",
    "format": "dataset.selection.format",
    "after": "dataset.selection.after",
    "before": "dataset.selection.before",
    "snapshot": "dataset.snapshot",
    "scrub": "dataset.scrub",
    "epochs": "hyperparameters.epochs",
    "max_steps": "hyperparameters.max_steps",
    "learning_rate": "hyperparameters.learning_rate",
    "batch_size": "hyperparameters.batch_size",
    "seed": "hyperparameters.seed",
    "trials": "search.trials",
    "min_accuracy": "gate.min_accuracy",
    "min_f1": "gate.min_f1",
    "promote": "promotion.mode",
    "canary_percent": "promotion.canary_percent",
}


class AssignmentType(click.ParamType):  # type: ignore[type-arg]
    """FIELD=VALUE with a path of the spec and JSON, or a text that is none."""

    name = "FIELD=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        path, separator, text = str(value).partition("=")
        if not separator or not path:
            self.fail(f"{value!r} is not FIELD=VALUE", param, ctx)
        try:
            return path, json.loads(text)
        except ValueError:
            return path, text


class SpecFileType(click.ParamType):  # type: ignore[type-arg]
    """A JSON file with a spec, such as the `spec` that `graftwork train show --json` prints."""

    name = "FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            found = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.fail(f"cannot read {value}: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value} holds no JSON object", param, ctx)
        return found


def spec_options(function: F) -> F:
    """What a job is to do; pass their values to `to_spec`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return time_options(function)


_OPTIONS = (
    click.option("--task", "tasks", multiple=True, help="Train on this task. Repeatable."),
    click.option("--format", help="How feedback becomes examples; default: the recipe's."),
    click.option("--recipe", help="How to train; default: sft."),
    click.option("--method", help="PEFT's name of the adapter method; default: LORA."),
    click.option(
        "--from", "initial_version", metavar="NAME@VERSION", help="Go on from this version."
    ),
    click.option("--snapshot", metavar="DIGEST", help="Train on an earlier job's data set."),
    click.option("--scrub/--no-scrub", default=None, help="Replace personal data and secrets."),
    click.option("--epochs", type=float, help="Passes over the data."),
    click.option("--max-steps", type=int, help="Stop after so many optimizer steps."),
    click.option("--learning-rate", type=float, help="Default: by method."),
    click.option("--batch-size", type=int, help="Examples in one forward pass."),
    click.option("--seed", type=int, help="Same seed and data, same adapter."),
    click.option("--search", "trials", type=int, help="Try so many sets of hyperparameters first."),
    click.option("--min-accuracy", type=float, help="Refuse a candidate below it."),
    click.option("--min-f1", type=float, help="Refuse a candidate below it."),
    click.option(
        "--promote",
        type=click.Choice(["live", "canary", "none"]),
        help="What happens to a candidate that passes; default: live.",
    ),
    click.option("--canary-percent", type=int, help="Share of the traffic for --promote canary."),
    click.option(
        "--set",
        "assignments",
        type=AssignmentType(),
        multiple=True,
        help="Any other field of the spec, such as dataset.balance=0.5. Repeatable.",
    ),
    click.option(
        "--spec", "base", type=SpecFileType(), help="A JSON file with a spec; options change it."
    ),
)


def to_spec(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the spec's options out of a command's, and makes the spec of them."""
    spec: dict[str, Any] = options.pop("base") or {}
    assignments = options.pop("assignments")
    options["after"], options["before"] = aware(options["after"]), aware(options["before"])
    for name, path in _FIELDS.items():
        value = options.pop(name)
        if value is not None and value != ():
            _set(spec, path, value)
    for path, value in assignments:
        _set(spec, path, value)
    return spec


def _set(spec: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
        if not isinstance(spec, dict):
            raise click.UsageError(f"--set {path}: {parent} has no fields")
    spec[name] = value
