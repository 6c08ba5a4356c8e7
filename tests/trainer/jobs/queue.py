"""A queue in a database, with specs and ids for it."""

import itertools
from collections.abc import Callable, Iterable

from graftwork.v1 import training_service_pb2 as pb


def spec_of(
    adapter: str = "poet", *, do: Iterable[str] = (), **fields: object
) -> pb.TrainingJobSpec:
    spec = pb.TrainingJobSpec(adapter=adapter, **fields)
    if words := list(do):
        spec.recipe_options.update({"do": words})
    return spec


def ids() -> Callable[[], str]:
    """Ids that sort by time."""
    numbers = itertools.count(1)
    return lambda: f"00000000-0000-7000-8000-{next(numbers):012d}"


def clock() -> Callable[[], int]:
    """Each call is a nanosecond later."""
    return itertools.count(1_700_000_000_000_000_000).__next__
