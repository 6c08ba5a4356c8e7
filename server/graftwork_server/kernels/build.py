"""Compiles the C++ kernels once per machine and registers them as `torch.ops.graftwork.*`.

The compiler is run directly rather than through torch.utils.cpp_extension: that module needs ninja
on the PATH and setuptools, and a build killed half-way leaves a lock file on which every later
start waits for ever. Here a library is complete or absent: it is renamed into place.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",  # simd.h fuses explicitly, so that a row's bits are fixed
    "-pthread",
    "-std=c++20",
    "-fPIC",
    "-shared",
    "-w",
)
_TYPICAL_BUILD_SECONDS = 15


def kernels_loaded() -> bool:
    """Whether the ops are registered in this process."""
    return hasattr(torch.ops.graftwork, "paged_attention")


def load_kernels() -> bool:
    """Registers the CPU kernels, compiling them where this machine has not yet done so.

    The library is kept in `$GRAFTWORK_CACHE_DIR` (default `~/.cache/graftwork`), keyed by source,
    flags, torch version and CPU. Returns False, after one logged warning that says what is missing,
    where it cannot be built; the torch references then serve, several times slower.

    Raises OSError where a cached library cannot be loaded or the cache cannot be written.
    """
    if kernels_loaded():
        return True
    library = _cache_dir() / _key() / "graftwork_kernels.so"
    if not library.exists() and not _build(library):
        return False
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    return True


def _cache_dir() -> Path:
    root = os.environ.get("GRAFTWORK_CACHE_DIR")
    return (Path(root) if root else Path.home() / ".cache" / "graftwork") / "kernels"


def _key() -> str:
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update("\0".join((*_FLAGS, torch.__version__, _cpu())).encode())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """Model and instruction sets: a hypervisor may hide sets that the model has."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    first_core = cpuinfo.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    wanted = ("model name", "flags", "CPU part", "Features")
    return "\n".join(line for line in first_core if line.startswith(wanted))


def _build(library: Path) -> bool:
    names = (os.environ["CXX"],) if "CXX" in os.environ else ("c++", "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        logger.warning(
            "no C++ compiler found (%s): the CPU kernels are not built and slower torch code is "
            "used; install g++ (Debian and Ubuntu: the package build-essential) and restart",
            ", ".join(names),
        )
        return False
    logger.info("compiling CPU kernels, about %d s", _TYPICAL_BUILD_SECONDS)
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        output = Path(scratch) / library.name
        result = subprocess.run(
            _command(compiler, output), check=False, capture_output=True, text=True
        )
        if result.returncode != 0:
            logger.warning(
                "%s cannot compile the CPU kernels, slower torch code is used; a C++20 compiler "
                "is needed (Debian and Ubuntu: the package build-essential):\n%s",
                compiler,
                result.stderr[-2000:],
            )
            return False
        output.replace(library)
    return True


def _command(compiler: str, output: Path) -> list[str]:
    torch_dir = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    return [
        compiler,
        *_FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        "-isystem",
        str(torch_dir / "include"),
        str(_SOURCES / "ops.cpp"),
        "-o",
        str(output),
        f"-L{torch_dir / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
