"""From the wire's messages to the values of `graftwork.types`."""

from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from graftwork.types import (
    Adapter,
    AdapterVersion,
    Alternative,
    Choice,
    Classification,
    ClassScore,
    CompletionScore,
    Component,
    Delta,
    FinishReason,
    Generation,
    Limits,
    Model,
    Residency,
    ScoreResult,
    ServedBy,
    Tokenization,
    TokenLogprob,
    Usage,
)
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import generation_service_pb2 as generation_pb

_FINISH_REASONS: dict[int, FinishReason | None] = {
    generation_pb.FINISH_REASON_UNSPECIFIED: None,
    generation_pb.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}
_RESIDENCIES: dict[int, Residency] = {
    adapter_pb.RESIDENCY_DISK: Residency.DISK,
    adapter_pb.RESIDENCY_HOST: Residency.HOST,
    adapter_pb.RESIDENCY_DEVICE: Residency.DEVICE,
}


def generation(message: generation_pb.GenerateResponse) -> Generation:
    return Generation(
        group_id=message.group_id,
        served_by=served_by(message.served_by),
        choices=tuple(_choice(choice) for choice in message.choices),
        prompt_logprobs=logprobs(message.prompt_logprobs),
        usage=usage(message.usage),
        create_time=time(message.create_time),
        seed=message.seed,
    )


def _choice(message: generation_pb.Choice) -> Choice:
    return Choice(
        index=message.index,
        generation_id=message.generation_id,
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=finish_reason(message.finish_reason),
        stop_string=message.stop_string,
        logprobs=logprobs(message.logprobs),
    )


def delta(message: generation_pb.ChoiceDelta) -> Delta:
    return Delta(
        index=message.index,
        generation_id=message.generation_id,
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=finish_reason(message.finish_reason),
        stop_string=message.stop_string,
        logprobs=logprobs(message.logprobs),
    )


def finish_reason(value: int) -> FinishReason | None:
    return _FINISH_REASONS.get(value, FinishReason.UNKNOWN)


def served_by(message: generation_pb.ServedBy) -> ServedBy:
    components = tuple(
        Component(part.adapter, part.version, part.digest, part.weight)
        for part in message.components
    )
    return ServedBy(
        message.adapter, message.version, message.digest, message.base_digest, components
    )


def usage(message: generation_pb.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.cached_prompt_tokens, message.completion_tokens)


def logprobs(messages: Iterable[generation_pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token_id=message.token_id,
            token=message.token,
            logprob=message.logprob if message.HasField("logprob") else None,
            top=tuple(Alternative(top.token_id, top.token, top.logprob) for top in message.top),
        )
        for message in messages
    )


def score_result(message: generation_pb.ScoreResponse) -> ScoreResult:
    scores = tuple(
        CompletionScore(logprobs(score.logprobs), score.total_logprob, classification(score))
        for score in message.scores
    )
    return ScoreResult(served_by(message.served_by), scores, usage(message.usage))


def classification(score: generation_pb.ScoreResponse.CompletionScore) -> Classification | None:
    if not score.HasField("classification"):
        return None
    message = score.classification
    return Classification(
        tuple(ClassScore(c.label, c.logit, c.probability) for c in message.classes),
        message.reward if message.HasField("reward") else None,
    )


def tokenization(message: generation_pb.TokenizeResponse) -> Tokenization:
    return Tokenization(tuple(message.token_ids), tuple(message.tokens), message.text)


def model(message: generation_pb.Model) -> Model:
    limits = message.limits
    return Model(
        name=message.name,
        digest=message.digest,
        quantization=message.quantization,
        device=message.device,
        architecture=message.architecture,
        num_parameters=message.num_parameters,
        weight_bytes=message.weight_bytes,
        limits=Limits(
            max_context_tokens=limits.max_context_tokens,
            max_new_tokens=limits.max_new_tokens,
            default_max_tokens=limits.default_max_tokens,
            max_n=limits.max_n,
            max_logprobs=limits.max_logprobs,
            max_stop_strings=limits.max_stop_strings,
            max_queued_requests=limits.max_queued_requests,
            max_adapter_rank=limits.max_adapter_rank,
            max_device_adapters=limits.max_device_adapters,
            max_completions=limits.max_completions,
            max_prompt_lookup_tokens=limits.max_prompt_lookup_tokens,
        ),
        server_version=message.server_version,
    )


def adapter(message: adapter_pb.Adapter) -> Adapter:
    return Adapter(
        name=message.name,
        live_version=message.live_version,
        traffic_split={share.version: share.percent for share in message.traffic_split},
        pinned=message.pinned,
        create_time=time(message.create_time),
        update_time=time(message.update_time),
    )


def adapter_version(message: adapter_pb.AdapterVersion) -> AdapterVersion:
    return AdapterVersion(
        adapter=message.adapter,
        version=message.version,
        digest=message.digest,
        method=message.method,
        rank=message.rank,
        num_virtual_tokens=message.num_virtual_tokens,
        num_parameters=message.num_parameters,
        size_bytes=message.size_bytes,
        base_digest=message.base_digest,
        base_verified=message.base_verified,
        residency=_RESIDENCIES.get(message.residency, Residency.UNKNOWN),
        create_time=time(message.create_time),
        source=message.source,
        labels=tuple(message.labels),
        ephemeral=message.ephemeral,
    )


def time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
