"""What the figures were measured on, and how they are drawn."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from graftwork_server.engine_parts import usable_cores


def describe_machine() -> str:
    """Such as "AMD EPYC (2 cores, avx512), 24 GiB, Linux, Python 3.11.7, torch 2.13.0+cpu"."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return (
        f"{_processor()} ({usable_cores()} cores, {capability}), {memory:.0f} GiB,"
        f" {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def save_plot(
    path: Path,
    x: Sequence[float],
    panels: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    log_x: bool = False,
) -> None:
    """A panel for each name, which labels its vertical axis, over the same `x`, as a PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - a second, after --help

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False)
    for axis, (label, values) in zip(axes[0], panels.items(), strict=True):
        axis.plot(x, values, marker="o")
        axis.set(xlabel=x_label, ylabel=label)
        axis.set_ylim(0, 1.1 * max(values))
        if log_x:
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{value:g}" for value in x])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
