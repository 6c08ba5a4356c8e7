"""How cost grows with the work: one axis at a time, with the memory that each point takes.

    python -m benchmarks.bench_growth [--axes batch adapters rank context] [--output FOLDER]

batch     1 to 64 requests of the base at once, 32 prompt and 32 new tokens each
adapters  1 to 1,000 rank-8 LoRAs on q and v, all resident, 16 callers that choose at random
rank      8 to 128: LoRAs on all linear layers, four of each, 16 requests at once
context   prompts of 128 to 4,096 tokens, one request, 32 new tokens

A server of its own for each axis; the best of `--repeats` runs at each point. Memory is the
server's PSS afterwards: what has been allocated stays. The last line is JSON: for each axis, lists
over its points; with --output it is written there, too, with a plot for each axis.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from graftwork import AsyncClient
from graftwork.bench import Report
from graftwork_server.default_model import ensure_default_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.load import measure
from benchmarks.machine import describe_machine, save_plot
from benchmarks.server_process import ServerProcess, pss_bytes, ready, running_process
from benchmarks.soak import CONCURRENCY, save_adapters
from benchmarks.workload import save_lora_adapters

BATCHES = (1, 2, 4, 8, 16, 32, 64)
ADAPTERS = (1, 10, 100, 1000)
RANKS = (8, 16, 32, 64, 128)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
ADAPTERS_OF_RANK = 4
NUM_TOGETHER = 16


@dataclass(slots=True)
class Curve:
    """Lists over the points of one axis."""

    x: list[int] = field(default_factory=list)
    output_tokens_per_s: list[float] = field(default_factory=list)
    inter_token_ms: list[float] = field(default_factory=list)  # median
    ttft_ms: list[float] = field(default_factory=list)  # median
    pss_mib: list[float] = field(default_factory=list)

    def add(self, x: int, report: Report, pss: int) -> None:
        assert report.ttft_ms is not None
        assert report.inter_token_ms is not None
        self.x.append(x)
        self.output_tokens_per_s.append(round(report.output_tokens_per_s, 1))
        self.inter_token_ms.append(round(report.inter_token_ms.p50, 2))
        self.ttft_ms.append(round(report.ttft_ms.p50, 1))
        self.pss_mib.append(round(pss / 2**20, 1))
        print(f"  {x:5}  {self.output_tokens_per_s[-1]:7.1f} tok/s", flush=True)


@dataclass(frozen=True, slots=True)
class Bench:
    folder: Path
    repeats: int

    async def best(self, client: AsyncClient, adapters: list[str], **options: int) -> Report:
        """After a run that warms up."""
        reports = [
            await measure(client, adapters, seed=repeat, **options)
            for repeat in range(self.repeats + 1)
        ]
        return max(reports[1:], key=lambda report: report.output_tokens_per_s)

    @asynccontextmanager
    async def serving(
        self, axis: str, *options: str
    ) -> AsyncIterator[tuple[ServerProcess, AsyncClient]]:
        print(axis, flush=True)
        root = ("--adapter-root", str(self.folder))
        with running_process(self.folder / f"data-{axis}", *root, *options) as server:
            async with AsyncClient(server.target) as client:
                await ready(client)
                yield server, client

    async def batch(self) -> Curve:
        curve = Curve()
        async with self.serving("batch") as (server, client):
            for count in BATCHES:
                report = await self.best(client, [""], num_requests=count)
                curve.add(count, report, pss_bytes(server.pid))
        return curve

    async def adapters(self) -> Curve:
        curve = Curve()
        folders = save_adapters(self.folder / "many", max(ADAPTERS))
        options = (
            *("--adapters-device-slots", str(max(ADAPTERS))),
            *("--adapters-host-cache-bytes", "8GiB"),
        )
        names: list[str] = []
        async with self.serving("adapters", *options) as (server, client):
            for count in ADAPTERS:
                for folder in folders[len(names) : count]:
                    names.append(f"a{len(names)}")
                    await client.adapters.create(names[-1], str(folder))
                    await client.adapters.load(names[-1])
                report = await self.best(
                    client, names, num_requests=4 * CONCURRENCY, concurrency=CONCURRENCY
                )
                curve.add(count, report, pss_bytes(server.pid))
        return curve

    async def rank(self) -> Curve:
        curve = Curve()
        async with self.serving("rank") as (server, client):
            for rank in RANKS:
                model = AutoModelForCausalLM.from_pretrained(
                    ensure_default_model(), dtype=torch.float32
                )
                names = []
                saved = save_lora_adapters(
                    model, self.folder / f"rank-{rank}", ADAPTERS_OF_RANK, rank=rank
                )
                for index, folder in enumerate(saved):
                    names.append(f"r{rank}-{index}")
                    await client.adapters.create(names[-1], str(folder))
                    await client.adapters.load(names[-1])
                report = await self.best(client, names, num_requests=NUM_TOGETHER)
                curve.add(rank, report, pss_bytes(server.pid))
                for name in names:
                    await client.adapters.unload(name)
        return curve

    async def context(self) -> Curve:
        curve = Curve()
        async with self.serving("context") as (server, client):
            for length in CONTEXTS:
                report = await self.best(client, [""], num_requests=1, prompt_tokens=length)
                curve.add(length, report, pss_bytes(server.pid))
        return curve


AXES: dict[str, tuple[Callable[[Bench], Coroutine[None, None, Curve]], str]] = {
    "batch": (Bench.batch, "requests at once"),
    "adapters": (Bench.adapters, "adapters resident"),
    "rank": (Bench.rank, "rank"),
    "context": (Bench.context, "tokens of the prompt"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="for the figures and plots")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    result: dict[str, object] = {"machine": describe_machine()}
    for axis in arguments.axes:
        run, x_label = AXES[axis]
        with tempfile.TemporaryDirectory() as scratch:
            curve = asyncio.run(run(Bench(Path(scratch), arguments.repeats)))
        lists = {name: getattr(curve, name) for name in Curve.__slots__}
        result[axis] = lists
        if arguments.output is not None:
            panels = {name: values for name, values in lists.items() if name != "x"}
            save_plot(
                arguments.output / f"growth-{axis}.png",
                curve.x,
                panels,
                x_label=x_label,
                log_x=True,
            )
            (arguments.output / "growth.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
