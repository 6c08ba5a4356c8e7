"""The thresholds of a gate."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateSpec:
    """As the wire's message of this name, with its defaults. None: not looked at."""

    min_accuracy: float | None = None
    min_f1: float | None = None
    max_regression: float = 0.01
    min_gain_over_base: float = 0.0
    max_other_task_regression: float = 0.02
    max_examples: int = 200  # of each split
    few_shot: int = 4  # examples in the prompt; 0: not compared with
