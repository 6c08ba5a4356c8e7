"""Feedback that the journal takes each second, and what logging costs generation.

    python -m benchmarks.bench_journal [--items 20000] [--rounds 12]

Feedback comes through gRPC in batches of 1000, each on disk before it is answered: `sqlite` and
`postgresql` (a server of its own, with fsync; null where its programs are missing) in items per
second. Generation is 16 requests of 64 tokens at once, in pairs of rounds with and without
`store`, in one server, in an order that changes from pair to pair. What else the machine does only
ever slows a round down, so `logging_cost` compares the fastest rounds: what the logged one took
longer, as a share; `pairs` has all. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from graftwork import AsyncClient, Client, Feedback, FeedbackOptions
from graftwork.v1.feedback_service_pb2_grpc import add_FeedbackServiceServicer_to_server
from graftwork_server.config import load_settings
from graftwork_server.ids import IdGenerator
from graftwork_server.metrics import Metrics
from graftwork_server.serve import load_base, running_server, spare_long_collections
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.service import FeedbackServicer
from transformers.utils import logging as transformers_logging

from benchmarks.server_process import wait_as_served
from benchmarks.workload import NEW_TOKENS, prompts
from tests.support.postgresql import postgres_server
from tests.trainer.journal.helpers import Clock, Ids, generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=12, help="pairs of rounds")
    options = parser.parse_args()
    wait_as_served()
    transformers_logging.disable_progress_bar()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result["sqlite"] = feedback_per_second(folder / "journal.sqlite3", options.items)
        print(f"SQLite: {result['sqlite']} items/s", flush=True)
        with own_postgresql() as url:
            result["postgresql"] = None if url is None else feedback_per_second(url, options.items)
        print(f"PostgreSQL: {result['postgresql']} items/s", flush=True)
        result |= asyncio.run(logging_cost(folder, options.rounds))
    print(json.dumps(result))


@contextmanager
def own_postgresql() -> Iterator[str | None]:
    try:
        with postgres_server(fsync=True) as server:
            yield server.url
    except FileNotFoundError:
        yield None


def feedback_per_second(place: str | Path, num_items: int) -> int:
    """Thumbs on generations of the journal, and labels of inline prompts, half and half."""
    clock = Clock()
    clock.now_ns = time.time_ns()
    issued = Ids(clock)
    metrics = Metrics(max_adapter_labels=0)
    with Journal.open(
        place, Rules(retention_days=30), metrics, new_id=IdGenerator().new
    ) as journal:
        made = [generation(issued, clock) for _ in range(num_items // 2)]
        for one in made:
            journal.log(one)
        journal.settle()
        items: list[FeedbackOptions] = []
        for number, one in enumerate(made):
            items.append({"generation_id": one.id, "thumbs": True, "author": "ada"})
            items.append({"prompt": f"Is message {number} spam?", "task": "t", "label": "spam"})
        return asyncio.run(submit_all(journal, items))


def _nothing(items: Collection[str]) -> None:
    """There are no data sets to take what is deleted out of."""


async def submit_all(journal: Journal, items: list[FeedbackOptions]) -> int:
    server = grpc.aio.server()
    with ThreadPoolExecutor(2) as reading:
        servicer = FeedbackServicer(journal, reading, redact=_nothing)
        add_FeedbackServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with Client(f"127.0.0.1:{port}") as client:
            begin = time.perf_counter()
            outcomes = await asyncio.to_thread(client.feedback.submit_many, items)
            seconds = time.perf_counter() - begin
        await server.stop(grace=None)
    if not all(isinstance(outcome, Feedback) for outcome in outcomes):
        raise RuntimeError("some feedback was refused")
    return round(len(items) / seconds)


async def logging_cost(folder: Path, num_pairs: int) -> dict[str, object]:
    tree = {"data_dir": str(folder / "data"), "grpc": {"port": 0}, "metrics": {"port": 0}}
    settings = load_settings(None, tree, environment={})
    base = load_base(settings)
    token_ids = prompts(base.tokenizer)
    shares: list[float] = []
    fastest = {True: float("inf"), False: float("inf")}
    async with (
        running_server(settings, base) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        spare_long_collections()
        await one_round(client, token_ids, store=False)  # fills the prefix cache
        for pair in range(num_pairs):
            order = (True, False) if pair % 2 else (False, True)
            took = {store: await one_round(client, token_ids, store=store) for store in order}
            shares.append(took[True] / took[False] - 1)
            for store, seconds in took.items():
                fastest[store] = min(fastest[store], seconds)
    num_tokens = len(token_ids) * NEW_TOKENS
    return {
        "tokens_per_second_logged": round(num_tokens / fastest[True], 1),
        "tokens_per_second_not_logged": round(num_tokens / fastest[False], 1),
        "logging_cost": round(fastest[True] / fastest[False] - 1, 4),
        "median_of_pairs": round(statistics.median(shares), 4),
        "pairs": [round(share, 4) for share in shares],
        "cores": len(os.sched_getaffinity(0)),
    }


async def one_round(client: AsyncClient, token_ids: list[list[int]], *, store: bool) -> float:
    begin = time.perf_counter()
    await asyncio.gather(
        *(
            client.generate(ids, max_tokens=NEW_TOKENS, ignore_eos=True, store=store)
            for ids in token_ids
        )
    )
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
