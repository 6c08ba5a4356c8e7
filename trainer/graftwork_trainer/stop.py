"""How a worker ends when its supervisor asks it to."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL: the same job goes on in another process


class Stop:
    """SIGTERM ends the process at once, since every phase may be repeated; only where something
    waits for a checkpoint it is left to that to end."""

    def __init__(self) -> None:
        self._asked = False
        self._waiting = False

    def listen(self) -> None:
        """Call it on the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def is_asked(self) -> bool:
        return self._asked

    @contextmanager
    def waits_for_checkpoint(self) -> Iterator[None]:
        """What runs inside looks at `is_asked`."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
        if self._asked:
            raise SystemExit(EXIT_STOPPED)

    def hold(self) -> None:
        """What follows is short and must not be left half done: SIGTERM no longer ends it."""
        self._waiting = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = True
        if not self._waiting:
            raise SystemExit(EXIT_STOPPED)
