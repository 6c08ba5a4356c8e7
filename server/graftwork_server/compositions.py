"""What the digests of compositions stand for: which versions, with which weights."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from graftwork_adapters.composition import Component, composition_digest

Components = tuple[Component, ...]

_MAX_IDLE = 1024  # a few hundred bytes each


class Compositions:
    """Thread-safe. A composition is known while a request holds it, and some time after: its load
    may end later than the request that wanted it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Components] = {}
        self._holders: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # least recently used first

    @contextlib.contextmanager
    def holding(self, components: Components) -> Iterator[str]:
        """The digest of a composition, known while inside."""
        digest = composition_digest(components)
        with self._lock:
            self._known.setdefault(digest, components)
            self._holders[digest] = self._holders.get(digest, 0) + 1
            self._idle.pop(digest, None)
        try:
            yield digest
        finally:
            self._release(digest)

    def find(self, digest: str) -> Components | None:
        """None for the digest of a version."""
        with self._lock:
            return self._known.get(digest)

    def _release(self, digest: str) -> None:
        with self._lock:
            self._holders[digest] -= 1
            if self._holders[digest]:
                return
            del self._holders[digest]
            self._idle[digest] = None
            while len(self._idle) > _MAX_IDLE:
                forgotten, _ = self._idle.popitem(last=False)
                del self._known[forgotten]
