"""What a worker does to itself before it does anything else: steps back, and ties its life to the
server's.

On Linux the idle scheduling class gives way at once to whatever of the server wakes up. Niceness
alone does not: a kernel without preemption lets a thread of the lowest niceness keep a core for
whole time slices, while the helper of the engine's kernels waits for it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import Literal

Scheduling = Literal["idle", "nice"]

_PR_SET_PDEATHSIG = 1
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13
_LEASE_CHECK_BYTES = 64


def step_back(scheduling: Scheduling, niceness: int) -> None:
    """Lowers the priority of this process for processor and disk, as far as the system lets it.

    Threads made afterwards inherit it: call it before any is.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    if sys.platform != "linux":
        return
    if scheduling == "idle":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:  # errors, as in a container that forbids it, change nothing
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


def die_with(parent: int) -> None:
    """Ends this process when the process `parent`, which started it, is gone.

    The kernel's signal (Linux) comes when the thread that started this process ends; the lease is
    standard input, which the parent holds open and never writes to.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the signal was asked for
        os._exit(1)
    threading.Thread(target=_exit_at_end_of_input, name="lease", daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, _LEASE_CHECK_BYTES):
        pass
    os._exit(1)
