"""What is told of an answer that ends badly: all that came before, then why."""

import pytest
from graftwork_server.detokenizer import Detokenizer
from graftwork_server.errors import DeadlineExceeded
from graftwork_server.events import Event, FinishCause, FinishedEvent, TokenEvent
from graftwork_server.generation_stream import ChoiceOutput, GenerationStream
from graftwork_server.request import FinishReason

from tests.server.sampling.tiny_tokenizers import byte_level


class NoTimer:
    def token(self, previous: float | None, now: float) -> None:
        pass

    def finished(self, reason: FinishReason, num_tokens: int) -> None:
        pass


class OneBatch:
    """An EventStream that has one batch to give."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self.batch_times = [0.0] * len(events)
        self.is_finished = False

    async def next_batch(self) -> list[Event]:
        return self._events

    def finish(self, sequence_id: int) -> None:
        self.is_finished = True

    def abort(self, sequence_id: int) -> None:
        self.is_finished = True


def stream_of(events: list[Event], stops: tuple[str, ...] = ()) -> GenerationStream:
    detokenizer = Detokenizer(byte_level())
    choice = ChoiceOutput(0, "g", detokenizer, stops, NoTimer())
    return GenerationStream(OneBatch(events), {0: choice}, detokenizer)


def late() -> FinishedEvent:
    return FinishedEvent(0, FinishReason.CANCELLED, FinishCause.DEADLINE, 1, 0, 2)


def tokens(text: str) -> list[TokenEvent]:
    return [TokenEvent(0, i, None, 0) for i in byte_level()(text)["input_ids"]]


async def test_tokens_before_an_error_are_told():
    stream = stream_of([*tokens("ab"), late()])
    response = await stream.next_response()
    assert [delta.text for delta in response.deltas] == ["ab"]
    with pytest.raises(DeadlineExceeded):
        await stream.next_response()


async def test_an_answer_that_a_stop_string_has_ended_is_not_late():
    stream = stream_of([*tokens("a."), late()], stops=(".",))
    response = await stream.next_response()
    assert response.deltas[0].text == "a"
    assert response.deltas[0].stop_string == "."
    assert await stream.next_response() is None
