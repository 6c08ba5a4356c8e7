"""When policies start jobs."""

from datetime import UTC, datetime

import pytest
from graftwork_trainer.jobs.records import PolicyRecord
from graftwork_trainer.jobs.triggers import (
    PolicySituation,
    is_due,
    next_spec,
    next_time_ns,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.jobs.queue import spec_of

HOUR_NS = 3600 * 10**9
START_NS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**9


def policy(**changes: object) -> PolicyRecord:
    fields = {
        "name": "p",
        "spec": spec_of(),
        "min_new_feedback": 0,
        "schedule": "",
        "paused": False,
        "create_time_ns": START_NS,
        "last_job": "",
        "last_start_time_ns": 0,
    }
    return PolicyRecord(**{**fields, **changes})


def situation(*, new: int = 0, active: int = 0, hours: float = 0) -> PolicySituation:
    return PolicySituation(active, new, START_NS + int(hours * HOUR_NS))


@pytest.mark.parametrize(
    ("changes", "now", "due"),
    [
        ({"min_new_feedback": 5}, situation(new=4), False),
        ({"min_new_feedback": 5}, situation(new=5), True),
        ({"min_new_feedback": 5, "paused": True}, situation(new=5), False),
        ({"min_new_feedback": 5}, situation(new=5, active=1), False),
        ({"schedule": "0 3 * * *"}, situation(new=1, hours=2.99), False),
        ({"schedule": "0 3 * * *"}, situation(new=1, hours=3), True),
        ({"schedule": "0 3 * * *"}, situation(new=0, hours=3), False),  # nothing to learn
        (
            {"schedule": "0 3 * * *", "last_start_time_ns": START_NS + 3 * HOUR_NS},
            situation(new=1, hours=26),
            False,
        ),
        # Many times passed while the server was down: one job.
        ({"schedule": "0 3 * * *"}, situation(new=1, hours=240), True),
        ({"min_new_feedback": 9, "schedule": "0 3 * * *"}, situation(new=1, hours=3), True),
        ({"min_new_feedback": 9, "schedule": "0 3 * * *"}, situation(new=9, hours=1), True),
    ],
)
def test_what_is_due(changes: dict, now: PolicySituation, due: bool):
    assert is_due(policy(**changes), now) is due


def test_the_next_time_is_in_utc():
    three = datetime(2026, 1, 1, 3, tzinfo=UTC).timestamp() * 1e9
    assert next_time_ns("0 3 * * *", START_NS) == three
    assert next_time_ns("0 3 * * *", int(three)) == three + 24 * HOUR_NS


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 50))
def test_each_item_counts_once(arrivals: list[int], wanted: int):
    """One job for every `wanted` items or more, and none for fewer."""
    record, unread, started = policy(min_new_feedback=wanted), 0, 0
    for arrived in arrivals:
        unread += arrived
        if is_due(record, situation(new=unread)):
            assert unread >= wanted
            started, unread = started + 1, 0
    assert started <= sum(arrivals) // wanted
    assert unread < wanted


def test_the_next_job_takes_what_comes_after_the_one_before():
    record = policy(min_new_feedback=1)
    now = START_NS + 5
    after = next_spec(record, now).dataset.selection
    assert after.after.ToNanoseconds() == now
    assert not after.HasField("before")
    assert not record.spec.dataset.selection.HasField("before")
