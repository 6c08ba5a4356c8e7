"""Collects the log-probabilities of prompts that are scored, not continued."""

from graftwork_server.dispatcher import EventStream
from graftwork_server.events import FailedEvent, FinishedEvent, PromptLogprobsEvent
from graftwork_server.generation_stream import raise_unless_complete
from graftwork_server.plan import TokenLogprob


async def collect_scores(stream: EventStream, sequence_ids: list[int]) -> list[list[TokenLogprob]]:
    """The log-probabilities of all tokens but the first, for each sequence in order.

    Raises what a FailedEvent carries, DeadlineExceeded, or RequestCancelled.
    """
    collected: dict[int, list[TokenLogprob]] = {i: [] for i in sequence_ids}
    while not stream.is_finished:
        for event in await stream.next_batch():
            match event:
                case PromptLogprobsEvent():
                    collected[event.sequence_id] += event.logprobs
                case FinishedEvent():
                    raise_unless_complete(event)
                    stream.finish(event.sequence_id)
                case FailedEvent():
                    raise event.error
    return [collected[i] for i in sequence_ids]
