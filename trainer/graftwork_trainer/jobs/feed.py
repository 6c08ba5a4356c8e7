"""Tells those who watch a job that it has changed. Lives on the event loop."""

import asyncio
import contextlib
from collections.abc import Iterator


class JobFeed:
    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job has changed; the watcher clears it before it
        looks."""
        event = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[job_id]
            watchers.discard(event)
            if not watchers:
                del self._watchers[job_id]

    def changed(self, job_id: str) -> None:
        for event in self._watchers.get(job_id, ()):
            event.set()
