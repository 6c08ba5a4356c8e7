"""A policy in training, seen at the tokens of its answers: log-probabilities, entropies, values.

Rows are packed end to end, as everything that trains here; what comes out is padded to
(answers, longest answer).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from graftwork_trainer.base.completion_loss import LogitScaling
from graftwork_trainer.base.packed_rows import PackedRows
from graftwork_trainer.rl.losses import token_entropy, token_logprobs
from graftwork_trainer.rollouts import Rollout

# Rows of logits at once: with a vocabulary of fifty thousand 50 MB, and one dequantization of the
# output head.
_ROWS_AT_ONCE = 256
_MAX_TOKENS = 4096  # of a forward pass without gradients


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Rollouts as tensors."""

    rollouts: tuple[Rollout, ...]
    mask: Tensor  # (answers, longest) bool
    sampler_logprobs: Tensor  # (answers, longest) float32, the engine's

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> "AnswerTokens":
        lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
        mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        flat = torch.tensor([p for rollout in rollouts for p in rollout.logprobs])
        return cls(tuple(rollouts), mask, padded(flat, mask))

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def num_tokens(self) -> int:
        """Prompts included."""
        return sum(len(r.prompt_ids) + len(r.token_ids) for r in self.rollouts)

    def parts(self) -> Iterator["AnswerTokens"]:
        """Neighbours, of few enough tokens for one forward pass."""
        part: list[Rollout] = []
        size = 0
        for rollout in self.rollouts:
            length = len(rollout.prompt_ids) + len(rollout.token_ids)
            if part and size + length > _MAX_TOKENS:
                yield AnswerTokens.of(part)
                part, size = [], 0
            part.append(rollout)
            size += length
        yield AnswerTokens.of(part)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy makes of answers, (answers, longest) each, zero at padding."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None  # where there is a value head


def look(model: PreTrainedModel, answers: AnswerTokens, head: nn.Module | None = None) -> Seen:
    """With gradients where they are enabled. `model` is the causal model whose modules carry the
    adapter; its attention is that of packed rows."""
    rows = [[*r.prompt_ids, *r.token_ids] for r in answers.rollouts]
    lengths = [len(row) for row in rows]
    hidden = model.base_model(
        input_ids=torch.tensor([[token for row in rows for token in row]]),
        position_ids=torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
        packed_rows=PackedRows.of(lengths),
        use_cache=False,
    ).last_hidden_state[0]
    predicting = hidden[torch.tensor(_places(answers.rollouts))]
    targets = torch.tensor([token for r in answers.rollouts for token in r.token_ids])
    logprobs, entropy = _read_off(model, predicting, targets)
    mask = answers.mask
    values = None if head is None else padded(head(predicting), mask)
    return Seen(padded(logprobs, mask), padded(entropy, mask), values)


@torch.no_grad()
def look_at_all(
    model: PreTrainedModel, answers: AnswerTokens, head: nn.Module | None = None
) -> Seen:
    """Without gradients, in as many passes as it takes."""
    flat: list[list[Tensor]] = [[], [], []]
    for part in answers.parts():
        seen = look(model, part, head)
        for column, tensor in zip(flat, (seen.logprobs, seen.entropy, seen.values), strict=True):
            if tensor is not None:
                column.append(tensor[part.mask])
    logprobs, entropy, values = (
        padded(torch.cat(column), answers.mask) if column else None for column in flat
    )
    if logprobs is None or entropy is None:
        raise ValueError("there are no answers")
    return Seen(logprobs, entropy, values)


def padded(flat: Tensor, mask: Tensor) -> Tensor:
    """(answers, longest) of (num_tokens,): zero where `mask` is false."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def _places(rollouts: Sequence[Rollout]) -> list[int]:
    """Where in the packed rows each answer's tokens are predicted: one before each."""
    places: list[int] = []
    start = 0
    for rollout in rollouts:
        first = start + len(rollout.prompt_ids) - 1
        places += range(first, first + len(rollout.token_ids))
        start += len(rollout.prompt_ids) + len(rollout.token_ids)
    return places


def _read_off(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy, (num_tokens,) each."""
    head, scaling = model.get_output_embeddings(), LogitScaling.of(model)

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = scaling.apply(head(hidden)).float()
        return token_logprobs(logits, targets), token_entropy(logits)

    found = []
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        # Logits are computed again rather than kept, but for the last, where going back begins.
        if torch.is_grad_enabled() and rows.stop < len(targets):
            found.append(checkpoint(chunk, hidden[rows], targets[rows], use_reentrant=False))
        else:
            found.append(chunk(hidden[rows], targets[rows]))
    logprobs, entropies = zip(*found, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
