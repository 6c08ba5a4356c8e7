"""Device slots for adapter versions: which digest sits where, and which may be replaced.

Accounting only; copying an adapter into its slot is the residency manager's work.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from graftwork.status import WireError

from graftwork_server.blocks import IntegrityError


class SlotsUnavailableError(WireError):
    """Pinned versions or the byte budget leave no room for a version, however long it waits."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "ADAPTER_SLOTS_UNAVAILABLE"


class SlotInUseError(WireError):
    """Running sequences use the slot."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ADAPTER_IN_USE"


@dataclass(frozen=True, slots=True)
class Evicted:
    digest: str
    slot: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a version goes, and what leaves for it: slots beside `slot` become empty."""

    slot: int
    evicted: tuple[Evicted, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that would fit if what is in use were not."""

    digest: str
    num_bytes: int


@dataclass(slots=True)
class _Resident:
    slot: int
    num_bytes: int
    references: int = 0
    used: bool = False  # acquired since it was placed


class SlotTable:
    """`num_slots` slots, holding together at most `max_bytes`.

    A resident version that is referenced, pinned, or held is never evicted to place another. A
    version is held while `is_held` says so: the scheduler holds those that sequences wait for, so
    that placing one wanted version does not throw out the one placed a moment before.
    """

    def __init__(
        self,
        num_slots: int,
        max_bytes: int | None = None,
        is_held: Callable[[str], bool] = lambda _digest: False,
    ) -> None:
        self.num_slots = num_slots
        self.max_bytes = max_bytes
        self.num_evictions = 0
        self.refusal: Refusal | None = None  # of the latest `place`, where it returned None
        self._is_held = is_held
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._empty = list(range(num_slots))  # a heap: the lowest slot is taken first
        self._pinned: set[str] = set()
        self._changed: dict[str, None] = {}

    @property
    def resident_digests(self) -> tuple[str, ...]:
        """Least recently used first."""
        return tuple(self._residents)

    @property
    def num_empty(self) -> int:
        return len(self._empty)

    @property
    def num_bytes(self) -> int:
        return sum(resident.num_bytes for resident in self._residents.values())

    def slot_of(self, digest: str) -> int | None:
        resident = self._residents.get(digest)
        return None if resident is None else resident.slot

    def num_references(self, digest: str) -> int:
        resident = self._residents.get(digest)
        return 0 if resident is None else resident.references

    def bytes_of(self, digest: str) -> int:
        """Bytes that a resident version takes."""
        return self._residents[digest].num_bytes

    def was_used(self, digest: str) -> bool:
        """Whether a resident version was acquired since it was placed."""
        return self._residents[digest].used

    def is_pinned(self, digest: str) -> bool:
        return digest in self._pinned

    def pin(self, digest: str) -> None:
        """Once resident, the version stays so until it is unpinned or removed."""
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        self._pinned.discard(digest)

    def place(self, digest: str, num_bytes: int) -> Placement | None:
        """Makes a version resident, evicting the least recently used where needed.

        Call it at a step boundary, and have the version copied before the next step runs. Returns
        None, with nothing changed, if the room it takes is in use now: try again at a later step.
        Raises SlotsUnavailableError if it would not fit even with all that is not pinned gone.
        """
        if digest in self._residents:
            raise ValueError(f"{digest} is resident already")
        self.refusal = None
        evictable = [d for d, r in self._residents.items() if d not in self._pinned]
        if self._victims(evictable, num_bytes) is None:
            raise SlotsUnavailableError(
                f"no room for an adapter of {num_bytes} bytes beside the pinned ones: "
                f"{self.num_slots} slots, {self.max_bytes or 'unlimited'} bytes"
            )
        idle = [d for d in evictable if not (self._residents[d].references or self._is_held(d))]
        victims = self._victims(idle, num_bytes)
        if victims is None:
            self.refusal = Refusal(digest, num_bytes)
            return None
        evicted = tuple(Evicted(victim, self._remove(victim)) for victim in victims)
        self.num_evictions += len(evicted)
        slot = heapq.heappop(self._empty)
        self._residents[digest] = _Resident(slot, num_bytes)
        self._changed[digest] = None
        return Placement(slot, evicted)

    def remove(self, digest: str) -> int:
        """Empties the slot of a resident version, pinned or not, and returns it. Raises
        SlotInUseError while it is referenced."""
        if self._residents[digest].references:
            raise SlotInUseError("running requests use the adapter version")
        return self._remove(digest)

    def acquire(self, digest: str) -> int:
        """Takes a reference to a resident version; returns its slot."""
        resident = self._residents[digest]
        resident.references += 1
        resident.used = True
        self._residents.move_to_end(digest)
        return resident.slot

    def release(self, digest: str) -> None:
        resident = self._residents[digest]
        if resident.references <= 0:
            raise IntegrityError(f"slot {resident.slot} is released twice")
        resident.references -= 1
        self._residents.move_to_end(digest)

    def take_changes(self) -> tuple[str, ...]:
        """The digests placed or removed since the last call."""
        changed = tuple(self._changed)
        self._changed.clear()
        return changed

    def check_integrity(self, *, idle: bool = False) -> None:
        """Raises IntegrityError if a slot is in two places or in none; `idle`: or referenced."""
        taken = [resident.slot for resident in self._residents.values()]
        if sorted([*taken, *self._empty]) != list(range(self.num_slots)):
            raise IntegrityError("a slot is both empty and taken, or neither")
        if self.max_bytes is not None and self.num_bytes > self.max_bytes:
            raise IntegrityError("resident versions exceed the byte budget")
        if idle and any(resident.references for resident in self._residents.values()):
            raise IntegrityError("a slot is referenced, and nothing runs")

    def _victims(self, candidates: list[str], num_bytes: int) -> list[str] | None:
        """The first of the candidates whose going makes room; None where all are not enough."""
        slots, excess = self.num_empty, 0
        if self.max_bytes is not None:
            excess = self.num_bytes + num_bytes - self.max_bytes
        victims: list[str] = []
        for digest in candidates:
            if slots and excess <= 0:
                break
            victims.append(digest)
            slots += 1
            excess -= self._residents[digest].num_bytes
        return victims if slots and excess <= 0 else None

    def _remove(self, digest: str) -> int:
        slot = self._residents.pop(digest).slot
        heapq.heappush(self._empty, slot)
        self._changed[digest] = None
        return slot
