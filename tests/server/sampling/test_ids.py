import threading
import time
import uuid

from graftwork_server.ids import IdGenerator
from hypothesis import given
from hypothesis import strategies as st


def test_is_a_uuid_of_version_7_with_the_time_of_issue():
    before = time.time_ns() // 1_000_000
    issued = uuid.UUID(IdGenerator().new())
    assert issued.version == 7
    assert issued.variant == uuid.RFC_4122
    assert before <= issued.int >> 80 <= time.time_ns() // 1_000_000


@given(
    times=st.lists(st.integers(0, 5), min_size=1, max_size=50),
    ones=st.booleans(),
)
def test_ids_grow_whatever_the_clock_does(times, ones):
    """Also where the clock goes back and where the random part overflows."""
    clock = iter([milliseconds * 1_000_000 for milliseconds in times])
    generator = IdGenerator(
        clock_ns=lambda: next(clock), random_bits=lambda k: (1 << k) - 1 if ones else 0
    )
    ids = [generator.new() for _ in times]
    assert ids == sorted(set(ids))
    assert all(uuid.UUID(issued).version == 7 for issued in ids)


def test_threads_get_distinct_ids():
    generator = IdGenerator()
    found: list[list[str]] = [[] for _ in range(4)]

    def issue(into):
        into.extend(generator.new() for _ in range(500))

    threads = [threading.Thread(target=issue, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in found)
    assert len({issued for ids in found for issued in ids}) == 2000
