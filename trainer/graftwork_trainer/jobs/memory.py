"""How much memory a worker takes beside what it shares with the server."""

import sys
from pathlib import Path

import psutil


def private_bytes(pid: int) -> int:
    """Anonymous memory of a process: neither the base, which is mapped from its file, nor
    libraries. 0 where the process is gone. Reads /proc, which takes milliseconds."""
    try:
        if sys.platform == "linux":
            return _anonymous_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error):
        return 0


def _anonymous_bytes(rollup: str) -> int:
    for line in rollup.splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    return 0
