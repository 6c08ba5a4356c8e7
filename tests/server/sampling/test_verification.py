"""Tokens sampled through drafts are those that are sampled one by one."""

import copy
import dataclasses

import pytest
import torch
from graftwork_server.plan import SampledToken
from graftwork_server.request import ConstraintFailedError
from graftwork_server.sampler import Sampler
from graftwork_server.verification import Candidate, sample_through_drafts
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.sampling.test_sampler import CPU, AllowedTokens, batches, sequence_of


def one_by_one(logits, sequence):
    """A token from each row, each for the sequence with those before it in its output."""
    sequence = copy.deepcopy(sequence)
    sampler = Sampler(logits.shape[1], CPU)
    tokens = []
    for row in logits:
        tokens += sampler.sample(row[None], [sequence])
        sequence.output_token_ids.append(tokens[-1].token_id)
    return tokens


@settings(max_examples=100)
@given(batches(), st.integers(0, 2**32), st.data())
def test_a_token_more_for_each_right_guess(batch, seed, data):
    logits, sequences = batch
    vocab_size = logits.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rows, candidates, expected = [], [], {}
    for sequence in sequences:
        sequence.sampling = dataclasses.replace(sequence.sampling, logprobs=2)
        num_guesses = data.draw(st.integers(0, 4))
        own = torch.randn(1 + num_guesses, vocab_size, generator=generator)
        tokens = one_by_one(own, sequence)
        num_right = data.draw(st.integers(0, num_guesses))
        draft = [token.token_id for token in tokens[:num_guesses]]
        if num_right < num_guesses:
            draft[num_right] = (draft[num_right] + 1) % vocab_size
        candidates.append(Candidate(sequence, sum(map(len, rows)), tuple(draft)))
        expected[sequence.sequence_id] = tokens[: num_right + 1]
        rows.append(own)
    outputs = [list(sequence.output_token_ids) for sequence in sequences]
    sampled = sample_through_drafts(Sampler(vocab_size, CPU), torch.cat(rows), candidates)
    for sequence, output in zip(sequences, outputs, strict=True):
        found = [token for token in sampled if token.sequence_id == sequence.sequence_id]
        assert found == expected[sequence.sequence_id]
        assert sequence.output_token_ids == output
        if sequence.constraint is not None:
            assert sequence.constraint.accepted == [token.token_id for token in found]


def through(logits, sequence, draft):
    return sample_through_drafts(
        Sampler(len(logits[0]), CPU), torch.tensor(logits), [Candidate(sequence, 0, draft)]
    )


def test_nothing_follows_a_complete_constraint():
    constraint = AllowedTokens({0, 1, 2}, last={1})
    sampled = through(
        [[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]], sequence_of(constraint=constraint), (0, 1)
    )
    assert [(token.token_id, token.constraint_complete) for token in sampled] == [
        (0, False),
        (1, True),
    ]
    assert constraint.accepted == [0, 1]


class FailsAfterOne(AllowedTokens):
    def fill_bitmask(self, bitmask):
        if self.accepted:
            raise ConstraintFailedError("the constraint failed: too many states")
        super().fill_bitmask(bitmask)


@pytest.mark.parametrize("constraint", [None, FailsAfterOne({0, 1, 2})])
def test_an_error_after_a_right_guess_is_left_to_the_next_step(constraint):
    """What came before it is told first, as without drafts."""
    bad = [float("nan")] * 3 if constraint is None else [0.0, 9.0, 0.0]
    sequence = sequence_of(constraint=constraint)
    assert through([[9.0, 0, 0], bad], sequence, (0,)) == (SampledToken(0, 0, None),)
    sequence.output_token_ids.append(0)
    (again,) = through([bad], sequence, ())
    assert again.error is not None


def test_no_candidates():
    assert sample_through_drafts(Sampler(3, CPU), torch.zeros(0, 3), []) == ()
