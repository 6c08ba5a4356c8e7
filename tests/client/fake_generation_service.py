"""The fake server's model, `echo`: it answers "<served by>: <last text>", a word a token."""

import itertools
import time

from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork.v1 import generation_service_pb2_grpc


def words(text: str) -> list[str]:
    """Tokens of a text: its words, each with the space before it."""
    return [word if index == 0 else " " + word for index, word in enumerate(text.split(" "))]


def prompt_text(request) -> str:
    kind = request.WhichOneof("input")
    if kind == "conversation":
        messages = request.conversation.messages
        return messages[-1].content if messages else ""
    if kind == "token_ids":
        return " ".join(str(token_id) for token_id in request.token_ids.ids)
    return request.text


class GenerationService(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self, server) -> None:
        self.server = server

    def _answer(self, request, context):
        served_by = self.server.served_by(request.adapter, context)
        name = f"{served_by.adapter}@{served_by.version}" if served_by.adapter else "base"
        tokens = words(f"{name}: {prompt_text(request)}")
        limit = request.max_tokens if request.HasField("max_tokens") else len(tokens)
        stopped = limit >= len(tokens)
        reason = generation_pb.FINISH_REASON_STOP if stopped else generation_pb.FINISH_REASON_LENGTH
        return served_by, tokens[:limit], reason

    def Generate(self, request, context):
        self.server.enter("Generate", request, context)
        served_by, tokens, reason = self._answer(request, context)
        choices = [
            generation_pb.Choice(
                index=index,
                generation_id=f"generation-{index}",
                text="".join(tokens),
                token_ids=range(len(tokens)),
                finish_reason=reason,
                logprobs=_logprobs(tokens) if request.HasField("logprobs") else (),
            )
            for index in range(max(request.n, 1))
        ]
        return generation_pb.GenerateResponse(
            group_id="group",
            served_by=served_by,
            choices=choices,
            usage=_usage(request, len(tokens)),
            create_time=self.server.create_time,
            seed=request.sampling.seed or 7,
        )

    def StreamGenerate(self, request, context):
        self.server.enter("StreamGenerate", request, context)
        served_by, tokens, reason = self._answer(request, context)
        context.add_callback(lambda: self._ended(context))
        tokens = itertools.cycle([*tokens, " "]) if self.server.endless else iter(tokens)
        yield generation_pb.StreamGenerateResponse(
            served_by=served_by, group_id="group", create_time=self.server.create_time, seed=7
        )
        count = 0
        for count, token in enumerate(tokens, start=1):
            if not context.is_active():
                return
            time.sleep(self.server.token_delay_s)
            if count == 10:
                self.server.tenth_token.set()
            yield generation_pb.StreamGenerateResponse(
                served_by=served_by,
                group_id="group",
                deltas=[
                    generation_pb.ChoiceDelta(
                        index=index,
                        generation_id=f"generation-{index}",
                        text=token,
                        token_ids=[count - 1],
                        logprobs=_logprobs([token]) if request.HasField("logprobs") else (),
                    )
                    for index in range(max(request.n, 1))
                ],
            )
        self.server.enter("EndOfStream", request, context)
        yield generation_pb.StreamGenerateResponse(
            served_by=served_by,
            group_id="group",
            deltas=[
                generation_pb.ChoiceDelta(
                    index=index, generation_id=f"generation-{index}", finish_reason=reason
                )
                for index in range(max(request.n, 1))
            ],
            usage=_usage(request, count),
        )

    def _ended(self, context) -> None:
        if self.server.endless:
            self.server.stream_cancelled.set()

    def Score(self, request, context):
        self.server.enter("Score", request, context)
        served_by = self.server.served_by(request.adapter, context)
        scores = []
        for completion in request.completions:
            tokens = words(completion.text) if completion.text else completion.token_ids.ids
            scores.append(
                generation_pb.ScoreResponse.CompletionScore(
                    logprobs=_logprobs([str(token) for token in tokens]),
                    total_logprob=-0.5 * len(tokens),
                )
            )
        return generation_pb.ScoreResponse(
            served_by=served_by, scores=scores, usage=_usage(request, 0)
        )

    def Tokenize(self, request, context):
        self.server.enter("Tokenize", request, context)
        text = prompt_text(request)
        if not text:
            self.server.fail(context, InvalidFieldError("text", "is empty"))
        tokens = words(text)
        return generation_pb.TokenizeResponse(
            token_ids=range(len(tokens)), tokens=tokens, text=text
        )

    def GetModel(self, request, context):
        self.server.enter("GetModel", request, context)
        return generation_pb.Model(
            name="echo",
            digest=self.server.base_digest,
            quantization="none",
            device="cpu",
            architecture="EchoForCausalLM",
            num_parameters=134_515_008,
            weight_bytes=150_000_000,
            limits=generation_pb.Model.Limits(max_context_tokens=8192, max_n=16),
            server_version="0.1.0",
        )


def _logprobs(tokens: list[str]) -> list[generation_pb.TokenLogprob]:
    return [
        generation_pb.TokenLogprob(
            token_id=index,
            token=token,
            logprob=-0.5,
            top=[generation_pb.TokenLogprob.Alternative(token_id=9, token="x", logprob=-1.0)],
        )
        for index, token in enumerate(tokens)
    ]


def _usage(request, completion_tokens: int) -> generation_pb.Usage:
    return generation_pb.Usage(
        prompt_tokens=len(words(prompt_text(request))), completion_tokens=completion_tokens
    )
