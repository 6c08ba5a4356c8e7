"""How wanted adapter versions come to a slot."""

import hypothesis.strategies as st
import pytest
from graftwork_server.request import FinishReason, SequenceState
from hypothesis import given, settings

from tests.server.scheduler.harness import Harness, make_config


def test_a_cold_adapter_does_not_hold_up_the_others():
    engine = Harness(make_config(), load_steps=5)
    cold, base = engine.add(adapter_digest="cold"), engine.add()
    engine.step()
    assert engine.scheduler.wanted_digests() == ("cold",)
    assert (cold.state, base.state) == (SequenceState.WAITING, SequenceState.RUNNING)
    assert engine.scheduler.waiting_by_digest == {"cold": 1}
    assert engine.scheduler.running_by_digest == {"": 1}
    engine.drain()
    engine.check(cold)


def test_wanted_versions_are_unique_and_in_order_of_priority_then_time():
    engine = Harness(make_config(max_slots=3), load_steps=99)
    for digest, priority in (("a", 0), ("b", 1), ("a", 0), ("c", 0), ("d", 0)):
        engine.add(adapter_digest=digest, priority=priority)
        engine.now += 1.0
    assert engine.scheduler.wanted_digests() == ("b", "a", "c")
    urgent = engine.add(adapter_digest="d", priority=2)
    assert engine.scheduler.wanted_digests() == ("d", "b", "a")
    engine.scheduler.abort(urgent.sequence_id)
    assert engine.scheduler.wanted_digests() == ("b", "a", "c")


def test_what_was_placed_is_wanted_no_more():
    engine = Harness(make_config())
    engine.add(adapter_digest="a")
    engine.place_wanted()
    assert engine.scheduler.wanted_digests() == ()


def test_placing_many_at_once_throws_out_none_that_is_waited_for():
    engine = Harness(make_config(max_slots=2, max_num_sequences=1))
    waiting = [engine.add(adapter_digest=digest) for digest in "abcde"]
    engine.step()
    assert sorted(engine.slot_contents.values()) == ["a", "b"]
    engine.drain()
    for sequence in waiting:
        engine.check(sequence)
    assert engine.scheduler.slots.num_evictions == 3


@pytest.mark.parametrize("load_steps", [0, 3])
def test_constant_traffic_of_resident_adapters_starves_no_other(load_steps):
    engine = Harness(make_config(max_slots=2, max_num_sequences=4), load_steps)
    rare = []
    for step in range(200):
        for digest in "ab":
            engine.add(adapter_digest=digest, max_tokens=3)
        if step in (20, 21, 60):
            rare.append(engine.add(adapter_digest=f"rare{step}", max_tokens=3))
        engine.step()
        if step in (50, 51, 90):
            engine.check(rare.pop(0))
    residents = engine.scheduler.slots.resident_digests
    assert set(residents) == {"a", "b"}  # they came back, too
    assert engine.scheduler.slots.num_evictions < 12


def test_a_barred_version_runs_on_when_nobody_wants_its_slot_any_more():
    engine = Harness(make_config(max_slots=1, max_num_sequences=2), load_steps=0)
    engine.add(adapter_digest="a", max_tokens=40)
    engine.step()
    rare = engine.add(adapter_digest="b")
    for _ in range(3):
        engine.step()
    waiting = engine.add(adapter_digest="a")
    engine.step()
    assert waiting.state is SequenceState.WAITING  # barred
    engine.scheduler.abort(rare.sequence_id)
    engine.step()
    assert waiting.state is SequenceState.RUNNING


def test_a_version_is_not_thrown_out_before_it_was_of_use():
    engine = Harness(make_config(max_slots=1, max_num_sequences=1, slot_patience_s=1.0))
    engine.add(max_tokens=30)  # the base takes the only seat
    engine.step()
    first = engine.add(adapter_digest="a")
    engine.step()
    second = engine.add(adapter_digest="b")
    for _ in range(20):
        engine.step()
    assert engine.slot_contents == {0: "a"}
    engine.drain()
    engine.check(first)
    engine.check(second)


def test_a_version_that_waits_in_its_slot_yields_to_a_higher_priority():
    engine = Harness(make_config(max_slots=1, max_num_sequences=1))
    engine.add(max_tokens=30, priority=5)
    engine.step()
    engine.add(adapter_digest="low")
    engine.step()
    engine.add(adapter_digest="high", priority=5)
    for _ in range(4):
        engine.step()
    assert engine.slot_contents == {0: "high"}
    engine.drain()


def test_bytes_are_made_free_as_slots_are():
    engine = Harness(make_config(max_slots=4, max_slot_bytes=4, max_num_sequences=4))
    engine.sizes = {"big": 4}
    for step in range(60):
        for digest in "abc":
            engine.add(adapter_digest=digest, max_tokens=2)
        if step == 10:
            big = engine.add(adapter_digest="big")
        engine.step()
    engine.check(big)


def test_one_that_can_never_fit_fails_alone():
    engine = Harness(make_config(max_slot_bytes=4))
    engine.sizes = {"huge": 5}
    huge, other = engine.add(adapter_digest="huge"), engine.add(adapter_digest="a")
    engine.drain()
    assert huge.finish_reason is FinishReason.FAILED
    engine.check(other)


@settings(max_examples=40)
@given(
    max_slots=st.integers(1, 3),
    num_busy=st.integers(1, 4),
    patience=st.sampled_from((0.0, 2.0)),
    load_steps=st.integers(0, 2),
    arrivals=st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_every_rare_adapter_is_served_in_bounded_time(
    max_slots, num_busy, patience, load_steps, arrivals
):
    config = make_config(max_slots=max_slots, max_num_sequences=3, slot_patience_s=patience)
    engine = Harness(config, load_steps)
    # Ahead of each: the other rare ones and the busy ones, each of them patience, a load, and the
    # running sequences' end; then a seat, which several clients share.
    per_turn = patience + load_steps + 3 + 3
    bound = 40 + (len(arrivals) + num_busy) * per_turn * 3
    rare = []
    for step in range(int(30 + bound)):
        for busy in range(num_busy):
            if engine.scheduler.waiting_by_digest.get(f"busy{busy}", 0) < 3:
                engine.add(adapter_digest=f"busy{busy}", max_tokens=3)
        rare += [
            engine.add(adapter_digest=f"rare{index}", max_tokens=3)
            for index, arrival in enumerate(arrivals)
            if arrival == step
        ]
        engine.step()
    for sequence in rare:
        engine.check(sequence)
