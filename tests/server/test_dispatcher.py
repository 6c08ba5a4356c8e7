"""Batches of a request's events: the first at once, then in pace, and none left lying."""

import asyncio

from graftwork_server.dispatcher import Dispatcher, EventStream
from graftwork_server.events import (
    Event,
    FinishCause,
    FinishedEvent,
    PromptLogprobsEvent,
    TokenEvent,
)
from graftwork_server.request import FinishReason, SamplingParams, Sequence

LONG_S = 0.2


class NoEngine:
    def __init__(self) -> None:
        self.aborted: list[int] = []

    def add(self, sequences: list[Sequence]) -> None:
        pass

    def abort(self, sequence_id: int) -> None:
        self.aborted.append(sequence_id)


def start(interval_s: float, num_sequences: int = 1) -> tuple[Dispatcher, EventStream]:
    dispatcher = Dispatcher(NoEngine(), max_in_flight=8, interval_s=interval_s)
    sequences = [
        Sequence(i, (5,), SamplingParams(seed=0), max_tokens=9) for i in range(num_sequences)
    ]
    return dispatcher, dispatcher.submit(sequences)


def token(token_id: int, sequence_id: int = 0) -> TokenEvent:
    return TokenEvent(sequence_id, token_id, None, 0)


def end(sequence_id: int = 0) -> FinishedEvent:
    return FinishedEvent(sequence_id, FinishReason.LENGTH, FinishCause.MAX_TOKENS, 1, 0, 1)


async def publish(dispatcher: Dispatcher, *events: Event) -> None:
    dispatcher.publish(list(events))
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_the_first_token_comes_at_once_and_the_next_wait_for_each_other():
    dispatcher, stream = start(LONG_S)
    await publish(dispatcher, token(1))
    assert await asyncio.wait_for(stream.next_batch(), LONG_S / 2) == [token(1)]
    waiting = asyncio.create_task(stream.next_batch())
    for token_id in (2, 3):
        await publish(dispatcher, token(token_id))
    assert not waiting.done()
    await asyncio.sleep(LONG_S)
    await publish(dispatcher, token(4))
    assert await asyncio.wait_for(waiting, LONG_S / 2) == [token(2), token(3), token(4)]


async def test_the_end_waits_for_nothing():
    dispatcher, stream = start(LONG_S)
    await publish(dispatcher, token(1))
    await stream.next_batch()
    await publish(dispatcher, token(2))
    await publish(dispatcher, token(3), end())
    found = await asyncio.wait_for(stream.next_batch(), LONG_S / 2)
    assert found == [token(2), token(3), end()]


async def test_the_end_of_one_answer_takes_the_tokens_of_another_along():
    dispatcher, stream = start(LONG_S, num_sequences=2)
    await publish(dispatcher, token(1), token(1, 1))
    await stream.next_batch()
    await publish(dispatcher, token(2), token(2, 1), end(1))
    found = await asyncio.wait_for(stream.next_batch(), LONG_S / 2)
    assert found == [token(2), token(2, 1), end(1)]


async def test_the_first_token_of_each_answer_comes_at_once():
    dispatcher, stream = start(LONG_S, num_sequences=2)
    await publish(dispatcher, PromptLogprobsEvent(0, ()))
    await stream.next_batch()
    for sequence_id in (0, 1):
        await publish(dispatcher, token(1, sequence_id))
        assert await asyncio.wait_for(stream.next_batch(), LONG_S / 2) == [token(1, sequence_id)]


async def test_a_token_keeps_the_time_at_which_it_came():
    dispatcher, stream = start(LONG_S)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await publish(dispatcher, token(1))
    await asyncio.sleep(0.05)
    await publish(dispatcher, token(2), end())
    await stream.next_batch()
    first, second, _ = stream.batch_times
    assert before <= first < second <= loop.time()


async def test_a_token_that_none_follows_is_given_out_all_the_same():
    interval_s = 0.02
    dispatcher, stream = start(interval_s)
    await publish(dispatcher, token(1))
    await stream.next_batch()
    await publish(dispatcher, token(2))
    assert await asyncio.wait_for(stream.next_batch(), 2) == [token(2)]
    await asyncio.sleep(5 * interval_s)  # with nothing to give out, a sweep ends
    await publish(dispatcher, token(3))
    assert await asyncio.wait_for(stream.next_batch(), 2) == [token(3)]


async def test_without_an_interval_every_token_comes_by_itself():
    dispatcher, stream = start(0.0)
    for token_id in range(3):
        await publish(dispatcher, token(token_id))
        assert await asyncio.wait_for(stream.next_batch(), LONG_S) == [token(token_id)]


async def test_closing_aborts_what_is_open():
    dispatcher, stream = start(LONG_S, num_sequences=2)
    await publish(dispatcher, token(1), end())
    await stream.next_batch()
    stream.finish(0)
    stream.close()
    assert dispatcher._engine.aborted == [1]
    assert dispatcher.num_in_flight == 0
