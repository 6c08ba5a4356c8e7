"""How long work keeps its core while the engine needs it too."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_PAUSE_S = 2e-4
_ITEMS_BETWEEN_PAUSES = 8

Item = TypeVar("Item")


def yield_core() -> None:
    """Long work that runs beside the engine calls this about once a millisecond.

    Priority alone is not enough: the engine's helpers sleep between kernels, and a kernel without
    preemption lets whoever took their core meanwhile keep it for whole time slices. While an
    adapter was registered, steps so lost their second core, and took twice as long.
    """
    time.sleep(_PAUSE_S)


def paced(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with the core given up after every few of them; each is a matter of 0.1 ms."""
    for index, item in enumerate(items, 1):
        yield item
        if index % _ITEMS_BETWEEN_PAUSES == 0:
            yield_core()
