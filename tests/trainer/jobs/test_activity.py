"""A trainer keeps to a few cores while something is served, and takes all of them afterwards."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from graftwork_trainer.jobs.activity import ServingActivity

TRAINER = """
import sys, threading
from pathlib import Path
from graftwork_trainer.jobs.activity import yield_cores

threading.Thread(target=threading.Event().wait, daemon=True).start()
yield_cores(Path(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)


@contextmanager
def trainer(path, cores):
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(path), str(cores)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.communicate(timeout=30)


def cores_of(pid):
    """How many cores each thread of the process may use."""
    threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return {len(os.sched_getaffinity(thread)) for thread in threads}


def becomes(pid, expected):
    deadline = time.monotonic() + 30
    while cores_of(pid) != expected:
        assert time.monotonic() < deadline, cores_of(pid)
        time.sleep(0.01)


def test_all_threads_give_way_while_something_is_served_and_come_back():
    every = len(os.sched_getaffinity(0))
    with ServingActivity.shared() as activity, trainer(activity.path, 1) as pid:
        assert cores_of(pid) == {every}
        activity.set_busy(True)
        becomes(pid, {1})
        activity.set_busy(False)
        becomes(pid, {every})


def test_a_trainer_that_may_keep_every_core_keeps_them():
    every = len(os.sched_getaffinity(0))
    with ServingActivity.shared() as activity:
        activity.set_busy(True)
        with trainer(activity.path, every) as pid:
            time.sleep(0.2)
            assert cores_of(pid) == {every}


def test_the_file_is_gone_with_the_server_and_its_engine_may_still_write():
    with ServingActivity.shared() as activity:
        assert activity.path.exists()
    assert not activity.path.exists()
    activity.set_busy(True)
