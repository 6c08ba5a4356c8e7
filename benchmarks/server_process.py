"""A server in a process of its own, started as a user would, and what it takes of the machine."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graftwork import AsyncClient
from graftwork.errors import GraftworkError

READY_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class ServerProcess:
    port: int
    pid: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def running_process(data: Path, *options: str) -> Iterator[ServerProcess]:
    """`graftwork serve` on free ports; its log goes beside the data folder. Ends it with SIGTERM;
    raises RuntimeError where it then does not exit cleanly."""
    port = free_port()
    command = [
        *(str(Path(sys.executable).with_name("graftwork")), "serve", "--port", str(port)),
        *("--metrics-port", str(free_port()), "--data-dir", str(data), *options),
    ]
    log = data.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        yield ServerProcess(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code:
        raise RuntimeError(f"the server ended with status {code}:\n{log.read_text()[-4000:]}")


def wait_as_served() -> None:
    """For benchmarks whose engine runs in their own process: starts the process anew with OpenMP's
    threads told to wait asleep, as `graftwork serve` tells them before torch is imported. Peers are
    never told."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, sys.orig_argv)


async def ready(client: AsyncClient) -> None:
    """Returns once the server answers. Raises TimeoutError."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            try:
                await client.model()
            except GraftworkError:
                await asyncio.sleep(0.05)
            else:
                return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pss_bytes(pid: int) -> int:
    """Proportional set size: pages that several processes share count by share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"process {pid} tells no proportional set size")
    return int(found[1]) * 1024
