"""A server in a process of its own, started by the command that a user types."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-c", "from graftwork.cli import main; main()", "serve")


@dataclass(frozen=True, slots=True)
class ServerProcess:
    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server_process(
    data: Path, model: Path, *options: str, timeout_s: float = 90
) -> Iterator[ServerProcess]:
    """Runs `graftwork serve` until it is ready; kills what is left of it on the way out."""
    port, metrics_port = free_port(), free_port()
    command = [
        *COMMAND,
        *("--model", str(model), "--quantization", "none", "--data-dir", str(data)),
        *("--port", str(port), "--metrics-port", str(metrics_port)),
        *("--engine-kv-cache-bytes", "16MiB"),
        *options,
    ]
    log = data.with_suffix(".log")
    with log.open("w") as stderr:
        environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "HOME": str(Path.home())}
        process = subprocess.Popen(command, stderr=stderr, text=True, env=environment)
    try:
        end = time.monotonic() + timeout_s
        while not re.search(r"^Ready", log.read_text(), re.MULTILINE):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield ServerProcess(process, port, metrics_port)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
