import os
import sys
from pathlib import Path

from graftwork_trainer.jobs.process import WorkerProcess


async def test_a_worker_has_a_group_of_its_own_in_the_servers_session(tmp_path: Path):
    """A terminal interrupts a group; the processor is shared between sessions first."""
    worker = await WorkerProcess.start(
        (),
        tmp_path / "worker.log",
        command=(sys.executable, "-c", "input()"),
        environment={},
        max_log_bytes=1000,
    )
    try:
        assert os.getpgid(worker.pid) == worker.pid
        assert os.getsid(worker.pid) == os.getsid(0)
    finally:
        await worker.stop(grace_s=5.0)
