"""What becomes of finished generations: they are handed to a log, if the request allows.

The journal is one (wired in serve.py). A generation is handed over before its last part is sent, so
that whoever has seen its end can give feedback on it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf import timestamp_pb2
from graftwork.v1 import feedback_service_pb2 as feedback_pb
from graftwork.v1 import generation_service_pb2 as pb

from graftwork_server.calls import GenerateCall
from graftwork_server.generation_stream import REASONS, ChoiceOutput
from graftwork_server.request import FinishReason, SamplingParams


class GenerationLog(Protocol):
    """Called on the event loop: neither blocks nor raises."""

    def log(self, generation: feedback_pb.Generation) -> None:
        """Takes the generation over; the caller changes it no more."""


def template_hash(chat_template: str | None) -> str:
    """SHA-256 in hexadecimal; "" where there is no template."""
    return hashlib.sha256(chat_template.encode()).hexdigest() if chat_template else ""


@dataclass(frozen=True, slots=True)
class GenerationRecorder:
    """Logs the answers of one request as they end."""

    log: GenerationLog
    request: pb.GenerateRequest
    call: GenerateCall
    header: pb.StreamGenerateResponse
    prompt_token_ids: tuple[int, ...]
    template_hash: str

    def record(self, choices: Iterable[ChoiceOutput]) -> None:
        """Logs those that have ended since the last call."""
        for choice in choices:
            if choice.finish_reason is not None and not choice.is_recorded:
                choice.is_recorded = True
                self.log.log(self._generation(choice, choice.finish_reason))

    def record_cancelled(self, choices: Iterable[ChoiceOutput]) -> None:
        """Logs what the caller may have seen of answers that it did not wait for."""
        for choice in choices:
            if choice.finish_reason is None and choice.token_ids:
                choice.is_recorded = True
                self.log.log(self._generation(choice, FinishReason.CANCELLED))

    def _generation(self, choice: ChoiceOutput, reason: FinishReason) -> feedback_pb.Generation:
        call = self.call
        generation = feedback_pb.Generation(
            id=choice.generation_id,
            group_id=self.header.group_id,
            episode_id=call.episode_id,
            task=call.task,
            origin=call.origin,
            served_by=self.header.served_by,
            completion=choice.text,
            prompt_token_ids=self.prompt_token_ids,
            completion_token_ids=choice.token_ids,
            completion_logprobs=choice.logprobs,
            sampling=_sampling_message(call.sampling_of_choice(choice.index)),
            finish_reason=REASONS[reason],
            create_time=self.header.create_time,
            finish_time=_now(),
        )
        match self.request.WhichOneof("input"):
            case "conversation":
                generation.conversation.CopyFrom(self.request.conversation)
                generation.template_hash = self.template_hash
            case "text":
                generation.text = self.request.text
            case _:
                generation.token_ids.CopyFrom(self.request.token_ids)
        return generation


def _sampling_message(sampling: SamplingParams) -> pb.SamplingParams:
    """What was in force, defaults and the drawn seed too."""
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        logit_bias=dict(sampling.logit_bias),
    )


def _now() -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.GetCurrentTime()
    return stamp
