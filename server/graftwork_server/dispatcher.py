"""Carries requests from the event loop to the engine's thread, and events back step by step."""

import asyncio
from collections.abc import Iterable

from graftwork.status import WireError

from graftwork_server.engine import Engine
from graftwork_server.errors import Draining, QueueFull
from graftwork_server.events import Event, FailedEvent, is_final
from graftwork_server.request import Sequence


class EventStream:
    """The events of one request's sequences, in batches; closing it aborts what is unfinished."""

    def __init__(self, dispatcher: "Dispatcher", sequence_ids: Iterable[int]) -> None:
        self._dispatcher = dispatcher
        self._open = set(sequence_ids)
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None  # of the caller, while there are none

    @property
    def is_finished(self) -> bool:
        return not self._open

    async def next_batch(self) -> list[Event]:
        """The events since the last call: of several steps where the caller was slow. One caller
        waits at a time."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    def deliver(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def finish(self, sequence_id: int) -> None:
        """The caller has seen the final event of a sequence."""
        self._open.discard(sequence_id)

    def abort(self, sequence_id: int) -> None:
        """Ends one sequence, for instance at a stop string; later events of it are dropped."""
        if sequence_id in self._open:
            self._open.discard(sequence_id)
            self._dispatcher.abort(sequence_id)

    def close(self) -> None:
        for sequence_id in list(self._open):
            self.abort(sequence_id)


class Dispatcher:
    """Lives on the event loop; only `publish` and `engine_died` are called on the engine's thread.

    `engine_failed` is set once the engine has died.
    """

    def __init__(self, engine: Engine, *, max_in_flight: int) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._max_in_flight = max_in_flight
        self._streams: dict[int, EventStream] = {}
        self._next_sequence_id = 0
        self._draining = False
        self.engine_failed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_in_flight(self) -> int:
        return len(self._streams)

    @property
    def is_draining(self) -> bool:
        return self._draining

    def check_capacity(self, num_sequences: int) -> None:
        """Raises Draining, or QueueFull before any work is spent on a request."""
        if self._draining:
            raise Draining
        if len(self._streams) + num_sequences > self._max_in_flight:
            raise QueueFull(self._max_in_flight)

    def new_sequence_id(self) -> int:
        self._next_sequence_id += 1
        return self._next_sequence_id

    def submit(self, sequences: list[Sequence]) -> EventStream:
        self.check_capacity(len(sequences))
        stream = EventStream(self, [sequence.sequence_id for sequence in sequences])
        for sequence in sequences:
            self._streams[sequence.sequence_id] = stream
        self._idle.clear()
        self._engine.add(sequences)
        return stream

    def abort(self, sequence_id: int) -> None:
        """The engine frees the sequence at its next step; nobody listens to it any more."""
        self._forget(sequence_id)
        self._engine.abort(sequence_id)

    def publish(self, events: list[Event]) -> None:
        """Called on the engine's thread, once a step."""
        self._loop.call_soon_threadsafe(self._deliver, events)

    def engine_died(self, error: WireError) -> None:
        """Called on the engine's thread as it ends: all requests fail, and no more are taken."""
        self._loop.call_soon_threadsafe(self._fail_all, error)

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for running ones; False where some were left."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.sequence_id)
            if stream is not None:
                stream.deliver(event)  # its caller runs once all of the step are delivered
                if is_final(event):
                    self._forget(event.sequence_id)

    def _fail_all(self, error: WireError) -> None:
        self._draining = True
        self._deliver([FailedEvent(sequence_id, error) for sequence_id in self._streams])
        self.engine_failed.set()

    def _forget(self, sequence_id: int) -> None:
        self._streams.pop(sequence_id, None)
        if not self._streams:
            self._idle.set()
