"""What a job may set about its training: `graftwork.v1.Hyperparameters`, checked."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from graftwork.status import InvalidFieldError

SCHEDULES = ("linear", "cosine", "constant")
_MAX_SEED = 2**32 - 1  # numpy's largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """Names and defaults are those of the wire contract; raises InvalidFieldError where a value
    cannot be trained with."""

    learning_rate: float | None = None  # None: the method's
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    max_length: int = 512  # tokens of prompt and completion
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    schedule: str = "linear"
    seed: int = 0
    train_on_prompt: bool = False
    frozen_layers: int = 0
    shifted_attention_group: int = 0

    @classmethod
    def parse(cls, values: Mapping[str, Any], name: str = "hyperparameters") -> "Hyperparameters":
        """Reads a JSON object, such as a job's; fields left out or null have their defaults.

        Raises InvalidFieldError that names the field, below `name`.
        """
        kinds = get_type_hints(cls)
        given: dict[str, Any] = {}
        for key, value in values.items():
            if key not in kinds:
                raise InvalidFieldError(
                    f"{name}.{key[:80]}", f"is no hyperparameter; these are {', '.join(kinds)}"
                )
            if value is not None:
                given[key] = _converted(value, kinds[key], f"{name}.{key}")
        if not given.get("schedule", "linear"):
            del given["schedule"]  # the wire's default
        parsed = cls(**given)
        parsed.check(name)
        return parsed

    def check(self, name: str = "hyperparameters") -> None:
        """Raises InvalidFieldError for the first value that is impossible."""
        rules: list[tuple[str, bool, str]] = [
            ("learning_rate", self.learning_rate is None or 0 < self.learning_rate <= 10,
             "must be above 0 and at most 10"),
            ("epochs", 0 < self.epochs <= 1000, "must be above 0 and at most 1000"),
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "must be at least 1"),
            ("batch_size", 1 <= self.batch_size <= 4096, "must be from 1 to 4096"),
            ("gradient_accumulation", 1 <= self.gradient_accumulation <= 4096,
             "must be from 1 to 4096"),
            ("max_length", self.max_length >= 2, "must be at least 2"),
            ("warmup", 0 <= self.warmup < 1, "is a share of the steps: from 0 to below 1"),
            ("weight_decay", 0 <= self.weight_decay <= 10, "must be from 0 to 10"),
            ("max_gradient_norm", self.max_gradient_norm > 0, "must be above 0"),
            ("schedule", self.schedule in SCHEDULES, f"must be one of {', '.join(SCHEDULES)}"),
            ("seed", 0 <= self.seed <= _MAX_SEED, f"must be from 0 to {_MAX_SEED}"),
            ("frozen_layers", self.frozen_layers >= 0, "must not be negative"),
            ("shifted_attention_group",
             self.shifted_attention_group >= 0 and self.shifted_attention_group % 2 == 0,
             "must be an even number of tokens, or 0 for plain attention"),
        ]  # fmt: skip
        for key, is_fine, message in rules:
            if not is_fine:
                raise InvalidFieldError(f"{name}.{key}", f"{message}, is {getattr(self, key)}")

    def replaced(self, **changes: Any) -> "Hyperparameters":
        """Another set; raises InvalidFieldError."""
        changed = dataclasses.replace(self, **changes)
        changed.check()
        return changed


def _converted(value: Any, kind: Any, name: str) -> Any:
    """JSON knows one kind of number: whole ones are taken for integers and for floats."""
    wanted = kind if isinstance(kind, type) else kind.__args__[0]
    if wanted is bool or wanted is str:
        if type(value) is wanted:
            return value
    elif type(value) in {int, float} and math.isfinite(value):
        if wanted is float:
            return float(value)
        if value == int(value):
            return int(value)
    described = {bool: "true or false", str: "a string", int: "a whole number", float: "a number"}
    raise InvalidFieldError(name, f"must be {described[wanted]}, is {str(value)[:80]}")
