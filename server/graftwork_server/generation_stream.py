"""Turns the events of one request into what is streamed: text, tokens, log-probabilities, usage."""

from dataclasses import dataclass, field

from graftwork.status import WireError
from graftwork.v1 import generation_service_pb2 as pb

from graftwork_server.detokenizer import Detokenizer
from graftwork_server.dispatcher import EventStream
from graftwork_server.errors import DeadlineExceeded, RequestCancelled
from graftwork_server.events import (
    Event,
    FailedEvent,
    FinishCause,
    FinishedEvent,
    PromptLogprobsEvent,
    TokenEvent,
)
from graftwork_server.plan import TokenLogprob
from graftwork_server.request import FinishReason
from graftwork_server.request_timer import RequestTimer
from graftwork_server.stop_strings import StopStrings

REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}


class ChoiceOutput:
    """One answer as it grows; `take_delta` gives what came since the last call."""

    def __init__(
        self,
        index: int,
        generation_id: str,
        detokenizer: Detokenizer,
        stops: tuple[str, ...],
        timer: RequestTimer,
        *,
        shows_logprobs: bool = True,
    ) -> None:
        """`shows_logprobs`: whether log-probabilities that come with tokens are for the caller."""
        self.index = index
        self.generation_id = generation_id
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []  # of the tokens, as far as they came with one
        self.is_recorded = False  # in a log of generations
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = detokenizer
        self._text = detokenizer.start()
        self._stops = StopStrings(stops)
        self._timer = timer
        self._last_token_time: float | None = None
        self._shows_logprobs = shows_logprobs
        self._shown: list[str] = []
        self._delta = self._new_delta()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """What was shown so far."""
        return "".join(self._shown)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    def push(self, event: TokenEvent, time: float, *, is_stop_token: bool) -> None:
        """Takes a token that the engine gave at `time`; a stop token counts among the tokens but
        has no text."""
        self.token_ids.append(event.token_id)
        self._timer.token(self._last_token_time, time)
        self._last_token_time = time
        self.num_cached_tokens = event.num_cached_tokens
        self._delta.token_ids.append(event.token_id)
        if event.logprob is not None:
            if event.logprob.logprob is not None:
                self.logprobs.append(event.logprob.logprob)
            if self._shows_logprobs:
                self._delta.logprobs.append(to_proto(event.logprob, self._detokenizer))
        if not is_stop_token:
            self._push_text(self._text.push((event.token_id,)))

    def finish(self, event: FinishedEvent) -> None:
        """Ends the answer, unless a stop string has ended it."""
        if self.is_finished:
            return
        self.num_cached_tokens = event.num_cached_tokens
        self._push_text(self._text.finish())
        if not self.is_finished:
            self._show(self._stops.finish())
            self._end(event.reason)

    def take_delta(self) -> pb.ChoiceDelta | None:
        """None where nothing came."""
        delta = self._delta
        if not (delta.text or delta.token_ids or delta.finish_reason):
            return None
        self._delta = self._new_delta()
        return delta

    def _push_text(self, text: str) -> None:
        shown, stop = self._stops.push(text)
        self._show(shown)
        if stop is not None:
            self._delta.stop_string = stop
            self._end(FinishReason.STOP)

    def _show(self, text: str) -> None:
        if text:
            self._shown.append(text)
            self._delta.text += text

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._timer.finished(reason, self.num_tokens)
        self._delta.finish_reason = REASONS[reason]

    def _new_delta(self) -> pb.ChoiceDelta:
        return pb.ChoiceDelta(index=self.index, generation_id=self.generation_id)


@dataclass(slots=True)
class GenerationStream:
    """All answers of one request, by the sequence ids that compute them."""

    events: EventStream
    choices: dict[int, ChoiceOutput]
    detokenizer: Detokenizer
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    _error: WireError | None = None

    @property
    def is_finished(self) -> bool:
        return self.events.is_finished

    async def next_response(self) -> pb.StreamGenerateResponse | None:
        """A message with what came since the one before, None once all answers have ended.

        Raises what a FailedEvent carries, DeadlineExceeded, or RequestCancelled, once what came
        before is told.
        """
        while self._error is None and not self.is_finished:
            self._take(await self.events.next_batch())
            deltas = [delta for c in self.choices.values() if (delta := c.take_delta())]
            if deltas:
                prompt_logprobs = [to_proto(p, self.detokenizer) for p in self.prompt_logprobs]
                self.prompt_logprobs.clear()
                return pb.StreamGenerateResponse(deltas=deltas, prompt_logprobs=prompt_logprobs)
        if self._error is not None:
            raise self._error
        return None

    def _take(self, batch: list[Event]) -> None:
        stop_tokens = _stop_tokens(batch)
        for event, time in zip(batch, self.events.batch_times, strict=True):
            choice = self.choices[event.sequence_id]
            match event:
                case TokenEvent() if not choice.is_finished:
                    is_stop_token = stop_tokens.get(event.sequence_id) is event
                    choice.push(event, time, is_stop_token=is_stop_token)
                    if choice.is_finished:
                        self.events.abort(event.sequence_id)
                case FinishedEvent():
                    if not choice.is_finished and (error := incompleteness(event)) is not None:
                        self._error = error
                        return
                    self.events.finish(event.sequence_id)
                    choice.finish(event)
                case PromptLogprobsEvent() if choice.index == 0:
                    self.prompt_logprobs += event.logprobs
                case FailedEvent():
                    self._error = event.error
                    return


def _stop_tokens(batch: list[Event]) -> dict[int, TokenEvent]:
    """The last token of each sequence that a stop token ends in this batch."""
    ended = {
        event.sequence_id
        for event in batch
        if isinstance(event, FinishedEvent) and event.cause is FinishCause.STOP_TOKEN
    }
    if not ended:
        return {}
    return {e.sequence_id: e for e in batch if isinstance(e, TokenEvent) and e.sequence_id in ended}


def incompleteness(event: FinishedEvent) -> WireError | None:
    """What to raise for a sequence that the engine ended before its time."""
    if event.cause is FinishCause.DEADLINE:
        return DeadlineExceeded("the request's deadline passed before its answer was complete")
    if event.cause is FinishCause.ABORTED:
        return RequestCancelled("the request was ended by the server")
    return None


def to_proto(logprob: TokenLogprob, detokenizer: Detokenizer) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=logprob.token_id,
        token=detokenizer.token_text(logprob.token_id),
        logprob=logprob.logprob,
        top=[
            pb.TokenLogprob.Alternative(
                token_id=token_id, token=detokenizer.token_text(token_id), logprob=value
            )
            for token_id, value in logprob.top
        ],
    )
