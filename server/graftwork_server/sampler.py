"""Draws the next token of each sequence from its logits.

Every row's token is a function of the row's own logits, parameters, output and seed, to the last
bit: a reduction over a row is done by a kernel that treats rows alike whatever their number, and a
draw is a function of (seed, position). The order of operations on a row:

    log-probabilities are read off  (those of the model itself)
    logit bias
    repetition penalty  (tokens of prompt and output)
    presence and frequency penalties  (tokens of the output)
    stop tokens held back until min_tokens
    constraint
    temperature; 0 takes the likeliest token, of equals the lowest id
    min_p, top_k, top_p
    inverse of the cumulative distribution at a uniform number
"""

from collections.abc import Sequence as SequenceOf
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork_server.draw import draw, ranked, take
from graftwork_server.kernels.row_reductions import row_logsumexp, row_peaks
from graftwork_server.plan import SampledToken, TokenLogprob
from graftwork_server.request import (
    Constraint,
    ConstraintFailedError,
    SamplingParams,
    Sequence,
)

# Prompt positions whose log-probabilities are held in memory at once.
_LOGPROB_CHUNK = 64

_Number = TypeVar("_Number", bound=np.generic)


class Sampler:
    """Samples for the sequences of one model. Not thread-safe: the engine's thread owns it."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._seen: dict[int, _SeenTokens] = {}

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence. Call it once the sequence is finished."""
        self._seen.pop(sequence_id, None)

    def sample(self, logits: Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
        """One token for each row of `logits` (num_rows, vocab_size) float32, which is left as it
        is. Advances the sequences' constraints. A row that cannot be sampled (logits that are not
        finite, a failed constraint) has `error` set and costs the others nothing."""
        if logits.shape != (len(sequences), self._vocab_size) or logits.dtype != torch.float32:
            raise ValueError(f"logits of {len(sequences)} sequences: {logits.dtype} {logits.shape}")
        errors: dict[int, str] = {}
        edited = self._edit(logits, sequences, errors)
        peaks, token_ids = row_peaks(edited)
        for row in (~peaks.isfinite()).nonzero().flatten().tolist():
            errors.setdefault(row, "the model's logits are not finite")
        drawn = [
            row
            for row, sequence in enumerate(sequences)
            if sequence.sampling.temperature > 0 and row not in errors
        ]
        if drawn:
            rows = torch.tensor(drawn, device=self._device)
            token_ids[rows] = draw(take(edited, rows), [sequences[row] for row in drawn])
        logprobs = self._logprobs(logits, token_ids, sequences)
        return [
            _finish(sequence, token_id, logprobs.get(row), errors.get(row))
            for row, (sequence, token_id) in enumerate(
                zip(sequences, token_ids.tolist(), strict=True)
            )
        ]

    def logprobs_of(
        self, logits: Tensor, token_ids: Tensor, num_top: int
    ) -> tuple[TokenLogprob, ...]:
        """Log-probability of `token_ids` (n,) int64 under `logits` (n, vocab_size) float32, each
        with the `num_top` likeliest tokens of its row."""
        found: list[TokenLogprob] = []
        for start in range(0, len(token_ids), _LOGPROB_CHUNK):
            stop = start + _LOGPROB_CHUNK
            found += _token_logprobs(logits[start:stop], token_ids[start:stop], num_top)
        return tuple(found)

    def _logprobs(
        self, logits: Tensor, token_ids: Tensor, sequences: SequenceOf[Sequence]
    ) -> dict[int, TokenLogprob]:
        """By row, for the sequences that ask for log-probabilities."""
        rows_of: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            if sequence.sampling.logprobs is not None:
                rows_of.setdefault(sequence.sampling.logprobs, []).append(row)
        found: dict[int, TokenLogprob] = {}
        for num_top, rows in rows_of.items():
            index = torch.tensor(rows, device=self._device)
            logprobs = _token_logprobs(take(logits, index), token_ids[index], num_top)
            found.update(zip(rows, logprobs, strict=True))
        return found

    def _edit(
        self, logits: Tensor, sequences: SequenceOf[Sequence], errors: dict[int, str]
    ) -> Tensor:
        """Logits after bias, penalties, min_tokens and constraints; the argument itself where
        nothing applies."""
        biased = [r for r, s in enumerate(sequences) if s.sampling.logit_bias]
        penalized = [r for r, s in enumerate(sequences) if _has_penalty(s.sampling)]
        held = [r for r, s in enumerate(sequences) if _holds_back_stops(s)]
        constrained = {r: s.constraint for r, s in enumerate(sequences) if s.constraint is not None}
        if not (biased or penalized or held or constrained):
            return logits
        edited = logits.clone()
        if biased:
            biases = [sequences[row].sampling.logit_bias for row in biased]
            rows = np.repeat(biased, [len(bias) for bias in biases])
            index = self._tensor(rows), self._tensor(np.array([t for b in biases for t, _ in b]))
            edited[index] += self._tensor(
                np.array([value for b in biases for _, value in b], dtype=np.float32)
            )
        if penalized:
            self._penalize(edited, [(row, sequences[row]) for row in penalized])
        for row in held:
            if sequences[row].constraint is None:
                edited[row, sorted(sequences[row].stop_token_ids)] = -torch.inf
        if constrained:
            allowed = _allowed_tokens(sequences, constrained, self._vocab_size, errors)
            rows_c = torch.tensor(list(constrained), device=self._device)
            edited[rows_c] = edited[rows_c].masked_fill_(~self._tensor(allowed), -torch.inf)
        return edited

    def _penalize(self, edited: Tensor, penalized: SequenceOf[tuple[int, Sequence]]) -> None:
        """Applies all rows' penalties at once, to the tokens that they have seen only."""
        seen = [self._seen_tokens(sequence) for _, sequence in penalized]
        sizes = [tokens.size for tokens in seen]
        ids = self._tensor(np.concatenate([tokens.token_ids for tokens in seen]))
        counts = self._tensor(np.concatenate([tokens.output_counts for tokens in seen]))
        rows = self._tensor(np.repeat([row for row, _ in penalized], sizes))
        params = [sequence.sampling for _, sequence in penalized]
        repetition = self._spread([p.repetition_penalty for p in params], sizes)
        presence = self._spread([p.presence_penalty for p in params], sizes)
        frequency = self._spread([p.frequency_penalty for p in params], sizes)
        values = edited[rows, ids]
        values = torch.where(values > 0, values / repetition, values * repetition)
        values = values - presence * (counts > 0)
        values = values - frequency * counts
        edited[rows, ids] = values

    def _seen_tokens(self, sequence: Sequence) -> "_SeenTokens":
        seen = self._seen.get(sequence.sequence_id)
        if seen is None:
            seen = self._seen[sequence.sequence_id] = _SeenTokens(sequence.prompt_token_ids)
        seen.catch_up(sequence.output_token_ids)
        return seen

    def _spread(self, values: list[float], sizes: list[int]) -> Tensor:
        return self._tensor(np.repeat(np.array(values, dtype=np.float32), sizes))

    def _tensor(self, array: NDArray[_Number]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class _SeenTokens:
    """The distinct tokens of a sequence, and how often each is in its output."""

    def __init__(self, prompt_token_ids: SequenceOf[int]) -> None:
        # Virtual tokens have negative ids and no logits.
        distinct = sorted({token_id for token_id in prompt_token_ids if token_id >= 0})
        self.size = len(distinct)
        self._place = {token_id: place for place, token_id in enumerate(distinct)}
        self._ids = np.array([*distinct, *[0] * 64], dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._num_output = 0  # output tokens counted so far

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._ids[: self.size]

    @property
    def output_counts(self) -> NDArray[np.float32]:
        return self._counts[: self.size]

    def catch_up(self, output_token_ids: list[int]) -> None:
        """Counts the output tokens that came since the last call."""
        for token_id in output_token_ids[self._num_output :]:
            place = self._place.setdefault(token_id, self.size)
            if place == self.size:
                if place == len(self._ids):
                    self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                    self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._ids[place] = token_id
                self.size += 1
            self._counts[place] += 1
        self._num_output = len(output_token_ids)


def _has_penalty(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def _holds_back_stops(sequence: Sequence) -> bool:
    return bool(sequence.stop_token_ids) and len(sequence.output_token_ids) < sequence.min_tokens


def _allowed_tokens(
    sequences: SequenceOf[Sequence],
    constraints: dict[int, Constraint],
    vocab_size: int,
    errors: dict[int, str],
) -> NDArray[np.bool_]:
    """Tokens that the constraints, by row, allow: (len(constraints), vocab_size). A row whose
    constraint fails is entered in `errors` and allows everything."""
    words = np.empty((len(constraints), (vocab_size + 31) // 32), dtype=np.int32)
    for place, (row, constraint) in enumerate(constraints.items()):
        try:
            constraint.fill_bitmask(memoryview(words[place]))
        except ConstraintFailedError as error:
            errors[row] = str(error)
            words[place] = -1
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=vocab_size)
    allowed = bits.view(np.bool_)
    for place, row in enumerate(constraints):
        if _holds_back_stops(sequences[row]):
            going_on = allowed[place].copy()
            going_on[sorted(sequences[row].stop_token_ids)] = False
            # A grammar that is complete wins over min_tokens.
            if going_on.any():
                allowed[place] = going_on
    return allowed


def _finish(
    sequence: Sequence, token_id: int, logprob: TokenLogprob | None, error: str | None
) -> SampledToken:
    complete = False
    if error is None and sequence.constraint is not None:
        try:
            complete = sequence.constraint.accept(token_id)
        except ConstraintFailedError as failure:
            error = str(failure)
    return SampledToken(sequence.sequence_id, token_id, logprob, complete, error)


def _token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> list[TokenLogprob]:
    """For rows (n, vocab) and ids (n,)."""
    totals = row_logsumexp(logits)[:, None]
    chosen = (logits.gather(1, token_ids[:, None]) - totals).squeeze(1).tolist()
    if num_top == 0:
        return [
            TokenLogprob(token_id, logprob)
            for token_id, logprob in zip(token_ids.tolist(), chosen, strict=True)
        ]
    _, top_ids = ranked(logits, min(num_top, logits.shape[1]))
    top_logprobs = logits.gather(1, top_ids) - totals
    return [
        TokenLogprob(token_id, logprob, tuple(zip(ids, values, strict=True)))
        for token_id, logprob, ids, values in zip(
            token_ids.tolist(), chosen, top_ids.tolist(), top_logprobs.tolist(), strict=True
        )
    ]
