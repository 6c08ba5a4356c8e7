"""Every method in one batch: each row is what the method's reference computes for it alone.

The reference is PEFT's forward over the whole sequence, our trainable model for bottlenecks, and,
where PEFT refuses a method on GPT-2's Conv1D, PEFT on equivalent `nn.Linear`s.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from graftwork_adapters.methods import find_methods
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.engine import Served, TinyEngine
from tests.support.method_cases import CASES
from tests.support.peft_adapters import reference_continuation
from tests.support.tiny_models import tiny_model

# PEFT's SHiRA remarks on sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
FAMILIES = ["llama", "gpt2", "qwen2", "gemma"]
TOLERANCE = 1e-3
NUM_BASE_ROWS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt through one adapter, None for the base, and the reference's answer."""

    name: str
    folder: Path | None
    prompt: list[int]
    answer: list[int]  # greedy
    logits: Tensor  # of the prompt and all of the answer but its last token: (tokens, vocab_size)

    @property
    def token_ids(self) -> list[int]:
        """All that the reference has computed."""
        return [*self.prompt, *self.answer[:-1]]

    @property
    def answer_logits(self) -> Tensor:
        return self.logits[len(self.prompt) - 1 :]


@dataclass(frozen=True, slots=True)
class Bench:
    engine: TinyEngine
    rows: list[Row]

    def shuffled(self, seed: int) -> list[Row]:
        return random.Random(seed).sample(self.rows, len(self.rows))


def make_bench(model: nn.Module, folder: Path, num_tokens: int) -> Bench:
    cases = [case for case in CASES if case.suits(model)]
    rows: list[Row] = []
    for index in range(len(cases) + NUM_BASE_ROWS):
        prompt = [5 + index, 7, 9, 20 + 3 * index, 30, 11, 40, 8][: 5 + index % 4]
        name, saved, reference = "base", None, model
        if index < len(cases):
            name, saved = cases[index].name, folder / cases[index].name
            reference = cases[index].reference_base(model)
            cases[index].save(reference, saved, seed=index)
        answer, logits = reference_continuation(reference, saved, prompt, num_tokens)
        rows.append(Row(name, saved, prompt, answer, logits))
    return Bench(TinyEngine(model), rows)


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(
        tiny_model(request.param), tmp_path_factory.mktemp(request.param), num_tokens=6
    )


def serve(bench: Bench, rows: Sequence[Row], **limits: int) -> Served:
    served = bench.engine.serve(
        [row.folder for row in rows],
        [row.prompt for row in rows],
        len(rows[0].answer),
        **limits,
    )
    for row, sequence, logits in zip(rows, served.sequences, served.logits, strict=True):
        check_answer(row, sequence.output_token_ids, logits)
    return served


def check_logits(bench: Bench, rows: Sequence[Row], chunk_size: int) -> None:
    found = bench.engine.run_logits(
        [row.folder for row in rows], [row.token_ids for row in rows], chunk_size
    )
    for row, logits in zip(rows, found, strict=True):
        difference = float((logits - row.logits).abs().max())
        assert difference < TOLERANCE, (row.name, difference)


def check_answer(row: Row, answer: list[int], logits: Tensor) -> None:
    """Tokens and logits, up to where two tokens are equally likely as far as anyone can tell."""
    assert len(answer) == len(row.answer), row.name
    for step, (found, expected) in enumerate(zip(logits, row.answer_logits, strict=True)):
        difference = float((found - expected).abs().max())
        assert difference < TOLERANCE, (row.name, step, difference)
        if answer[step] != row.answer[step]:
            first, second = expected.topk(2).values
            assert first - second < 2 * TOLERANCE, (row.name, step)
            return


def test_every_method_has_a_case() -> None:
    assert {case.peft_type for case in CASES} == find_methods().keys()


def check_effects(bench: Bench) -> None:
    """Every adapter changes the logits by far more than the tolerance."""
    plain = bench.engine.run_logits([None] * len(bench.rows), [row.prompt for row in bench.rows])
    for row, base in zip(bench.rows, plain, strict=True):
        effect = float((row.logits[: len(row.prompt)] - base).abs().max())
        assert (effect > 10 * TOLERANCE) == (row.folder is not None), (row.name, effect)


@pytest.mark.parametrize("chunk_size", [1000, 3])
def test_prefill_of_one_mixed_batch(bench: Bench, chunk_size: int) -> None:
    check_effects(bench)
    check_logits(bench, bench.rows, chunk_size)


def test_rows_in_another_order(bench: Bench) -> None:
    for seed in range(2):
        check_logits(bench, bench.shuffled(seed), 1000)


def test_decoding(bench: Bench) -> None:
    served = serve(bench, bench.shuffled(2))
    assert served.scheduler.num_preemptions == 0


def test_prefill_in_chunks_beside_decodes(bench: Bench) -> None:
    """A prompt goes in while others decode: a step takes few more tokens than there are rows."""
    serve(bench, bench.rows, max_tokens_per_step=len(bench.rows) + 5)


def test_prefix_cache_hits(bench: Bench) -> None:
    """All rows, and then the same once more."""
    served = serve(bench, bench.rows, times=2)
    for row, again in zip(bench.rows, served.sequences, strict=True):
        assert again.num_cached_tokens > 0, row.name


def test_preemption_and_resume(bench: Bench) -> None:
    """Too few blocks for all rows; in each order others give theirs back."""
    runs = [serve(bench, bench.shuffled(seed), num_blocks=40) for seed in range(3, 6)]
    assert all(served.scheduler.num_preemptions >= 3 for served in runs)


def test_the_base_is_as_it_was(bench: Bench) -> None:
    assert bench.engine.base.compute_digest() == bench.engine.base.digest


@pytest.mark.model
def test_the_default_model(float_model: PreTrainedModel, tmp_path: Path) -> None:
    bench = make_bench(float_model, tmp_path, num_tokens=2)
    check_effects(bench)
    check_logits(bench, bench.rows, 3)
    serve(bench, bench.shuffled(0))
    assert bench.engine.base.compute_digest() == bench.engine.base.digest
