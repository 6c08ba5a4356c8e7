"""Which adapter versions the queue waits for, and how each of them gets a slot in the end.

A version is *wanted* while sequences wait for it and it is not resident; wanted versions are served
by priority, then in the order in which they came to be wanted. Room is made in two ways. What
nobody runs or waits for is evicted at once. Where all resident versions are busy, a version wanted
for longer than `patience` gets a slot reserved: one resident version per overdue one is *barred*,
that is, admits no further sequence, so that it becomes unreferenced when those running end.

Why no wanted version starves: ahead of it at its priority are only those that were wanted before
it, a finite number. As long as it is overdue some version is barred for it (or a slot is empty), a
barred version ends in finitely many steps, and then the first overdue version whose weights are in
host memory takes the slot. Each placement thus shortens the line. And no version is thrown out
unused: it is barred only once it has been resident for `patience` and has admitted a sequence.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain

from graftwork_server.fairness import WaitingQueue
from graftwork_server.slots import SlotTable

_Place = tuple[int, float, str]  # (-priority, wanted since, digest): the order of the line


class SlotDemand:
    """The line of wanted versions, and the barred ones. Times in seconds on the engine's clock."""

    def __init__(self, slots: SlotTable, waiting: WaitingQueue, patience: float) -> None:
        self._slots = slots
        self._waiting = waiting
        self._patience = patience
        self._line: list[_Place] = []
        self._place_of: dict[str, _Place] = {}
        self._resident_since: dict[str, float] = {}  # in order of placement
        self._barred: dict[str, None] = {}  # in order of barring

    def wanted(self) -> tuple[str, ...]:
        """The first of the line, as many as there are slots, less those placed since `refresh`."""
        first = (digest for _, _, digest in self._line[: self._slots.num_slots])
        return tuple(digest for digest in first if self._slots.slot_of(digest) is None)

    @property
    def barred(self) -> tuple[str, ...]:
        return tuple(self._barred)

    def is_admissible(self, digest: str) -> bool:
        return not digest or (
            self._slots.slot_of(digest) is not None and digest not in self._barred
        )

    def is_held(self, digest: str) -> bool:
        """Whether a resident version must stay for the sequences that wait for it."""
        return digest not in self._barred and self._waiting.num_waiting_of(digest) > 0

    def note(self, digest: str, now: float) -> None:
        """Call after the number of sequences waiting for a digest changed, or its residency."""
        place = self._place_of.get(digest)
        priority = self._waiting.top_priority_of(digest)
        if not digest or priority is None or self._slots.slot_of(digest) is not None:
            wanted = None
        else:
            wanted = (-priority, now if place is None else place[1], digest)
        if wanted == place:
            return
        if place is not None:
            del self._line[bisect_left(self._line, place)]
            del self._place_of[digest]
        if wanted is not None:
            insort(self._line, wanted)
            self._place_of[digest] = wanted

    def refresh(self, now: float) -> None:
        """Takes in what was placed and removed since the last step, then bars or frees."""
        for digest in self._slots.take_changes():
            self.note(digest, now)
            self._resident_since.pop(digest, None)
            self._barred.pop(digest, None)
            if self._slots.slot_of(digest) is not None:
                self._resident_since[digest] = now
                self._waiting.unpark(digest)
        if not self._line and not self._barred:
            return
        barred = self._reserve(now)
        freed = [digest for digest in self._barred if digest not in barred]
        self._barred = barred
        for digest in freed:
            self._waiting.unpark(digest)

    def _reserve(self, now: float) -> dict[str, None]:
        """The versions to bar: room for all overdue ones, those barred already first."""
        overdue = [
            place
            for place in self._line[: self._slots.num_slots]
            if now - place[1] >= self._patience
        ]
        barred: dict[str, None] = {}
        if not overdue:
            return barred
        slots, num_bytes = self._shortage({digest for _, _, digest in overdue})
        kept = (digest for digest in self._barred if not self._slots.is_pinned(digest))
        for digest in chain(kept, self._candidates(now, -overdue[0][0])):
            if slots <= 0 and num_bytes <= 0:
                break
            if digest not in barred:
                barred[digest] = None
                slots -= 1
                num_bytes -= self._slots.bytes_of(digest)
        return barred

    def _shortage(self, overdue: set[str]) -> tuple[int, int]:
        """Slots and bytes that the overdue versions lack. Sizes are known only of what was tried:
        the first of the line that is in host memory."""
        refusal, num_bytes = self._slots.refusal, 0
        if self._slots.max_bytes is not None and refusal is not None and refusal.digest in overdue:
            num_bytes = self._slots.num_bytes + refusal.num_bytes - self._slots.max_bytes
        return len(overdue) - self._slots.num_empty, num_bytes

    def _candidates(self, now: float, priority: int) -> Iterator[str]:
        """Versions that may be barred for one wanted at `priority`: idle ones, the least recently
        used first, then busy ones, the longest resident first."""
        unpinned = [d for d in self._slots.resident_digests if not self._slots.is_pinned(d)]
        yield from (digest for digest in unpinned if self._is_idle(digest))
        for digest, since in self._resident_since.items():
            busy = not self._slots.is_pinned(digest) and not self._is_idle(digest)
            if busy and self._had_its_turn(digest, now - since, priority):
                yield digest

    def _is_idle(self, digest: str) -> bool:
        return not self._slots.num_references(digest) and not self._waiting.num_waiting_of(digest)

    def _had_its_turn(self, digest: str, resident_for: float, priority: int) -> bool:
        waiting = self._waiting.top_priority_of(digest)
        if not self._slots.was_used(digest):
            # Yields only to a higher priority, without which it could hold its slot for ever.
            return waiting is not None and waiting < priority
        return resident_for >= self._patience
