"""Who is admitted next: priority, then fairness across clients, then arrival.

A client is a tenant with an adapter (the base counts as one). Within a priority, clients are served
by Virtual Token Counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): the
client with the least service so far goes first, and one that comes back after a pause is lifted to
where the others are, so that idleness earns no credit.

Each (priority, client) is a lane, first in first out, and each priority has a heap of lanes, put in
order only where it is looked at. A step thus costs O(admissions · log lanes), not O(waiting).
"""

import heapq
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from graftwork_server.blocks import IntegrityError
from graftwork_server.request import Sequence

PREFILL_WEIGHT = 1.0  # service that a computed prompt token counts for
DECODE_WEIGHT = 2.0  # an output token takes a step of its own, so it counts for more

# A lane's place among those of its priority: preempted first, then least served, then earliest.
_Rank = tuple[bool, float, float, int]


@dataclass(slots=True, eq=False)
class Lane:
    """The waiting sequences of one client at one priority, and the service it has had."""

    priority: int
    tenant: str
    digest: str
    counter: float = 0.0  # weighted tokens of service
    num_running: int = 0
    preempted: OrderedDict[int, Sequence] = field(default_factory=OrderedDict)
    arrived: OrderedDict[int, Sequence] = field(default_factory=OrderedDict)
    deferred: dict[int, Sequence] = field(default_factory=dict)  # waiting for another's prompt
    heap_entry: int | None = None  # number of its valid entry in the heap
    parked: bool = False  # its digest cannot be admitted now

    @property
    def head(self) -> Sequence | None:
        for queue in (self.preempted, self.arrived):
            for sequence in queue.values():
                return sequence
        return None

    @property
    def num_waiting(self) -> int:
        return len(self.preempted) + len(self.arrived) + len(self.deferred)

    def charge(self, service: float) -> None:
        self.counter += service

    def rank(self, head: Sequence) -> _Rank:
        return (not self.preempted, self.counter, head.arrival_time, head.sequence_id)


class _Level:
    """The lanes of one priority."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.lanes: dict[tuple[str, str], Lane] = {}
        self._heap: list[tuple[_Rank, int, Lane]] = []
        self._num_pushed = 0
        self._floor = 0.0  # service of the client chosen last, when it was chosen
        self._last_chosen: Lane | None = None
        self._prune_at = 1024

    def lane(self, priority: int, tenant: str, digest: str) -> Lane:
        key = (tenant, digest)
        lane = self.lanes.get(key)
        if lane is None:
            self._prune()
            lane = self.lanes[key] = Lane(priority, tenant, digest)
        return lane

    def lift(self, lane: Lane) -> None:
        """Before a new sequence joins: an empty lane gets no credit for having been so."""
        if lane.num_waiting:
            return
        if self.num_waiting == 0 and self._last_chosen is not None:
            self._floor = max(self._floor, self._last_chosen.counter)
        lane.counter = max(lane.counter, self._floor)

    def chosen(self, lane: Lane, *, resumed: bool) -> None:
        self._last_chosen = lane
        if not resumed:
            self._floor = max(self._floor, lane.counter)

    def push(self, lane: Lane) -> None:
        """Enters the lane at its present rank; an entry that it has already becomes void."""
        head = lane.head
        if head is None:
            lane.heap_entry = None
            return
        if len(self._heap) > 2 * len(self.lanes) + 64:
            self._heap = [entry for entry in self._heap if entry[2].heap_entry == entry[1]]
            heapq.heapify(self._heap)
        self._num_pushed += 1
        lane.heap_entry = self._num_pushed
        heapq.heappush(self._heap, (lane.rank(head), self._num_pushed, lane))

    def top(
        self, is_admissible: Callable[[str], bool], park: Callable[[Lane], None]
    ) -> Lane | None:
        """The first lane whose digest is admissible; the others on the way are parked.

        A rank only grows while its entry is in the heap (what makes it smaller pushes anew), so
        the first entry that is still true is the first lane.
        """
        while self._heap:
            rank, number, lane = self._heap[0]
            head = lane.head
            if lane.heap_entry != number:
                heapq.heappop(self._heap)
            elif head is None or not is_admissible(lane.digest):
                heapq.heappop(self._heap)
                lane.heap_entry = None
                if head is not None:
                    park(lane)
            elif lane.rank(head) != rank:
                heapq.heapreplace(self._heap, (lane.rank(head), number, lane))
            else:
                return lane
        return None

    def _prune(self) -> None:
        """Forgets idle lanes that an arrival would lift anyway: nothing is lost with them."""
        if len(self.lanes) < self._prune_at:
            return
        self.lanes = {
            key: lane
            for key, lane in self.lanes.items()
            if lane.num_waiting or lane.num_running or lane.counter > self._floor
        }
        self._prune_at = max(1024, 2 * len(self.lanes))


class WaitingQueue:
    """All sequences that are not in memory, in order of admission."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self._levels: dict[int, _Level] = {}
        self._descending: list[int] = []  # negated priorities, ascending
        self._parked: dict[str, list[Lane]] = {}
        self._priorities_of: dict[str, Counter[int]] = {}  # waiting sequences, by digest

    def lane_of(self, sequence: Sequence) -> Lane:
        level = self._levels.get(sequence.priority)
        if level is None:
            level = self._levels[sequence.priority] = _Level()
            insort(self._descending, -sequence.priority)
        return level.lane(sequence.priority, sequence.tenant, sequence.adapter_digest)

    def num_waiting_of(self, digest: str) -> int:
        counts = self._priorities_of.get(digest)
        return 0 if counts is None else counts.total()

    def top_priority_of(self, digest: str) -> int | None:
        """The highest priority among the sequences that wait for a digest."""
        counts = self._priorities_of.get(digest)
        return None if counts is None else max(counts)

    @property
    def by_digest(self) -> dict[str, int]:
        return {digest: counts.total() for digest, counts in self._priorities_of.items()}

    def add(self, sequence: Sequence, lane: Lane, *, deferred: bool = False) -> None:
        """Appends a new sequence. A deferred one is not admitted before `undefer`."""
        self._levels[lane.priority].lift(lane)
        self._count(lane, 1)
        if deferred:
            lane.deferred[sequence.sequence_id] = sequence
            return
        lane.arrived[sequence.sequence_id] = sequence
        self._ensure_entered(lane)

    def undefer(self, sequence: Sequence, lane: Lane) -> None:
        """Lets a deferred sequence be admitted, next in its lane."""
        del lane.deferred[sequence.sequence_id]
        lane.arrived[sequence.sequence_id] = sequence
        lane.arrived.move_to_end(sequence.sequence_id, last=False)
        self._enter(lane)

    def put_back(self, sequence: Sequence, lane: Lane) -> None:
        """Returns a preempted sequence: before all that are new at its priority."""
        self._count(lane, 1)
        lane.preempted[sequence.sequence_id] = sequence
        lane.preempted.move_to_end(sequence.sequence_id, last=False)
        self._enter(lane)

    def remove(self, sequence: Sequence, lane: Lane) -> None:
        """Takes a sequence out, wherever it stands. Raises KeyError if it is not waiting."""
        sequence_id = sequence.sequence_id
        if sequence_id in lane.preempted:
            del lane.preempted[sequence_id]
        elif sequence_id in lane.deferred:
            del lane.deferred[sequence_id]
        else:
            del lane.arrived[sequence_id]
        self._count(lane, -1)

    def peek(self, is_admissible: Callable[[str], bool]) -> Sequence | None:
        """The sequence to admit next, among those whose digest is admissible."""
        for negated in self._descending:
            lane = self._levels[-negated].top(is_admissible, self._park)
            if lane is not None:
                return lane.head
        return None

    def pop(self, sequence: Sequence, lane: Lane) -> None:
        """Takes out the sequence that `peek` returned, to be run."""
        resumed = sequence.sequence_id in lane.preempted
        self.remove(sequence, lane)
        self._levels[lane.priority].chosen(lane, resumed=resumed)
        # Where a preempted head leaves, the lane falls behind: its entry is put right when seen.

    def unpark(self, digest: str) -> None:
        """The digest may be admitted again: its lanes come back into the order."""
        for lane in self._parked.pop(digest, ()):
            lane.parked = False
            self._enter(lane)

    def check_idle(self) -> None:
        """Raises IntegrityError unless it is as empty as where nothing waits or runs."""
        lanes = [lane for level in self._levels.values() for lane in level.lanes.values()]
        if self.num_waiting or self._priorities_of or any(lane.num_waiting for lane in lanes):
            raise IntegrityError("sequences wait, and none is known")
        if self._parked:
            raise IntegrityError("lanes are parked, and nothing waits")
        if any(lane.num_running for lane in lanes):
            raise IntegrityError("a lane counts running sequences, and nothing runs")

    def _enter(self, lane: Lane) -> None:
        if not lane.parked:
            self._levels[lane.priority].push(lane)

    def _ensure_entered(self, lane: Lane) -> None:
        if lane.heap_entry is None:
            self._enter(lane)

    def _park(self, lane: Lane) -> None:
        lane.parked = True
        self._parked.setdefault(lane.digest, []).append(lane)

    def _count(self, lane: Lane, change: int) -> None:
        self.num_waiting += change
        self._levels[lane.priority].num_waiting += change
        counts = self._priorities_of.setdefault(lane.digest, Counter())
        counts[lane.priority] += change
        if counts[lane.priority] == 0:
            del counts[lane.priority]
        if not counts:
            del self._priorities_of[lane.digest]
            self.unpark(lane.digest)
