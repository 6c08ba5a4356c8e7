"""Puts the messages of a stream together into what `generate` would have returned."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from graftwork import responses
from graftwork.types import (
    Choice,
    Delta,
    FinishReason,
    Generation,
    ServedBy,
    TokenLogprob,
    Usage,
)
from graftwork.v1 import generation_service_pb2 as generation_pb


@dataclass(slots=True)
class _Parts:
    """What has come of one choice."""

    generation_id: str
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_string: str = ""

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_string = delta.stop_string

    def choice(self, index: int) -> Choice:
        return Choice(
            index=index,
            generation_id=self.generation_id,
            text="".join(self.text),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_string=self.stop_string,
            logprobs=tuple(self.logprobs),
        )


class Assembly:
    """What has come of a stream so far."""

    def __init__(self) -> None:
        self._parts: dict[int, _Parts] = {}
        self._group_id = ""
        self._served_by: ServedBy | None = None
        self._create_time: datetime | None = None
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self._seed = 0
        self._usage: Usage | None = None

    def add(self, message: generation_pb.StreamGenerateResponse) -> Sequence[Delta]:
        """Takes the next message and returns its deltas."""
        if self._served_by is None:
            self._served_by = responses.served_by(message.served_by)
            self._group_id = message.group_id
            self._create_time = responses.time(message.create_time)
            self._prompt_logprobs = responses.logprobs(message.prompt_logprobs)
            self._seed = message.seed
        if message.HasField("usage"):
            self._usage = responses.usage(message.usage)
        deltas = [responses.delta(delta) for delta in message.deltas]
        for delta in deltas:
            self._parts.setdefault(delta.index, _Parts(delta.generation_id)).add(delta)
        return deltas

    @property
    def generation(self) -> Generation:
        """Raises RuntimeError before the first message."""
        if self._served_by is None or self._create_time is None:
            raise RuntimeError("nothing has arrived on this stream yet")
        return Generation(
            group_id=self._group_id,
            served_by=self._served_by,
            choices=tuple(self._parts[index].choice(index) for index in sorted(self._parts)),
            prompt_logprobs=self._prompt_logprobs,
            usage=self._usage,
            create_time=self._create_time,
            seed=self._seed,
        )
