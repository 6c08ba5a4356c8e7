"""Collects the scores of prompts that are scored, not continued."""

from collections.abc import AsyncIterator

from graftwork_server.dispatcher import EventStream
from graftwork_server.events import (
    ClassScoresEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    PromptLogprobsEvent,
)
from graftwork_server.generation_stream import incompleteness
from graftwork_server.plan import TokenLogprob


async def collect_scores(stream: EventStream, sequence_ids: list[int]) -> list[list[TokenLogprob]]:
    """The log-probabilities of all tokens but the first, for each sequence in order.

    Raises what a FailedEvent carries, DeadlineExceeded, or RequestCancelled.
    """
    collected: dict[int, list[TokenLogprob]] = {i: [] for i in sequence_ids}
    async for event in _events_until_complete(stream):
        if isinstance(event, PromptLogprobsEvent):
            collected[event.sequence_id] += event.logprobs
    return [collected[i] for i in sequence_ids]


async def collect_class_scores(
    stream: EventStream, sequence_ids: list[int]
) -> list[tuple[float, ...]]:
    """A classifier's logits by label, for each sequence in order; raises as `collect_scores`."""
    collected: dict[int, tuple[float, ...]] = {}
    async for event in _events_until_complete(stream):
        if isinstance(event, ClassScoresEvent):
            collected[event.sequence_id] = event.scores
    return [collected[i] for i in sequence_ids]


async def _events_until_complete(stream: EventStream) -> AsyncIterator[Event]:
    while not stream.is_finished:
        for event in await stream.next_batch():
            match event:
                case FinishedEvent():
                    if (error := incompleteness(event)) is not None:
                        raise error
                    stream.finish(event.sequence_id)
                case FailedEvent():
                    raise event.error
                case _:
                    yield event
