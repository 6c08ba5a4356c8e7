import math
from collections import Counter
from itertools import count

import pytest
import torch
from graftwork_server.draw import ranked
from graftwork_server.random_numbers import uniform
from graftwork_server.request import ConstraintFailedError, SamplingParams, Sequence
from graftwork_server.sampler import Sampler
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.sampling.reference import sample_row

CPU = torch.device("cpu")


class AllowedTokens:
    """A constraint that allows the same tokens at every position."""

    def __init__(self, allowed, last=()):
        self.allowed = set(allowed)
        self.last = set(last)  # tokens after which nothing may follow
        self.accepted = []

    def fill_bitmask(self, bitmask):
        for word in range(len(bitmask)):
            bits = sum(1 << (t - 32 * word) for t in self.allowed if t // 32 == word)
            bitmask[word] = bits - (1 << 32) if bits >= 1 << 31 else bits

    def accept(self, token_id):
        self.accepted.append(token_id)
        return token_id in self.last


class BrokenConstraint:
    def fill_bitmask(self, bitmask):
        raise ConstraintFailedError("the constraint failed: too many states")

    def accept(self, token_id):
        raise AssertionError("a failed constraint is not advanced")


def sequence_of(sequence_id=0, prompt=(1, 2), output=(), **fields):
    sequence_fields = ("min_tokens", "stop_token_ids", "constraint")
    own = {name: fields.pop(name) for name in sequence_fields if name in fields}
    return Sequence(
        sequence_id=sequence_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"seed": 0, **fields}),
        max_tokens=100,
        output_token_ids=list(output),
        **own,
    )


def sample_one(logits, sequence):
    (sampled,) = Sampler(len(logits), CPU).sample(torch.tensor([logits]), [sequence])
    return sampled


@st.composite
def batches(draw, max_rows=5):
    """Rows of logits with ties, beside sequences with any parameters."""
    vocab_size = draw(st.sampled_from([3, 40, 67, 200, 1500]))
    num_rows = draw(st.integers(1, max_rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 1.0, 4.0]))
    logits = torch.randn(num_rows, vocab_size, generator=generator) * spread
    if draw(st.booleans()):
        logits = logits.bfloat16().float()  # many ties
    tokens = st.integers(0, vocab_size - 1)
    sequences = []
    for sequence_id in range(num_rows):
        constraint = None
        if draw(st.integers(0, 3)) == 0:
            constraint = AllowedTokens(draw(st.sets(tokens, min_size=1, max_size=60)))
        sequences.append(
            sequence_of(
                sequence_id,
                prompt=(-1, -2, *draw(st.lists(tokens, max_size=8))),
                output=draw(st.lists(tokens, max_size=8)),
                seed=draw(st.integers(0, 2**64 - 1)),
                temperature=draw(st.sampled_from([0.0, 1e-30, 0.3, 1.0, 1.7, 100.0])),
                top_p=draw(st.sampled_from([1.0, 0.99, 0.9, 0.5, 1e-4])),
                top_k=draw(st.sampled_from([0, 0, 1, 5, 64, 65, 300, 10_000])),
                min_p=draw(st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0])),
                repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.7, 1.3])),
                presence_penalty=draw(st.sampled_from([0.0, 0.0, -1.5, 0.6])),
                frequency_penalty=draw(st.sampled_from([0.0, 0.0, -0.3, 2.0])),
                logit_bias=tuple(draw(st.dictionaries(tokens, st.sampled_from([-100.0, 3.5]),
                                                      max_size=3)).items()),
                min_tokens=draw(st.sampled_from([0, 4])),
                stop_token_ids=draw(st.frozensets(tokens, max_size=2)),
                constraint=constraint,
            )
        )  # fmt: skip
    return logits, sequences


@settings(max_examples=150)
@given(batches())
def test_equals_the_plain_reference(batch):
    logits, sequences = batch
    original = logits.clone()
    sampled = Sampler(logits.shape[1], CPU).sample(logits, sequences)
    for row, sequence, result in zip(logits, sequences, sampled, strict=True):
        allowed = sequence.constraint.allowed if sequence.constraint else None
        assert result.error is None
        assert result.token_id == sample_row(row, sequence, allowed)
    assert torch.equal(logits, original)


@settings(max_examples=60)
@given(batches(max_rows=8), st.randoms())
def test_a_row_does_not_depend_on_its_neighbours(batch, random):
    logits, sequences = batch
    together = Sampler(logits.shape[1], CPU).sample(logits, sequences)
    order = random.sample(range(len(sequences)), random.randint(1, len(sequences)))
    others = Sampler(logits.shape[1], CPU).sample(logits[order], [sequences[i] for i in order])
    assert others == [together[i] for i in order]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([1, 8, 300]), st.data())
def test_ranked_is_a_stable_sort(seed, num_columns, num_levels, data):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(num_levels, (3, num_columns), generator=generator).float()
    rows[1, ::2] = -math.inf
    k = data.draw(st.integers(1, num_columns))
    values, places = ranked(rows, k)
    expected, order = torch.sort(rows, dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :k])
    finite = values.isfinite()
    assert torch.equal(places[finite], order[:, :k][finite])


def test_counts_are_kept_as_the_output_grows():
    """One sampler over a whole answer equals a fresh one at each step."""
    generator = torch.Generator().manual_seed(0)
    kept = Sampler(50, CPU)
    sequence = sequence_of(prompt=(-1, 3, 3, 4), temperature=1.0, repetition_penalty=1.2,
                           presence_penalty=0.5, frequency_penalty=0.4)  # fmt: skip
    for _ in range(200):
        logits = torch.randn(1, 50, generator=generator) * 2
        (sampled,) = kept.sample(logits, [sequence])
        assert sampled.token_id == sample_row(logits[0], sequence)
        sequence.output_token_ids.append(sampled.token_id)
    kept.forget(sequence.sequence_id)
    kept.forget(sequence.sequence_id)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"min_p": 0.45}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        ({"logit_bias": ((3, math.log(4.0)),)}, [4 / 13, 3 / 13, 2 / 13, 4 / 13]),
    ],
)
def test_frequencies_are_the_probabilities(params, expected):
    """Chi-square over draws with different seeds; the draws are fixed, so it cannot flake."""
    num_draws = 4000
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(num_draws, 4)
    sequences = [
        sequence_of(i, **{"temperature": 1.0, **params, "seed": i}) for i in range(num_draws)
    ]
    counts = Counter(s.token_id for s in Sampler(4, CPU).sample(logits, sequences))
    statistic = 0.0
    for token_id, probability in enumerate(expected):
        if probability == 0:
            assert counts[token_id] == 0
        else:
            mean = probability * num_draws
            statistic += (counts[token_id] - mean) ** 2 / mean
    assert statistic < 16.3  # 0.1% point of three degrees of freedom


def test_positions_draw_independently():
    logits = torch.zeros(1, 8)
    sequence = sequence_of(temperature=1.0, seed=5)
    sampler = Sampler(8, CPU)
    for _ in range(800):
        (sampled,) = sampler.sample(logits, [sequence])
        sequence.output_token_ids.append(sampled.token_id)
    pairs = Counter(zip(sequence.output_token_ids, sequence.output_token_ids[1:], strict=False))
    assert sum((pairs[a, b] - 12.5) ** 2 / 12.5 for a in range(8) for b in range(8)) < 103.4


def test_equal_logits_give_the_lowest_id():
    assert sample_one([1.0, 3.0, 3.0, 3.0], sequence_of()).token_id == 1
    for seed in range(20):
        sequence = sequence_of(seed=seed, temperature=1.0, top_k=1)
        assert sample_one([1.0, 3.0, 3.0, 3.0], sequence).token_id == 1


def test_logprobs_are_of_the_model_itself():
    sequence = sequence_of(output=(0,), temperature=1.0, top_k=1, logprobs=3,
                           frequency_penalty=2.0, logit_bias=((0, -100.0),))  # fmt: skip
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().tolist()
    sampled = sample_one(logits, sequence)
    assert sampled.token_id == 1
    assert sampled.logprob.token_id == 1
    assert sampled.logprob.logprob == pytest.approx(math.log(0.2))
    assert [token_id for token_id, _ in sampled.logprob.top] == [0, 1, 2]
    assert sampled.logprob.top[0][1] == pytest.approx(math.log(0.5))


def test_logprobs_only_where_asked():
    sequences = [
        sequence_of(i, logprobs=n) for i, n in zip(count(), [None, 0, 2, 99], strict=False)
    ]
    sampled = Sampler(5, CPU).sample(torch.randn(4, 5), sequences)
    assert sampled[0].logprob is None
    assert [len(s.logprob.top) for s in sampled[1:]] == [0, 2, 5]


def test_logprobs_of_a_prompt():
    logits = torch.randn(150, 30)
    token_ids = torch.arange(150) % 30
    found = Sampler(30, CPU).logprobs_of(logits, token_ids, 4)
    expected = logits.log_softmax(-1)
    assert [p.token_id for p in found] == token_ids.tolist()
    chosen = expected.gather(1, token_ids[:, None])[:, 0]
    assert [p.logprob for p in found] == pytest.approx(chosen.tolist(), abs=1e-6)
    values, ids = expected.topk(4)
    assert [[t for t, _ in p.top] for p in found] == ids.tolist()
    top = [value for p in found for _, value in p.top]
    assert top == pytest.approx(values.flatten().tolist(), abs=1e-6)


def test_stop_tokens_wait_for_min_tokens():
    fields = {"stop_token_ids": frozenset({2}), "min_tokens": 2}
    assert sample_one([0.0, 1.0, 9.0], sequence_of(output=(0,), **fields)).token_id == 1
    assert sample_one([0.0, 1.0, 9.0], sequence_of(output=(0, 0), **fields)).token_id == 2


def test_a_complete_constraint_wins_over_min_tokens():
    sequence = sequence_of(
        stop_token_ids=frozenset({2}), min_tokens=5, constraint=AllowedTokens({2}, last={2})
    )
    sampled = sample_one([9.0, 9.0, 0.0], sequence)
    assert sampled.token_id == 2
    assert sampled.constraint_complete


def test_constraint_advances_over_the_sampled_token():
    constraint = AllowedTokens({1, 40}, last={40})
    logits = torch.zeros(1, 70)
    logits[0, 40] = 1.0
    (sampled,) = Sampler(70, CPU).sample(logits, [sequence_of(constraint=constraint)])
    assert (sampled.token_id, sampled.constraint_complete) == (40, True)
    assert constraint.accepted == [40]


def test_a_failing_row_costs_the_others_nothing():
    sequences = [
        sequence_of(0, temperature=1.0),
        sequence_of(1, constraint=BrokenConstraint(), temperature=1.0),
        sequence_of(2, temperature=1.0),
        sequence_of(3, logprobs=2),
        sequence_of(4, constraint=AllowedTokens(())),
    ]
    logits = torch.randn(5, 9)
    alone = [Sampler(9, CPU).sample(logits[i : i + 1], sequences[i : i + 1])[0] for i in (0, 3)]
    logits[2, 4] = math.nan
    sampled = Sampler(9, CPU).sample(logits, sequences)
    assert [sampled[0], sampled[3]] == alone
    assert sampled[1].error == "the constraint failed: too many states"
    assert "not finite" in sampled[2].error
    assert sampled[4].error is not None


def test_refuses_logits_of_another_shape():
    with pytest.raises(ValueError, match="logits of 1 sequences"):
        Sampler(9, CPU).sample(torch.zeros(2, 9), [sequence_of()])


def test_large_vocabulary_reaches_every_width():
    """Nuclei that end within the first window, within the second, and beyond."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5000, generator=generator) * torch.tensor([[6.0], [2.0], [0.1]])
    sequences = [
        sequence_of(row, seed=seed, temperature=1.0, top_p=0.9)
        for row, seed in enumerate((7, 8, 9))
    ]
    sampled = Sampler(5000, CPU).sample(logits, sequences)
    for row, sequence, result in zip(logits, sequences, sampled, strict=True):
        assert result.token_id == sample_row(row, sequence)


def test_uniform_of_zero_and_almost_one_stay_in_range():
    assert min(uniform(seed, 0) for seed in range(100)) >= 0
    assert max(uniform(seed, 0) for seed in range(100)) < 1
