"""How long work keeps its core while the engine needs it too."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

_PAUSE_S = 2e-4
_ITEMS_BETWEEN_PAUSES = 8

Item = TypeVar("Item")

_is_core_needed: ContextVar[Callable[[], bool] | None] = ContextVar("is_core_needed", default=None)


def yield_core() -> None:
    """Long work that runs beside the engine calls this about once a millisecond.

    Priority alone is not enough: the engine's helpers sleep between kernels, and a kernel without
    preemption lets whoever took their core meanwhile keep it for whole time slices. While an
    adapter was registered, steps so lost their second core, and took twice as long.
    """
    is_core_needed = _is_core_needed.get()
    if is_core_needed is None or is_core_needed():
        time.sleep(_PAUSE_S)


@contextlib.contextmanager
def yielding_while(is_core_needed: Callable[[], bool]) -> Iterator[None]:
    """Inside, `yield_core` on this thread pauses only while `is_core_needed` says so: pauses take
    as long as all else of an adapter's load."""
    token = _is_core_needed.set(is_core_needed)
    try:
        yield
    finally:
        _is_core_needed.reset(token)


def paced(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with the core given up after every few of them; each is a matter of 0.1 ms."""
    for index, item in enumerate(items, 1):
        yield item
        if index % _ITEMS_BETWEEN_PAUSES == 0:
            yield_core()
