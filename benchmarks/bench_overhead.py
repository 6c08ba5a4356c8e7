"""What gRPC streaming costs: the same 16 prompts through a server, and through the engine alone.

    python -m benchmarks.bench_overhead [--repeats 5] [--output FOLDER]

The server runs in a process of its own, as a user starts it; the engine in this one, with nobody
to stream to. Greedy, 64 new tokens each, no prefix cache hits, in turns. The last line is JSON:
tokens per second of the engine, of gRPC with `store` false, and of gRPC with the answers kept in
the journal, which also computes their log-probabilities; and what both cost over the engine in
percent, medians over rounds.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from graftwork import AsyncClient
from graftwork.bench import AllAtOnce, Load, PlannedRequest, run_load, summarize
from graftwork.status import WireError
from graftwork_adapters.background import background_executor
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.store import ImmutableStore
from graftwork_server.base_model import BaseModel
from graftwork_server.config import load_settings
from graftwork_server.engine import Engine
from graftwork_server.engine_parts import build_engine, usable_cores
from graftwork_server.events import Event, FinishedEvent, is_final
from graftwork_server.request import SamplingParams, Sequence
from graftwork_server.serve import load_base, new_metrics, spare_long_collections
from graftwork_server.settings import Settings
from transformers.utils import logging as transformers_logging

from benchmarks.machine import describe_machine, save_plot
from benchmarks.server_process import ready, running_process, wait_as_served
from benchmarks.workload import NEW_TOKENS, distinct, prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="for the figures and a plot")
    arguments = parser.parse_args()
    wait_as_served()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        runs = asyncio.run(measure_all(Path(scratch), arguments.repeats))
    result = {
        "machine": describe_machine(),
        **{f"{kind}_tokens_per_s": round(statistics.median(runs[kind]), 1) for kind in runs},
        "overhead_percent": overhead_percent(runs, "grpc"),
        "overhead_with_journal_percent": overhead_percent(runs, "grpc_journal"),
    }
    if arguments.output is not None:
        save_plot(
            arguments.output / "overhead.png",
            list(range(arguments.repeats)),
            {f"tokens/s, {name}": speeds for name, speeds in runs.items()},
            x_label="repeat",
        )
        (arguments.output / "overhead.json").write_text(json.dumps(result | runs, indent=1))
    print(json.dumps(result))


def overhead_percent(runs: dict[str, list[float]], kind: str) -> float:
    pairs = zip(runs[kind], runs["engine"], strict=True)
    return round(statistics.median(1 - over / alone for over, alone in pairs) * 100, 2)


async def measure_all(folder: Path, repeats: int) -> dict[str, list[float]]:
    settings = load_settings(None, {"data_dir": str(folder / "alone")})
    base = load_base(settings)
    runs: dict[str, list[float]] = {"engine": [], "grpc": [], "grpc_journal": []}
    with running_process(folder / "served") as server, engine_alone(settings, base) as alone:
        async with AsyncClient(server.target) as client:
            await ready(client)
            spare_long_collections()
            for repeat in range(repeats + 1):
                token_ids = distinct(prompts(base.tokenizer), salt=2 * repeat)
                others = distinct(prompts(base.tokenizer), salt=2 * repeat + 1)
                speeds = {
                    "grpc": await over_grpc(client, token_ids, store=False),
                    "engine": await asyncio.to_thread(alone.generate, token_ids),
                    "grpc_journal": await over_grpc(client, others, store=True),
                }
                if repeat:  # the first warms up
                    for kind, speed in speeds.items():
                        runs[kind].append(speed)
                    print({kind: round(speed, 1) for kind, speed in speeds.items()}, flush=True)
    return runs


async def over_grpc(client: AsyncClient, token_ids: list[list[int]], *, store: bool) -> float:
    """New tokens per second, prefill included."""
    requests = (PlannedRequest("", ids, NEW_TOKENS) for ids in token_ids)
    run = await run_load(client, Load(AllAtOnce(), len(token_ids), store=store), requests)
    report = summarize(run)
    assert report.output_tokens == len(token_ids) * NEW_TOKENS, report
    return report.output_tokens_per_s


class EngineAlone:
    """Waits for all of a batch; called from one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._num_left = 0
        self._num_tokens = 0
        self._done = threading.Event()
        self._next_id = 0

    def publish(self, events: list[Event]) -> None:
        """Called on the engine's thread."""
        for event in events:
            if is_final(event):
                self._num_left -= 1
            if isinstance(event, FinishedEvent):
                self._num_tokens += event.num_output_tokens
        if not self._num_left:
            self._done.set()

    def died(self, error: WireError) -> None:
        self._done.set()  # and the count of tokens says that they are missing
        print(f"the engine has died: {error}", flush=True)

    def generate(self, token_ids: list[list[int]]) -> float:
        """New tokens per second, prefill included."""
        sequences = []
        for ids in token_ids:
            self._next_id += 1
            sequences.append(
                Sequence(self._next_id, tuple(ids), SamplingParams(seed=0), max_tokens=NEW_TOKENS)
            )
        self._num_left, self._num_tokens = len(sequences), 0
        self._done.clear()
        started = time.perf_counter()
        self._engine.add(sequences)
        self._done.wait()
        seconds = time.perf_counter() - started
        assert self._num_tokens == len(sequences) * NEW_TOKENS, self._num_tokens
        return self._num_tokens / seconds


@contextlib.contextmanager
def engine_alone(settings: Settings, base: BaseModel) -> Iterator[EngineAlone]:
    limits = AdapterLimits()
    with (
        background_executor() as loading,
        contextlib.closing(ImmutableStore(settings.adapter_store_dir, limits)) as store,
    ):
        engine = build_engine(
            settings, base, store, limits, loading=loading, metrics=new_metrics(settings, base)
        ).engine
        alone = EngineAlone(engine)
        engine.start(alone.publish, alone.died, threads=usable_cores())
        try:
            yield alone
        finally:
            engine.stop()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
