"""The table that `llama-batched-bench` prints."""

from collections.abc import Iterable
from dataclasses import dataclass

_COLUMNS = [
    "PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchedBenchRow:
    prompt_tokens: int  # of each sequence
    new_tokens: int  # of each sequence
    sequences: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def parse_batched_bench(text: str) -> list[BatchedBenchRow]:
    """The rows of the table in its output. Raises ValueError where there is no such table, or one
    with other columns."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]
    if not lines or lines[0] != _COLUMNS:
        raise ValueError(
            f"not the table of llama-batched-bench that is known here:\n{text[-2000:]}"
        )
    return [
        BatchedBenchRow(int(pp), int(tg), int(b), float(prefill), float(decode))
        for pp, tg, b, _, _, prefill, _, decode, _, _ in lines[1:]
    ]


def row_with(
    rows: Iterable[BatchedBenchRow], *, prompt_tokens: int, sequences: int
) -> BatchedBenchRow:
    """Raises ValueError where there is none: a point that does not fit the context is left out."""
    for row in rows:
        if row.prompt_tokens == prompt_tokens and row.sequences == sequences:
            return row
    raise ValueError(f"llama-batched-bench measured no {sequences} sequences of {prompt_tokens}")
