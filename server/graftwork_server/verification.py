"""Samples the tokens of a step, following drafts as far as they are what is sampled anyway."""

import dataclasses
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_server.draw import take
from graftwork_server.plan import SampledToken
from graftwork_server.request import Sequence
from graftwork_server.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sequence whose next token is wanted."""

    sequence: Sequence
    row: int  # of the logits that predict it
    draft: tuple[int, ...] = ()  # guesses at it and those after it, predicted by the next rows

    def after(self, token_id: int) -> "Candidate":
        """The same once the first guess is in its output."""
        output = [*self.sequence.output_token_ids, token_id]
        sequence = dataclasses.replace(self.sequence, output_token_ids=output)
        return Candidate(sequence, self.row + 1, self.draft[1:])


def sample_through_drafts(
    sampler: Sampler, logits: Tensor, candidates: SequenceOf[Candidate]
) -> tuple[SampledToken, ...]:
    """One token for each candidate, and one more after each guess that is the token sampled.

    logits: (num_rows, vocab_size) float32; the candidates' rows ascend

    Each is sampled from its row for the sequence with all before it in the output, exactly as if it
    were alone in its step: grammars advance over sampled tokens only. Those of one sequence come in
    order.
    """
    sampled: list[SampledToken] = []
    pending = list(candidates)
    while pending:
        is_first = not sampled
        rows = torch.tensor([candidate.row for candidate in pending], device=logits.device)
        tokens = sampler.sample(take(logits, rows), [c.sequence for c in pending])
        agreeing: list[Candidate] = []
        for candidate, token in zip(pending, tokens, strict=True):
            if token.error is not None and not is_first:
                continue  # the next step meets the same error, with the tokens before it told
            sampled.append(token)
            goes_on = token.error is None and not token.constraint_complete
            if goes_on and candidate.draft[:1] == (token.token_id,):
                agreeing.append(candidate.after(token.token_id))
        pending = agreeing
    return tuple(sampled)
