"""The thresholds of a gate, read from the wire."""

import math
from dataclasses import dataclass
from typing import Any

from graftwork.status import InvalidFieldError
from graftwork.v1.training_service_pb2 import GateSpec as GateMessage

_MAX_EXAMPLES = 100_000
_MAX_FEW_SHOT = 64
_SHARES = (
    "min_accuracy",
    "min_f1",
    "max_regression",
    "min_gain_over_base",
    "max_other_task_regression",
)


@dataclass(frozen=True, slots=True)
class GateSpec:
    """As the message of the same name, with its defaults."""

    min_accuracy: float | None = None
    min_f1: float | None = None
    max_regression: float = 0.01
    min_gain_over_base: float = 0.0
    max_other_task_regression: float = 0.02
    max_examples: int = 200  # of each split
    few_shot: int = 4

    @classmethod
    def from_message(cls, message: GateMessage, field: str = "spec.gate") -> "GateSpec":
        """Raises InvalidFieldError, its path below `field`, for a value that cannot be."""
        values: dict[str, Any] = {
            name: getattr(message, name)
            for name in cls.__dataclass_fields__
            if message.HasField(name)
        }
        for name in _SHARES:
            # A gain may be negative: how much worse than the base is still acceptable.
            lowest = -1.0 if name == "min_gain_over_base" else 0.0
            value = values.get(name, 0.0)
            if not math.isfinite(value) or not lowest <= value <= 1:
                raise InvalidFieldError(
                    f"{field}.{name}", f"within [{lowest:g}, 1] is wanted, not {value:g}"
                )
        for name, lowest, highest in (
            ("max_examples", 1, _MAX_EXAMPLES),
            ("few_shot", 0, _MAX_FEW_SHOT),
        ):
            value = values.get(name, lowest)
            if not lowest <= value <= highest:
                raise InvalidFieldError(
                    f"{field}.{name}", f"within [{lowest}, {highest}] is wanted, not {value}"
                )
        return cls(**values)
