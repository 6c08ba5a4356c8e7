import pytest
from graftwork_server.blocks import IntegrityError
from graftwork_server.slots import (
    Evicted,
    Placement,
    Refusal,
    SlotInUseError,
    SlotsUnavailableError,
    SlotTable,
)


def test_empty_slots_are_taken_lowest_first():
    slots = SlotTable(2)
    assert slots.place("a", 1) == Placement(0, ())
    assert slots.place("b", 1) == Placement(1, ())
    assert (slots.slot_of("b"), slots.slot_of("c")) == (1, None)


def test_the_least_recently_used_unreferenced_version_is_evicted():
    slots = SlotTable(3)
    for digest in "abc":
        slots.place(digest, 1)
    slots.acquire("a")
    slots.acquire("b")
    slots.release("b")  # later than c
    assert slots.place("d", 1) == Placement(2, (Evicted("c", 2),))
    assert slots.place("e", 1) == Placement(1, (Evicted("b", 1),))
    assert slots.num_evictions == 2


def test_what_is_referenced_pinned_or_held_stays():
    held = {"c"}
    slots = SlotTable(3, is_held=held.__contains__)
    for digest in "abc":
        slots.place(digest, 1)
    slots.acquire("a")
    slots.pin("b")
    assert slots.place("d", 1) is None
    assert slots.refusal == Refusal("d", 1)
    held.clear()
    assert slots.place("d", 1) == Placement(2, (Evicted("c", 2),))
    assert slots.refusal is None


def test_pins_that_leave_no_room_are_an_error_and_not_a_wait():
    slots = SlotTable(1)
    slots.pin("a")
    slots.place("a", 1)
    with pytest.raises(SlotsUnavailableError):
        slots.place("b", 1)
    slots.unpin("a")
    assert slots.place("b", 1) is not None


def test_the_byte_budget_evicts_several_and_refuses_what_never_fits():
    slots = SlotTable(4, max_bytes=10)
    for digest in "abc":
        slots.place(digest, 3)
    assert slots.place("d", 7) == Placement(0, (Evicted("a", 0), Evicted("b", 1)))
    assert slots.num_bytes == 10
    assert slots.num_empty == 2
    slots.acquire("d")
    assert slots.place("e", 4) is None
    assert slots.resident_digests == ("c", "d")
    with pytest.raises(SlotsUnavailableError):
        slots.place("e", 11)
    slots.check_integrity()


def test_removal_waits_for_references_and_ignores_pins():
    slots = SlotTable(1)
    slots.place("a", 1)
    slots.pin("a")
    slots.acquire("a")
    with pytest.raises(SlotInUseError):
        slots.remove("a")
    slots.release("a")
    assert slots.remove("a") == 0
    assert slots.num_empty == 1


def test_changes_are_told_once():
    slots = SlotTable(1)
    slots.place("a", 1)
    slots.place("b", 1)
    assert set(slots.take_changes()) == {"a", "b"}
    assert slots.take_changes() == ()


def test_misuse_is_noticed():
    slots = SlotTable(1)
    slots.place("a", 1)
    with pytest.raises(ValueError, match="resident already"):
        slots.place("a", 1)
    slots.acquire("a")
    with pytest.raises(IntegrityError, match="referenced"):
        slots.check_integrity(idle=True)
    slots.release("a")
    with pytest.raises(IntegrityError, match="released twice"):
        slots.release("a")
