"""Commands to the engine's thread, run between steps."""

import queue
from collections.abc import Callable

Command = Callable[[], None]


class CommandQueue:
    """Filled by any thread, emptied by the engine's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def post(self, command: Command) -> None:
        self._queue.put(command)

    def run_all(self, wait_s: float | None = 0.0) -> None:
        """Runs what is there; where nothing is, waits `wait_s` seconds for one (None: for ever)."""
        try:
            command = self._queue.get_nowait() if wait_s == 0 else self._queue.get(timeout=wait_s)
            while True:
                command()
                command = self._queue.get_nowait()
        except queue.Empty:
            return
