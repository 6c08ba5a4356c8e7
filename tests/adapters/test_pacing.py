import time

from graftwork_adapters.pacing import paced, yield_core, yielding_while


def test_paced_gives_all_items_in_order() -> None:
    assert list(paced(range(20))) == list(range(20))
    assert list(paced([])) == []


def test_the_thread_sleeps() -> None:
    before = time.perf_counter()
    yield_core()
    assert time.perf_counter() > before
    used = time.thread_time()
    list(paced(range(800)))
    assert time.perf_counter() - before > time.thread_time() - used


def test_who_is_not_in_the_way_does_not_sleep() -> None:
    asked = []

    def is_needed() -> bool:
        asked.append(None)
        return len(asked) > 40

    with yielding_while(is_needed):
        started = time.perf_counter()
        list(paced(range(8 * 40)))
        undisturbed = time.perf_counter() - started
        list(paced(range(8 * 40)))
        disturbed = time.perf_counter() - started - undisturbed
    assert len(asked) == 80
    assert disturbed > 40 * 2e-4 > undisturbed
    started = time.perf_counter()
    yield_core()
    assert time.perf_counter() - started > 2e-4
