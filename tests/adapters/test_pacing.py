import time

from graftwork_adapters.pacing import paced, yield_core


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
