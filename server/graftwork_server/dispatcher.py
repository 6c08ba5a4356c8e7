"""Carries requests from the event loop to the engine's thread, and events back step by step."""

import asyncio
from collections.abc import Iterable

from graftwork.status import WireError

from graftwork_server.engine import Engine
from graftwork_server.errors import Draining, QueueFull
from graftwork_server.events import Event, FailedEvent, TokenEvent, is_final
from graftwork_server.request import Sequence


class EventStream:
    """The events of one request's sequences, in batches; closing it aborts what is unfinished.

    A batch is given out at least `interval_s` after the one before, and with the events of a step:
    tokens that come sooner wait for the next step. A message costs the event loop and the client
    more than a token does. The first token of a sequence and its end wait for nothing.
    """

    def __init__(
        self, dispatcher: "Dispatcher", sequence_ids: Iterable[int], interval_s: float
    ) -> None:
        self._dispatcher = dispatcher
        self._interval_s = interval_s
        self._open = set(sequence_ids)
        self._begun: set[int] = set()  # sequences with a token
        self._events: list[Event] = []
        self._times: list[float] = []
        self.batch_times: list[float] = []  # when the last batch's events came, of the loop's time
        self._is_due = False  # that what is there is given out
        self._next_time = 0.0  # of the event loop: before it, events wait for others
        self._waiter: asyncio.Future[None] | None = None  # of the caller, while nothing is due

    @property
    def is_finished(self) -> bool:
        return not self._open

    async def next_batch(self) -> list[Event]:
        """The events since the last call: of several steps where the caller was slow. One caller
        waits at a time."""
        loop = asyncio.get_running_loop()
        while not self._is_due:
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events, self._is_due = self._events, [], False
        self.batch_times, self._times = self._times, []
        self._next_time = loop.time() + self._interval_s
        return events

    def deliver(self, event: Event, now: float) -> None:
        """now: the event loop's time."""
        self._events.append(event)
        self._times.append(now)
        is_first = isinstance(event, TokenEvent) and event.sequence_id not in self._begun
        if is_first:
            self._begun.add(event.sequence_id)
        if is_first or now >= self._next_time or is_final(event):
            self._give_out()

    def give_out_late(self, now: float) -> bool:
        """Gives out what has waited for a step that did not come; False where some still waits."""
        if self._events and now >= self._next_time:
            self._give_out()
        return self._is_due or not self._events

    def _give_out(self) -> None:
        self._is_due = True
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

    def __init__(self, engine: Engine, *, max_in_flight: int, interval_s: float) -> None:
        """interval_s: see EventStream."""
        self._engine = engine
        self._interval_s = interval_s
        self._sweep: asyncio.TimerHandle | None = None
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
        stream = EventStream(
            self, [sequence.sequence_id for sequence in sequences], self._interval_s
        )
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
        now = self._loop.time()
        for event in events:
            stream = self._streams.get(event.sequence_id)
            if stream is not None:
                stream.deliver(event, now)  # its caller runs once all of the step are delivered
                if is_final(event):
                    self._forget(event.sequence_id)
        if self._interval_s and self._streams and self._sweep is None:
            self._sweep = self._loop.call_later(2 * self._interval_s, self._give_out_late)

    def _give_out_late(self) -> None:
        """For sequences that wait for a slot or for memory between two tokens."""
        self._sweep = None
        now = self._loop.time() - self._interval_s
        waiting = [stream for stream in self._streams.values() if not stream.give_out_late(now)]
        if waiting:
            self._sweep = self._loop.call_later(self._interval_s, self._give_out_late)

    def _fail_all(self, error: WireError) -> None:
        self._draining = True
        self._deliver([FailedEvent(sequence_id, error) for sequence_id in self._streams])
        self.engine_failed.set()

    def _forget(self, sequence_id: int) -> None:
        self._streams.pop(sequence_id, None)
        if not self._streams:
            self._idle.set()
