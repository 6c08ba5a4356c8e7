"""Batches of sixteen rows of every adapter method: tokens per second against the bare base.

    python -m benchmarks.bench_methods [--methods lora,oft] [--repeats 3] [--plot methods.png]

The default model, about 57 prompt and 64 new tokens a row, greedy, no early stop, over gRPC. For
each method 16 different adapters in one batch, and all rows on one; then 16 different methods in
one batch. Each figure is a median, divided by the median of base-only batches that took turns with
it. Prompts are distinct in every run, but virtual tokens are cached by a run before. Prefill is
included, start-up and loading are not. The last line is JSON: the ratio of 16 different adapters by
method, and `all_different`.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from graftwork import AsyncClient
from graftwork_server.config import load_settings
from graftwork_server.default_model import ensure_default_model
from graftwork_server.serve import load_base, running_server, spare_long_collections
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.bench_mixed import generate_together
from benchmarks.method_adapters import ALL_DIFFERENT, DENSE, METHODS, save_adapters, task_of
from benchmarks.server_process import wait_as_served
from benchmarks.workload import NUM_REQUESTS, distinct, prompts

ALL = "all_different"
PLOT = Path(__file__).parent / "results" / "methods.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", help="names, by comma; all, and all_different, by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    wait_as_served()
    chosen = arguments.methods.split(",") if arguments.methods else [*METHODS, ALL]
    if unknown := sorted({*chosen} - {*METHODS, ALL}):
        parser.error(f"--methods: no {', '.join(unknown)}; there are {', '.join([*METHODS, ALL])}")
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bench = MethodsBench(Path(scratch), arguments.repeats)
        results = asyncio.run(bench.measure(chosen))
    draw(results, arguments.plot)
    print(json.dumps({name: round(result.different, 3) for name, result in results.items()}))


@dataclass(frozen=True, slots=True)
class Ratios:
    """Throughput over that of base-only batches."""

    different: float  # sixteen adapters
    one: float | None = None  # all rows on one


@dataclass
class MethodsBench:
    folder: Path
    repeats: int
    _salts: "count[int]" = field(default_factory=count)
    _registered: set[str] = field(default_factory=set)

    async def measure(self, chosen: list[str]) -> dict[str, Ratios]:
        model = AutoModelForCausalLM.from_pretrained(ensure_default_model(), dtype=torch.float32)
        settings = load_settings(
            None,
            {
                "data_dir": str(self.folder / "data"),
                "grpc": {"port": 0},
                "metrics": {"port": 0},
                "adapters": {"roots": [str(self.folder)]},
            },
        )
        base = load_base(settings)
        self._token_ids = prompts(base.tokenizer)
        results: dict[str, Ratios] = {}
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server(settings, base))
            self._client = await stack.enter_async_context(AsyncClient(f"127.0.0.1:{server.port}"))
            spare_long_collections()
            for method in chosen:
                if method == ALL:
                    names = [f"{name}-0" for name in ALL_DIFFERENT]
                    for name in ALL_DIFFERENT:
                        await self._register(model, name, 1)
                else:
                    names = await self._register(model, method, NUM_REQUESTS)
                for name in names:
                    await self._client.adapters.load(name)
                results[method] = await self._ratios(method, names)
                for name in names:
                    await self._client.adapters.unload(name)
        return results

    async def _register(self, model: torch.nn.Module, method: str, wanted: int) -> list[str]:
        """Makes the first adapters of a method, unless an earlier call has."""
        names = [f"{method}-{index}" for index in range(wanted)]
        if names[0] in self._registered:
            return names
        folders = save_adapters(model, method, self.folder / method, wanted)
        for name, folder in zip(names, folders, strict=True):
            await self._client.adapters.create(name, str(folder), task_id=task_of(method))
            self._registered.add(name)
            shutil.rmtree(folder)  # the server has its own copy
        return names

    async def _ratios(self, method: str, names: list[str]) -> Ratios:
        batches = {"base": [""] * len(names), "different": names}
        if method != ALL:
            batches["one"] = names[:1] * len(names)
        speeds = await self._take_turns(batches)
        ratios = {kind: speeds[kind] / speeds["base"] for kind in batches}
        for kind, speed in speeds.items():
            print(f"{method:24} {kind:10} {speed:7.1f} tok/s {ratios[kind]:6.3f}", flush=True)
        return Ratios(ratios["different"], ratios.get("one"))

    async def _take_turns(self, batches: Mapping[str, list[str]]) -> dict[str, float]:
        speeds: dict[str, list[float]] = {kind: [] for kind in batches}
        for repeat in range(self.repeats + 1):
            for kind, adapters in batches.items():
                token_ids = distinct(self._token_ids, salt=next(self._salts) % 400)
                speed = await generate_together(self._client, token_ids, adapters)
                if repeat:  # the first warms up, and fills the cache with virtual tokens
                    speeds[kind].append(speed)
        return {kind: statistics.median(found) for kind, found in speeds.items()}


def draw(results: Mapping[str, Ratios], path: Path) -> None:
    """A bar for each figure, the methods of the last line from top to bottom."""
    names = list(results)
    places = range(len(names), 0, -1)
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    colors = ["C7" if name in DENSE else "C1" if name == ALL else "C0" for name in names]
    different = [result.different for result in results.values()]
    axes.barh(places, different, height=0.5, color=colors, label="16 different adapters")
    ones = [(place, result.one) for place, result in zip(places, results.values(), strict=True)]
    shared = [(place, one) for place, one in ones if one is not None]
    axes.plot([one for _, one in shared], [p for p, _ in shared], "k|", label="one adapter")
    for goal, style in ((0.5, ":"), (0.75, "--"), (0.9, "-.")):
        axes.axvline(goal, color="C3", linestyle=style, linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_xlabel("tokens per second of 16 rows, as a share of the base's")
    axes.set_xlim(0, 1.1)
    axes.legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
