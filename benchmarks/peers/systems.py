"""Each system as the benchmark sees it: started once, then asked for a round of figures."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
from graftwork import AsyncClient

from benchmarks.peers.install import installed_llamacpp, installed_vllm
from benchmarks.peers.llamacpp import running_llamacpp
from benchmarks.peers.runs import Batch, Round, Run, Workload, measure_round
from benchmarks.peers.worker_process import WorkerProcess, running_worker
from benchmarks.server_process import ready, running_process


class System(Protocol):
    def round(self, workload: Workload) -> Round:
        """Measures everything once. Raises PeerError."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What a system is started with."""

    model: Path
    adapters: list[Path]  # PEFT folders
    scratch: Path  # logs and data go here
    dtype: str  # of vLLM and PEFT


@dataclass(frozen=True, slots=True)
class Graftwork:
    """Over gRPC, against a server in a process of its own."""

    loop: asyncio.Runner
    client: AsyncClient

    def round(self, workload: Workload) -> Round:
        return measure_round(self.generate, self.generate, workload)

    def generate(self, batch: Batch) -> Run:
        return self.loop.run(self._generate(batch))

    async def _generate(self, batch: Batch) -> Run:
        started = time.perf_counter()

        async def one(prompt: list[int], adapter: int | None) -> tuple[list[int], list[float]]:
            token_ids: list[int] = []
            arrivals: list[float] = []
            async with self.client.stream(
                prompt,
                adapter="" if adapter is None else f"a{adapter}",
                max_tokens=batch.new_tokens,
                temperature=0,
                ignore_eos=True,
            ) as deltas:
                async for delta in deltas:
                    token_ids += delta.token_ids
                    arrivals += [time.perf_counter() - started] * len(delta.token_ids)
            return token_ids, arrivals

        pairs = zip(batch.prompts, batch.adapters, strict=True)
        parts = await asyncio.gather(*(one(prompt, adapter) for prompt, adapter in pairs))
        return Run([ids for ids, _ in parts], [times for _, times in parts])


@contextlib.contextmanager
def running_graftwork(setting: Setting) -> Iterator[Graftwork]:
    options = ["--no-engine-prefix-cache", "--adapter-root", str(setting.adapters[0].parent)]
    options += ["--model", str(setting.model)]

    async def connect(target: str) -> AsyncClient:
        client = AsyncClient(target)
        await ready(client)
        for index, folder in enumerate(setting.adapters):
            await client.adapters.create(f"a{index}", str(folder))
            await client.adapters.load(f"a{index}")
        return client

    with (
        running_process(setting.scratch / "graftwork", *options) as server,
        asyncio.Runner() as loop,
    ):
        client = loop.run(connect(server.target))
        try:
            yield Graftwork(loop, client)
        finally:
            loop.run(client.close())


@dataclass(frozen=True, slots=True)
class Worker:
    """vLLM or PEFT, in process of a worker."""

    with_adapters: WorkerProcess
    base_only: WorkerProcess

    def round(self, workload: Workload) -> Round:
        return measure_round(self.with_adapters.generate, self.base_only.generate, workload)


@contextlib.contextmanager
def running_vllm(setting: Setting) -> Iterator[Worker]:
    """Two engines: one started without LoRA serves the plain base faster. Intel's OpenMP is loaded
    first, as vLLM's manual advises; it comes with vLLM."""
    python = installed_vllm()
    openmp = {"LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so")}
    module, common = "benchmarks.peers.vllm_worker", [str(setting.model), setting.dtype]
    log = setting.scratch / "vllm.log"
    with (
        running_worker("vLLM", python, module, common, log=log, environment=openmp) as base,
        running_worker(
            "vLLM with LoRA",
            python,
            module,
            [*common, *map(str, setting.adapters)],
            log=log.with_name("vllm-lora.log"),
            environment=openmp,
        ) as lora,
    ):
        yield Worker(lora, base)


@contextlib.contextmanager
def running_peft(setting: Setting) -> Iterator[Worker]:
    arguments = [str(setting.model), setting.dtype, *map(str, setting.adapters)]
    log = setting.scratch / "peft.log"
    module = "benchmarks.peers.peft_worker"
    with running_worker("PEFT", Path(sys.executable), module, arguments, log=log) as worker:
        yield Worker(worker, worker)


@contextlib.contextmanager
def _running_llamacpp(setting: Setting) -> Iterator[System]:
    log = setting.scratch / "llamacpp.log"
    with running_llamacpp(installed_llamacpp(), setting.model, setting.adapters, log=log) as system:
        yield system


SYSTEMS: dict[str, Callable[[Setting], contextlib.AbstractContextManager[System]]] = {
    "graftwork": running_graftwork,
    "llamacpp": _running_llamacpp,
    "vllm": running_vllm,
    "peft": running_peft,
}


class Processes:
    """The processes that starting a system added. They stand still while another system is
    measured, since some peers' threads wait actively."""

    def __init__(self) -> None:
        self._before = set(_children())
        self._own: list[psutil.Process] = []

    def suspend(self) -> None:
        if not self._own:
            self._own = [each for each in _children() if each not in self._before]
        for process in self._own:
            process.suspend()

    def resume(self) -> None:
        for process in self._own:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)
