"""Every method in one batch: each row is what the method's reference computes for it alone.

The reference is PEFT's forward over the whole sequence, our trainable model for bottlenecks, and,
where PEFT refuses a method on GPT-2's Conv1D, PEFT on equivalent `nn.Linear`s. For a quantized base
it has the quantized weights in float32. docs/parity.md says how close is equal.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from graftwork_adapters.methods import find_methods
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.engine import Served, TinyEngine
from tests.support.method_cases import CASES
from tests.support.peft_adapters import reference_continuation
from tests.support.tiny_models import tiny_model
from tests.support.tiny_serving import one_torch_thread

__all__ = ["one_torch_thread"]

# PEFT's SHiRA remarks on sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
FAMILIES = ["llama", "gpt2", "qwen2", "gemma"]
QUANTIZED = [
    (family, quantization) for family in ("llama", "gpt2") for quantization in ("int8", "nf4")
]
TOLERANCE = 1e-3
SHARE_OF_EFFECT = 0.01  # the tolerance on a quantized base
MAX_DIVERGENCE = 1e-4  # per token, in nats
NUM_BASE_ROWS = 2
# Adapters that bring a module of their own, or rows of the output head: torch multiplies by those,
# and a row's last bits depend on its neighbours.
COMPUTED_BY_TORCH = ("lora_and_head", "lora_and_modules", "lora_and_tokens", "trainable_tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt through one adapter, None for the base, and the reference's answer."""

    name: str
    folder: Path | None
    prompt: list[int]
    answer: list[int]  # greedy
    logits: Tensor  # of the prompt and all of the answer but its last token: (tokens, vocab_size)
    tolerance: float  # of logits

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


def make_bench(model: nn.Module, engine: TinyEngine, folder: Path, num_tokens: int) -> Bench:
    """Rows of every method; `model` computes with the weights that the engine's base has."""
    cases = [case for case in CASES if case.suits(model)]
    drafts: list[Row] = []
    for index in range(len(cases) + NUM_BASE_ROWS):
        prompt = [5 + index, 7, 9, 20 + 3 * index, 30, 11, 40, 8][: 5 + index % 4]
        name, saved, reference = "base", None, model
        if index < len(cases):
            name, saved = cases[index].name, folder / cases[index].name
            reference = cases[index].reference_base(model)
            cases[index].save(reference, saved, seed=index)
        answer, logits = reference_continuation(reference, saved, prompt, num_tokens)
        drafts.append(Row(name, saved, prompt, answer, logits, TOLERANCE))
    plain = engine.run_logits([None] * len(drafts), [row.prompt for row in drafts])
    rows: list[Row] = []
    for row, base in zip(drafts, plain, strict=True):
        effect = float((row.logits[: len(row.prompt)] - base).abs().max())
        assert (effect > 10 * TOLERANCE) == (row.folder is not None), (row.name, effect)
        quantized = engine.base.quantization != "none" and row.folder is not None
        rows.append(replace(row, tolerance=SHARE_OF_EFFECT * effect) if quantized else row)
    return Bench(engine, rows)


def dequantized(model: nn.Module, engine: TinyEngine) -> nn.Module:
    """A copy of the model with the weights that the engine's base computes with."""
    copied = copy.deepcopy(model)
    for name, described in engine.base.linear_modules.items():
        weight = engine.base.weight(name)
        own = weight.T.contiguous() if described.is_transposed else weight
        copied.get_submodule(name).weight = nn.Parameter(own)
    return copied


@pytest.fixture(
    scope="module", params=[(family, "none") for family in FAMILIES] + QUANTIZED, ids="-".join
)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    family, quantization = request.param
    model = tiny_model(family)
    engine = TinyEngine(model, quantization=quantization)
    if quantization != "none":
        model = dequantized(model, engine)
    return make_bench(model, engine, tmp_path_factory.mktemp(family), num_tokens=6)


def serve(
    bench: Bench, rows: Sequence[Row], guesses: Sequence[list[int]] | None = None, **limits: int
) -> Served:
    served = bench.engine.serve(
        [row.folder for row in rows],
        [row.prompt for row in rows],
        len(rows[0].answer),
        guesses=guesses,
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
        check_close(row, logits, row.logits)


def check_close(row: Row, found: Tensor, expected: Tensor) -> None:
    """Logits of some tokens: (num_tokens, vocab_size)."""
    difference = float((found - expected).abs().max())
    assert difference <= row.tolerance, (row.name, difference, row.tolerance)
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    divergence = float((p.exp() * (p - q)).sum(-1).max())
    assert divergence <= MAX_DIVERGENCE, (row.name, divergence)


def check_answer(row: Row, answer: list[int], logits: Tensor) -> None:
    """Tokens and logits, up to where two tokens are equally likely as far as anyone can tell."""
    assert len(answer) == len(row.answer), row.name
    for step, expected in enumerate(row.answer_logits):
        check_close(row, logits[step : step + 1], expected.unsqueeze(0))
        if answer[step] != row.answer[step]:
            first, second = expected.topk(2).values
            assert first - second < 2 * row.tolerance, (row.name, step)
            return


def test_every_method_has_a_case() -> None:
    assert {case.peft_type for case in CASES} == find_methods().keys()


@pytest.mark.parametrize("chunk_size", [1000, 3])
def test_prefill_of_one_mixed_batch(bench: Bench, chunk_size: int) -> None:
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


def test_drafts(bench: Bench) -> None:
    """Rows of a draft are logits like those of a decode, whichever guess was wrong."""
    rows = bench.shuffled(6)
    plain = serve(bench, rows)
    answers = [sequence.output_token_ids for sequence in plain.sequences]
    num_steps = len(answers[0]) - 1
    for wrong in (None, *range(1, num_steps)):
        guesses = [with_another(answer, wrong, bench.engine.base.vocab_size) for answer in answers]
        served = serve(bench, rows, guesses, max_tokens_per_step=8 * len(rows))
        num_right = num_steps - 1 if wrong is None else num_steps - 2
        assert served.scheduler.num_accepted_tokens == num_right * len(rows)
        for row, before, after in zip(rows, plain.logits, served.logits, strict=True):
            if bench.engine.base.quantization == "int8" and row.name not in COMPUTED_BY_TORCH:
                assert torch.equal(before, after), row.name


def with_another(answer: list[int], place: int | None, vocab_size: int) -> list[int]:
    """The answer with another token at a place."""
    return [(token + (index == place)) % vocab_size for index, token in enumerate(answer)]


def test_the_base_is_as_it_was(bench: Bench) -> None:
    assert bench.engine.base.compute_digest() == bench.engine.base.digest


@pytest.mark.model
@pytest.mark.timeout(900)  # on a busy machine
def test_the_default_model(float_model: PreTrainedModel, tmp_path: Path) -> None:
    bench = make_bench(float_model, TinyEngine(float_model), tmp_path, num_tokens=2)
    check_logits(bench, bench.rows, 3)
    serve(bench, bench.shuffled(0))
    assert bench.engine.base.compute_digest() == bench.engine.base.digest
