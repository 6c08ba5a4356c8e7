"""GenerationService: from a request on the wire to sequences in the engine, and back."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import grpc
from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1 import generation_service_pb2_grpc as pb_grpc
from graftwork_adapters.prompt_builder import PromptBuilder

from graftwork_server.adapter_choice import AdapterChooser, ServingAdapter
from graftwork_server.base_model import BaseModel
from graftwork_server.calls import (
    GenerateCall,
    Limits,
    ScoreCall,
    check_score_length,
    tokens_to_generate,
)
from graftwork_server.class_scores import classification_to_proto
from graftwork_server.constraints import ConstraintCompiler
from graftwork_server.detokenizer import Detokenizer
from graftwork_server.dispatcher import Dispatcher
from graftwork_server.errors import DeadlineExceeded, NotAGenerator
from graftwork_server.generation_log import GenerationLog, GenerationRecorder
from graftwork_server.generation_stream import ChoiceOutput, GenerationStream, to_proto
from graftwork_server.ids import IdGenerator
from graftwork_server.metrics import Metrics
from graftwork_server.plan import TokenLogprob
from graftwork_server.request import Constraint, SamplingParams, Sequence
from graftwork_server.request_timer import RequestTimer
from graftwork_server.score_stream import collect_class_scores, collect_scores
from graftwork_server.validate import RequestValidator
from graftwork_server.version import VERSION
from graftwork_server.version_prompts import VersionPrompts

Context = grpc.aio.ServicerContext[object, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GenerationParts:
    """What the service is made of."""

    base: BaseModel
    adapters: AdapterChooser
    dispatcher: Dispatcher
    validator: RequestValidator
    prompts: PromptBuilder
    version_prompts: VersionPrompts
    constraints: ConstraintCompiler
    detokenizer: Detokenizer
    limits: Limits
    metrics: Metrics
    executor: Executor  # for what takes longer than the event loop may wait
    ids: IdGenerator
    log: GenerationLog | None  # None: nothing is kept
    template_hash: str  # of the base's chat template


@dataclass(frozen=True, slots=True)
class RunningGeneration:
    """A request whose sequences are in the engine."""

    stream: GenerationStream
    header: pb.StreamGenerateResponse  # what the first message has beside its deltas
    num_prompt_tokens: int
    num_virtual_tokens: int
    recorder: GenerationRecorder | None  # None where the request or the server keeps nothing

    def record(self) -> None:
        """Logs the answers that have ended since the last call."""
        if self.recorder is not None:
            self.recorder.record(self.stream.choices.values())

    def record_cancelled(self) -> None:
        if self.recorder is not None:
            self.recorder.record_cancelled(self.stream.choices.values())

    def usage(self) -> pb.Usage:
        choices = list(self.stream.choices.values())
        cached = choices[0].num_cached_tokens - self.num_virtual_tokens
        return pb.Usage(
            prompt_tokens=self.num_prompt_tokens,
            cached_prompt_tokens=max(0, cached),
            completion_tokens=sum(choice.num_tokens for choice in choices),
        )


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    """All methods raise WireErrors; the interceptor makes statuses of them."""

    def __init__(self, parts: GenerationParts) -> None:
        self._parts = parts

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """The same stream, put together."""
        response = pb.GenerateResponse()
        async for part in self.StreamGenerate(request, context):
            if part.HasField("create_time"):
                response.group_id = part.group_id
                response.served_by.CopyFrom(part.served_by)
                response.create_time.CopyFrom(part.create_time)
                response.seed = part.seed
                response.choices.extend(pb.Choice(index=i) for i in range(request.n or 1))
            response.prompt_logprobs.extend(part.prompt_logprobs)
            for delta in part.deltas:
                _merge(response.choices[delta.index], delta)
            if part.HasField("usage"):
                response.usage.CopyFrom(part.usage)
        return response

    async def StreamGenerate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        async with self._running(request, context) as running:
            is_first = True
            while (response := await running.stream.next_response()) is not None:
                if is_first:
                    response.MergeFrom(running.header)
                    is_first = False
                else:
                    response.group_id = running.header.group_id
                    response.served_by.CopyFrom(running.header.served_by)
                running.record()
                if running.stream.is_finished:
                    response.usage.CopyFrom(running.usage())
                yield response

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        parts = self._parts
        call = parts.validator.score(request)
        parts.dispatcher.check_capacity(len(call.completions) or 1)
        with parts.adapters.holding(call.adapters) as adapter:
            if adapter.classifier is not None:
                return await self._classify(call, adapter, adapter.classifier.labels, context)
            if not call.completions:
                raise InvalidFieldError("completions", "is empty: give at least one")
            prompt, completions = await self._in_background(
                lambda: self._score_tokens(call, adapter)
            )
            lengths = [len(completion) for completion in completions]
            num_virtual = adapter.num_virtual_tokens
            check_score_length(call, len(prompt), lengths, num_virtual, parts.limits)
            sequences = [
                self._sequence(
                    adapter,
                    (*prompt, *completion),
                    SamplingParams(seed=0, prompt_logprobs=0),
                    deadline=_deadline(context),
                )
                for completion in completions
            ]
            stream = parts.dispatcher.submit(sequences)
            with contextlib.closing(stream):
                order = [sequence.sequence_id for sequence in sequences]
                logprobs = await collect_scores(stream, order)
        response = pb.ScoreResponse(
            served_by=adapter.served_by(parts.base.digest),
            usage=pb.Usage(prompt_tokens=len(prompt) * len(completions) + sum(lengths)),
        )
        for length, of_completion in zip(lengths, logprobs, strict=True):
            scored = of_completion[-length:]
            response.scores.add(
                logprobs=[to_proto(logprob, parts.detokenizer) for logprob in scored],
                total_logprob=sum(logprob.logprob or 0.0 for logprob in scored),
            )
        return response

    async def _classify(
        self,
        call: ScoreCall,
        adapter: ServingAdapter,
        labels: tuple[str, ...],
        context: Context,
    ) -> pb.ScoreResponse:
        """The classifier's scores of the prompt with each completion, or of the prompt alone."""
        parts = self._parts
        prompt, completions = await self._in_background(lambda: self._score_tokens(call, adapter))
        lengths = [len(completion) for completion in completions]
        check_score_length(call, len(prompt), lengths, adapter.num_virtual_tokens, parts.limits)
        sequences = [
            self._sequence(
                adapter,
                (*prompt, *completion),
                SamplingParams(seed=0),
                deadline=_deadline(context),
                classifies=True,
            )
            for completion in completions or [()]
        ]
        stream = parts.dispatcher.submit(sequences)
        with contextlib.closing(stream):
            order = [sequence.sequence_id for sequence in sequences]
            scores = await collect_class_scores(stream, order)
        num_tokens = len(prompt) * len(sequences) + sum(lengths)
        response = pb.ScoreResponse(
            served_by=adapter.served_by(parts.base.digest),
            usage=pb.Usage(prompt_tokens=num_tokens),
        )
        for logits in scores:
            response.scores.add(classification=classification_to_proto(labels, logits))
        return response

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        source = self._parts.validator.tokenize(request)
        prompt = await self._in_background(lambda: self._parts.prompts.build(source))
        return pb.TokenizeResponse(
            token_ids=prompt.token_ids,
            tokens=[self._parts.detokenizer.token_text(t) for t in prompt.token_ids],
            text=prompt.text,
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        base = self._parts.base
        digest = base.digest
        if request.recompute_digest:
            digest = await self._in_background(base.compute_digest)
        limits = self._parts.limits
        return pb.Model(
            name=base.name,
            digest=digest,
            quantization=base.quantization,
            device=base.device.type,
            architecture=base.architecture,
            num_parameters=base.num_parameters,
            weight_bytes=base.weight_bytes,
            server_version=VERSION,
            limits=pb.Model.Limits(
                **{name: getattr(limits, name) for name in limits.__dataclass_fields__}
            ),
        )

    @contextlib.asynccontextmanager
    async def _running(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[RunningGeneration]:
        """Validates, pins a version, and queues; leaving it aborts what is unfinished."""
        parts = self._parts
        timer = RequestTimer(parts.metrics)
        call = parts.validator.generate(request)
        parts.dispatcher.check_capacity(call.n)
        with parts.adapters.holding(call.adapters, call.episode_id) as adapter:
            if adapter.classifier is not None:
                raise NotAGenerator(adapter.classifier.selector)
            prompt = await self._in_background(lambda: self._prompt_tokens(call, adapter))
            constraints = await self._constraints(call)
            num_virtual = adapter.num_virtual_tokens
            is_logged = call.store and parts.log is not None
            max_tokens = tokens_to_generate(call, len(prompt), num_virtual, parts.limits)
            sequences = [
                self._sequence(
                    adapter,
                    prompt,
                    _with_logprobs(call.sampling_of_choice(index), is_logged),
                    max_tokens=max_tokens,
                    min_tokens=call.min_tokens,
                    stop_token_ids=call.all_stop_token_ids(parts.base.end_token_ids),
                    priority=call.priority,
                    deadline=_deadline(context),
                    constraint=constraints[index],
                    prompt_lookup_tokens=call.prompt_lookup_tokens,
                )
                for index in range(call.n)
            ]
            timer.begin(adapter.name, len(prompt))
            shows_logprobs = call.sampling.logprobs is not None
            choices = {
                sequence.sequence_id: ChoiceOutput(
                    index,
                    parts.ids.new(),
                    parts.detokenizer,
                    call.stop,
                    timer,
                    shows_logprobs=shows_logprobs,
                )
                for index, sequence in enumerate(sequences)
            }
            header = pb.StreamGenerateResponse(
                served_by=adapter.served_by(parts.base.digest),
                group_id=parts.ids.new(),
                seed=call.sampling.seed,
            )
            header.create_time.GetCurrentTime()
            events = parts.dispatcher.submit(sequences)
            with contextlib.closing(events):
                stream = GenerationStream(events, choices, parts.detokenizer)
                if call.sampling.prompt_logprobs is not None and not num_virtual:
                    stream.prompt_logprobs.append(TokenLogprob(prompt[0], None))
                recorder = self._recorder(request, call, header, prompt)
                running = RunningGeneration(stream, header, len(prompt), num_virtual, recorder)
                try:
                    yield running
                except (asyncio.CancelledError, GeneratorExit, DeadlineExceeded):
                    running.record_cancelled()
                    raise

    def _recorder(
        self,
        request: pb.GenerateRequest,
        call: GenerateCall,
        header: pb.StreamGenerateResponse,
        prompt: tuple[int, ...],
    ) -> GenerationRecorder | None:
        parts = self._parts
        if parts.log is None or not call.store:
            return None
        return GenerationRecorder(parts.log, request, call, header, prompt, parts.template_hash)

    def _sequence(
        self,
        adapter: ServingAdapter,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        *,
        deadline: float | None,
        max_tokens: int = 0,
        min_tokens: int = 0,
        stop_token_ids: frozenset[int] = frozenset(),
        priority: int = 0,
        constraint: Constraint | None = None,
        classifies: bool = False,
        prompt_lookup_tokens: int = 0,
    ) -> Sequence:
        num_virtual = adapter.num_virtual_tokens
        return Sequence(
            sequence_id=self._parts.dispatcher.new_sequence_id(),
            prompt_token_ids=(*range(-1, -num_virtual - 1, -1), *prompt),
            sampling=sampling,
            max_tokens=max_tokens,
            adapter_digest=adapter.weights_digest,
            priority=priority,
            min_tokens=min_tokens,
            stop_token_ids=stop_token_ids,
            deadline=deadline,
            constraint=constraint,
            classifies=classifies,
            prompt_lookup_tokens=prompt_lookup_tokens,
        )

    async def _constraints(self, call: GenerateCall) -> list[Constraint | None]:
        """One state for each choice; compiling the grammar may take a while."""
        grammar = call.grammar
        if grammar is None:
            return [None] * call.n
        compile_one = self._parts.constraints.compile
        return await self._in_background(lambda: [compile_one(grammar) for _ in range(call.n)])

    def _prompt_tokens(
        self, call: GenerateCall | ScoreCall, adapter: ServingAdapter
    ) -> tuple[int, ...]:
        around = self._parts.version_prompts.of(adapter)
        return self._parts.prompts.build(call.prompt, around).token_ids

    def _score_tokens(
        self, call: ScoreCall, adapter: ServingAdapter
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        prompts = self._parts.prompts
        completions = [
            prompts.completion(completion, f"completions[{index}].text")
            if isinstance(completion, str)
            else completion
            for index, completion in enumerate(call.completions)
        ]
        return self._prompt_tokens(call, adapter), completions

    async def _in_background(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._parts.executor, work)


def _deadline(context: Context) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _with_logprobs(sampling: SamplingParams, is_logged: bool) -> SamplingParams:
    """The log wants the log-probability of each token, whether or not the caller does."""
    if is_logged and sampling.logprobs is None:
        return dataclasses.replace(sampling, logprobs=0)
    return sampling


def _merge(choice: pb.Choice, delta: pb.ChoiceDelta) -> None:
    choice.generation_id = delta.generation_id
    choice.text += delta.text
    choice.token_ids.extend(delta.token_ids)
    choice.logprobs.extend(delta.logprobs)
    choice.finish_reason = delta.finish_reason
    choice.stop_string = delta.stop_string
