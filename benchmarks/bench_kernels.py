"""Times each CPU kernel on the shapes of SmolLM2-135M against its plain torch reference.

    python benchmarks/bench_kernels.py [int8] [nf4] [low-rank] [attention]

Every line is the work of one step over all 30 layers (the head: one layer). `bound` sets it against
what torch reaches on this machine, measured first: bytes read per second by a large sum, or fp32
operations per second of a large matrix product, which is not the limit of every CPU. Run it on an
idle machine; the medians are of interleaved repeats, the reference of three.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from graftwork_server.kernels.build import load_kernels
from graftwork_server.kernels.int8_linear import int8_linear, int8_linear_reference
from graftwork_server.kernels.low_rank import (
    LowRankTable,
    PackedLowRank,
    add_low_rank,
    add_low_rank_reference,
)
from graftwork_server.kernels.nf4_linear import nf4_linear, nf4_linear_reference
from graftwork_server.kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
)
from graftwork_server.kernels.segments import Segments
from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.quantization.nf4 import NF4Linear
from torch import Tensor, nn
from torch.nn import functional

LAYERS = 30
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
LAYER_SHAPES = [  # (out, in) of q, k, v, o, gate, up, down
    (576, 576),
    (192, 576),
    (192, 576),
    (576, 576),
    (1536, 576),
    (1536, 576),
    (576, 1536),
]
HEAD_SHAPE = (49152, 576)

Packed = Int8Linear | NF4Linear
Inputs = dict[int, Tensor]  # by width


@dataclass
class Case:
    name: str
    kernel: Callable[[], object]
    others: Mapping[str, Callable[[], object]]
    bytes_read: float  # what memory must deliver at least
    operations: float  # fp32 multiplications and additions


@dataclass
class Machine:
    bytes_per_second: float
    operations_per_second: float


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_machine() -> Machine:
    data = torch.ones(64 << 20)
    a, b = torch.randn(512, 2048), torch.randn(2048, 2048)
    read = min(seconds(data.sum) for _ in range(8))
    product = min(seconds(lambda: functional.linear(a, b)) for _ in range(8))
    return Machine(data.nbytes / read, 2 * 512 * 2048 * 2048 / product)


def report(case: Case, machine: Machine, repeats: int) -> None:
    functions = {"kernel": case.kernel, **case.others}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for repeat in range(repeats):
        for name, function in functions.items():
            if name != "reference" or repeat < 3:
                times[name].append(seconds(function) * 1e3)
    median = {name: statistics.median(values) for name, values in times.items()}
    memory_ms = case.bytes_read / machine.bytes_per_second * 1e3
    arithmetic_ms = case.operations / machine.operations_per_second * 1e3
    if memory_ms > arithmetic_ms:
        rate = f"{case.bytes_read / median['kernel'] / 1e6:6.1f} GB/s   "
    else:
        rate = f"{case.operations / median['kernel'] / 1e6:6.1f} GFLOP/s"
    bound = max(memory_ms, arithmetic_ms) / median["kernel"]
    others = ", ".join(f"{name} {value:.1f}" for name, value in median.items() if name != "kernel")
    print(
        f"{case.name:34} {median['kernel']:8.2f} ms  best {min(times['kernel']):8.2f}  "
        f"{rate}  {bound:4.0%} of bound   [{others}]",
        flush=True,
    )


def multiply_all(multiply: Callable[..., Tensor], packed: list[Packed], x: Inputs) -> None:
    for p in packed:
        multiply(x[p.in_features], p.codes, p.scales, None, p.out_features)


def multiply_all_fp32(weights: list[Tensor], x: Inputs) -> None:
    for weight in weights:
        functional.linear(x[weight.shape[1]], weight)


def linear_cases(kind: type[Int8Linear] | type[NF4Linear]) -> Iterator[Case]:
    kernel, reference = {
        Int8Linear: (int8_linear, int8_linear_reference),
        NF4Linear: (nf4_linear, nf4_linear_reference),
    }[kind]
    for title, shapes in (("linears", LAYER_SHAPES * LAYERS), ("head", [HEAD_SHAPE])):
        weights, packed = [], []
        for out_features, in_features in shapes:
            linear = nn.Linear(in_features, out_features, bias=False)
            weights.append(linear.weight.detach())
            packed.append(kind.from_linear(linear))
        num_bytes = sum(p.codes.nbytes + p.scales.nbytes for p in packed)
        num_weights = sum(weight.numel() for weight in weights)
        for rows in (1, 4, 16, 32, 128):
            x = {n: torch.randn(rows, n) for n in (576, 1536)}
            others = {
                "reference": partial(multiply_all, reference, packed, x),
                "fp32": partial(multiply_all_fp32, weights, x),
            }
            ours = partial(multiply_all, kernel, packed, x)
            name = f"{kind.__name__} {title}, {rows} rows"
            yield Case(name, ours, others, num_bytes, 2 * num_weights * rows)


def add_all(
    add: Callable[..., None], tables: list[LowRankTable], segments: Segments, x: Inputs, y: Inputs
) -> None:
    for table in tables:
        add(y[table.out_features], x[table.in_features], table, segments)


def low_rank_tables(slots: int, rank: int, dtype: torch.dtype) -> list[LowRankTable]:
    tables = []
    for out_features, in_features in LAYER_SHAPES * LAYERS:
        table = LowRankTable(slots, in_features, out_features)
        for slot in range(slots):
            a, b = torch.randn(rank, in_features), torch.randn(out_features, rank)
            table.set(slot, PackedLowRank.pack(a.to(dtype), b.to(dtype)))
        tables.append(table)
    return tables


def low_rank_cases() -> Iterator[Case]:
    slots, rank = 16, 16
    layouts = {
        "16 slots x 1 row": [(slot, 1) for slot in range(slots)],
        "1 slot x 1 row": [(3, 1)],
        "1 slot x 128 rows": [(3, 128)],
        "4 slots x 64 rows": [(slot, 64) for slot in range(4)],
    }
    numbers = sum(rank * (i + o) for o, i in LAYER_SHAPES) * LAYERS  # of one slot
    for dtype in (torch.bfloat16, torch.float32):
        tables = low_rank_tables(slots, rank, dtype)
        for title, lengths in layouts.items():
            segments = Segments.from_lengths(lengths)
            rows = segments.num_rows
            x = {n: torch.randn(rows, n) for n in (576, 1536)}
            y = {n: torch.zeros(rows, n) for n in (192, 576, 1536)}
            yield Case(
                f"rank 16 {str(dtype).removeprefix('torch.')}, {title}",
                partial(add_all, add_low_rank, tables, segments, x, y),
                {"reference": partial(add_all, add_low_rank_reference, tables, segments, x, y)},
                len(lengths) * numbers * dtype.itemsize,
                2 * numbers * rows,
            )


def attend_all(
    attend: Callable[..., Tensor],
    q: Tensor,
    caches: list[tuple[Tensor, Tensor]],
    arguments: dict[str, Any],
) -> None:
    for layer in range(LAYERS):
        k_cache, v_cache = caches[layer % len(caches)]
        attend(q, k_cache, v_cache, **arguments)


def attention_cases() -> Iterator[Case]:
    layouts = {
        "16 decodes, 100 keys": [(1, 100)] * 16,
        "16 decodes, 1000 keys": [(1, 1000)] * 16,
        "1 decode, 1000 keys": [(1, 1000)],
        "prefill 512": [(512, 512)],
        "chunk of 256 at 2048": [(256, 2048)],
    }
    for title, sequences in layouts.items():
        max_blocks = max(-(-context // BLOCK_SIZE) for _, context in sequences)
        total = len(sequences) * max_blocks
        # Enough caches that the last-level cache does not hold them all.
        caches = [
            (
                torch.randn(total, KV_HEADS, HEAD_DIM, BLOCK_SIZE),
                torch.randn(total, KV_HEADS, BLOCK_SIZE, HEAD_DIM),
            )
            for _ in range(LAYERS if total < 300 else 6)
        ]
        starts = [0, *accumulate(queries for queries, _ in sequences)]
        arguments = {
            "block_tables": torch.randperm(total).int().reshape(len(sequences), max_blocks),
            "query_start": torch.tensor(starts, dtype=torch.int32),
            "context_lens": torch.tensor([c for _, c in sequences], dtype=torch.int32),
            "scale": HEAD_DIM**-0.5,
        }
        q = torch.randn(HEADS, starts[-1], HEAD_DIM).transpose(0, 1)
        pairs = sum(n * c - n * (n - 1) // 2 for n, c in sequences)
        keys = sum(context for _, context in sequences)
        yield Case(
            f"attention, {title}",
            partial(attend_all, paged_attention, q, caches, arguments),
            {"reference": partial(attend_all, paged_attention_reference, q, caches, arguments)},
            LAYERS * keys * KV_HEADS * HEAD_DIM * 2 * 4,
            LAYERS * pairs * HEADS * HEAD_DIM * 4,
        )


def main() -> None:
    kernels: dict[str, Callable[[], Iterator[Case]]] = {
        "int8": partial(linear_cases, Int8Linear),
        "nf4": partial(linear_cases, NF4Linear),
        "low-rank": low_rank_cases,
        "attention": attention_cases,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="*", default=list(kernels), help=", ".join(kernels))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not load_kernels():
        raise SystemExit("the kernels cannot be built here")
    torch.manual_seed(0)
    machine = measure_machine()
    print(
        f"{torch.get_num_threads()} threads, {machine.bytes_per_second / 1e9:.1f} GB/s read, "
        f"{machine.operations_per_second / 1e9:.0f} GFLOP/s fp32\n"
    )
    with torch.inference_mode():
        for name in options.kernels:
            for case in kernels[name]():
                report(case, machine, options.repeats)


if __name__ == "__main__":
    main()
