"""The thread where registration hashes, lowers and syncs, so that serving does not stutter."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_NICENESS = 10  # above the serving threads' 0; Linux schedules threads by their own


def background_executor() -> ThreadPoolExecutor:
    """One low-priority thread whose torch operators stay on it. Make it before the engine."""
    executor = ThreadPoolExecutor(1, "adapters", initializer=_be_modest)
    executor.submit(_nothing).result()  # starts the thread now
    return executor


def _be_modest() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # set_num_threads decides for the calling thread and for every thread that first uses torch
    # afterwards; the latter is undone from a thread that ends at once.
    restore = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
    restore.start()
    restore.join()


def _nothing() -> None:
    pass
