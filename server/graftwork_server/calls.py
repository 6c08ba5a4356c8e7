"""Requests once they are valid, and the limits of a server that they keep to."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as pb
from graftwork_adapters.prompt_builder import PromptInput
from graftwork_adapters.selector import Selector

from graftwork_server.random_numbers import choice_seed
from graftwork_server.request import Grammar, SamplingParams


@dataclass(frozen=True, slots=True)
class Limits:
    """What this server accepts; the fields of `Model.Limits`."""

    max_context_tokens: int
    max_new_tokens: int
    default_max_tokens: int
    max_n: int
    max_logprobs: int
    max_stop_strings: int
    max_queued_requests: int
    max_adapter_rank: int
    max_device_adapters: int
    max_completions: int
    max_prompt_lookup_tokens: int


class WeightedSelector(NamedTuple):
    """An adapter that takes part in an answer."""

    selector: Selector  # never the base's; the registry checks that it exists
    weight: float  # not 0


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A valid GenerateRequest."""

    adapters: tuple[WeightedSelector, ...]  # none: the base
    prompt: PromptInput
    sampling: SamplingParams  # of choice 0
    max_tokens: int | None
    min_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    n: int
    grammar: Grammar | None
    priority: int
    episode_id: str
    store: bool
    task: str  # "" for the base and for several adapters, unless the request names one
    origin: pb.Origin
    prompt_lookup_tokens: int

    def sampling_of_choice(self, index: int) -> SamplingParams:
        """Each choice has its own seed; the prompt is scored with the first one only."""
        if index == 0:
            return self.sampling
        seed = choice_seed(self.sampling.seed, index)
        return dataclasses.replace(self.sampling, seed=seed, prompt_logprobs=None)

    def all_stop_token_ids(self, eos_token_ids: Collection[int]) -> frozenset[int]:
        """The request's own stop tokens, with the model's end tokens unless they are ignored."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids.union(eos_token_ids)


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """A valid ScoreRequest. A completion is text that is not empty, or at least one token id; only
    a classifier or reward model scores without completions."""

    adapters: tuple[WeightedSelector, ...]
    prompt: PromptInput
    completions: tuple[str | tuple[int, ...], ...]


def tokens_to_generate(
    call: GenerateCall, num_prompt_tokens: int, num_virtual_tokens: int, limits: Limits
) -> int:
    """How many tokens to generate at most: what the request asks for, else the server's default
    within the room that the prompt leaves.

    Raises InvalidFieldError: no room for a token, or for max_tokens or min_tokens where given.
    """
    room = _Room(call.prompt, num_prompt_tokens, num_virtual_tokens, limits.max_context_tokens)
    if call.max_tokens is None:
        max_tokens = min(max(limits.default_max_tokens, call.min_tokens), room.left)
    else:
        max_tokens = call.max_tokens
        room.check("max_tokens", "is", max_tokens)
    room.check("min_tokens", "is", call.min_tokens)
    return max_tokens


def check_score_length(
    call: ScoreCall,
    num_prompt_tokens: int,
    num_completion_tokens: Sequence[int],
    num_virtual_tokens: int,
    limits: Limits,
) -> None:
    """Raises InvalidFieldError where prompt and a completion together are over the context."""
    room = _Room(call.prompt, num_prompt_tokens, num_virtual_tokens, limits.max_context_tokens)
    for index, num_tokens in enumerate(num_completion_tokens):
        room.check(f"completions[{index}]", "has", num_tokens)


class _Room:
    """What a prompt leaves of the context: at least one token, or InvalidFieldError."""

    def __init__(
        self, prompt: PromptInput, num_prompt_tokens: int, num_virtual_tokens: int, context: int
    ) -> None:
        self.left = context - num_virtual_tokens - num_prompt_tokens
        self._context = context
        self._taken = f"{num_prompt_tokens} tokens"
        if num_virtual_tokens:
            self._taken += f" and {num_virtual_tokens} virtual ones of the adapter"
        if self.left < 1:
            raise InvalidFieldError(
                prompt.field,
                f"has {self._taken}, and the context of {context} must leave room for one more: "
                f"shorten the prompt by {1 - self.left} tokens",
            )

    def check(self, field: str, verb: str, num_tokens: int) -> None:
        if num_tokens > self.left:
            raise InvalidFieldError(
                field,
                f"{verb} {num_tokens}, and the prompt of {self._taken} leaves room for {self.left} "
                f"in the context of {self._context}",
            )
