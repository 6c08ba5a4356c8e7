import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from graftwork_adapters.background import background_executor


def test_one_torch_thread_there_and_as_many_as_before_elsewhere() -> None:
    before = torch.get_num_threads()
    with background_executor() as executor, ThreadPoolExecutor(1) as new_thread:
        assert executor.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == before
        assert new_thread.submit(torch.get_num_threads).result() == before
        assert executor.submit(torch.get_num_threads).result() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux")
def test_low_priority_there_only() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with background_executor() as executor:
        assert executor.submit(niceness).result() > niceness()
