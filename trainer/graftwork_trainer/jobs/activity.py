"""One byte of memory that the server and its trainers share: whether the engine computes now.

A trainer may use every core while nothing is served. Once something is, it keeps to a few of them:
the idle scheduling class gives a core back at once, but not its caches, and an engine that spreads
each product over all cores waits for the slowest.
"""

import contextlib
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Between two requests the engine rests for moments; a trainer that spread out in each would be in
# the way of the next.
_QUIET_S = 0.25
_LOOK_S = 0.01
_IDLE, _BUSY = 0, 1


class ServingActivity:
    """The server's side. `set_busy` may be called at each step: it is a store to memory."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path = path
        self._memory = memory

    @classmethod
    @contextlib.contextmanager
    def shared(cls) -> Iterator["ServingActivity"]:
        """A file of the server's own user, which exists while inside."""
        descriptor, name = tempfile.mkstemp(prefix="graftwork-activity-")
        try:
            os.write(descriptor, bytes([_IDLE]))
            memory = mmap.mmap(descriptor, 1)
        finally:
            os.close(descriptor)
        # The mapping stays: an engine thread may still be at its last step.
        try:
            yield cls(Path(name), memory)
        finally:
            Path(name).unlink(missing_ok=True)

    def set_busy(self, busy: bool) -> None:
        self._memory[0] = _BUSY if busy else _IDLE


def yield_cores(path: Path, cores_while_serving: int) -> None:
    """The trainer's side: from now on all threads of this process keep to `cores_while_serving`
    cores while the engine computes. Linux only; elsewhere it does nothing.

    Raises OSError where the file cannot be read.
    """
    if sys.platform != "linux":
        return
    every = sorted(os.sched_getaffinity(0))
    few = every[-cores_while_serving:]
    if len(few) == len(every):
        return
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
    threading.Thread(
        target=_follow, args=(lambda: memory[0] == _BUSY, every, few), name="cores", daemon=True
    ).start()


def _follow(is_busy: Callable[[], bool], every: list[int], few: list[int]) -> None:
    chosen, last_busy = every, float("-inf")
    while True:
        now = time.monotonic()
        if is_busy():
            last_busy = now
        wanted = few if now - last_busy < _QUIET_S else every
        # Threads inherit the cores of the one that starts them, which may be of the other kind.
        if wanted != chosen or wanted == few:
            chosen = wanted
            _keep_to(wanted)
        time.sleep(_LOOK_S)


def _keep_to(cores: list[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
