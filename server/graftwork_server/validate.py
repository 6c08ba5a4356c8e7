"""Turns requests off the wire into typed ones, or refuses them by the name of the field at fault.

Nothing downstream checks again. What depends on the length of the tokenized prompt is checked by
`calls.tokens_to_generate` and `calls.check_score_length` once that is known.
"""

import dataclasses
from collections.abc import Callable, Sequence

from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as pb
from graftwork_adapters.prompt_builder import (
    Conversation,
    Document,
    Message,
    PromptInput,
    Text,
    TokenIds,
)
from graftwork_adapters.selector import parse_name, parse_selector

from graftwork_server.calls import GenerateCall, Limits, ScoreCall, WeightedSelector
from graftwork_server.request import Choice, Grammar, JsonSchema, Regex, SamplingParams

ROLES = ("system", "user", "assistant")
ORIGINS = frozenset(pb.Origin.values())
MAX_STOP_STRING_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1024
MAX_CHOICES = 1024
MAX_CONSTRAINT_CHARACTERS = 65_536
MAX_EPISODE_ID_CHARACTERS = 128
MAX_TEMPERATURE = 100.0
MAX_COMPONENTS = 16
MAX_WEIGHT = 100.0
# Beyond these a penalty overflows or drowns any logit.
REPETITION_PENALTY_RANGE = (0.01, 100.0)


class RequestValidator:
    """Checks requests against the limits of one server and the vocabulary of its base."""

    def __init__(self, limits: Limits, vocab_size: int, draw_seed: Callable[[], int]) -> None:
        """`draw_seed` returns an unsigned 64-bit integer for a request that gives no seed."""
        self._limits = limits
        self._vocab_size = vocab_size
        self._draw_seed = draw_seed

    def generate(self, request: pb.GenerateRequest) -> GenerateCall:
        """Raises InvalidFieldError."""
        limits = self._limits
        max_tokens = request.max_tokens if request.HasField("max_tokens") else None
        if max_tokens is not None:
            _check_range("max_tokens", max_tokens, 1, limits.max_new_tokens)
        _check_range("min_tokens", request.min_tokens, 0, limits.max_new_tokens)
        if max_tokens is not None and request.min_tokens > max_tokens:
            raise InvalidFieldError(
                "min_tokens", f"is {request.min_tokens}, more than max_tokens, {max_tokens}"
            )
        n = request.n if request.HasField("n") else 1
        _check_range("n", n, 1, limits.max_n)
        _check_range("priority", request.priority, -100, 100)
        _check_count("episode_id", len(request.episode_id), MAX_EPISODE_ID_CHARACTERS, "characters")
        if "\0" in request.episode_id:
            raise InvalidFieldError("episode_id", "has a null character in it")
        if request.origin not in ORIGINS:
            raise InvalidFieldError("origin", f"{request.origin} is no origin that is known")
        grammar = _grammar(request)
        if grammar is not None and request.ignore_eos:
            raise InvalidFieldError(
                "ignore_eos", "cannot go with a constraint, which ends with an end token: unset one"
            )
        adapters = _adapters(request)
        return GenerateCall(
            adapters=adapters,
            prompt=self._prompt(request),
            sampling=self._sampling(request),
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            stop=self._stop(request.stop),
            stop_token_ids=self._stop_token_ids(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            n=n,
            grammar=grammar,
            priority=request.priority,
            episode_id=request.episode_id,
            store=request.store if request.HasField("store") else True,
            task=_task(request.task, adapters),
            origin=request.origin or pb.ORIGIN_USER,
            prompt_lookup_tokens=self._prompt_lookup_tokens(request),
        )

    def score(self, request: pb.ScoreRequest) -> ScoreCall:
        """Raises InvalidFieldError."""
        _check_count("completions", len(request.completions), self._limits.max_completions)
        completions: list[str | tuple[int, ...]] = []
        for index, completion in enumerate(request.completions):
            field = f"completions[{index}]"
            match completion.WhichOneof("completion"):
                case "text":
                    _check_not_empty(f"{field}.text", completion.text)
                    completions.append(completion.text)
                case "token_ids":
                    completions.append(self._ids(f"{field}.token_ids", completion.token_ids.ids))
                case _:
                    raise InvalidFieldError(field, "is empty: give text or token_ids")
        return ScoreCall(_adapters(request), self._prompt(request), tuple(completions))

    def tokenize(self, request: pb.TokenizeRequest) -> PromptInput:
        """Raises InvalidFieldError."""
        return self._prompt(request)

    def _prompt(
        self, request: pb.GenerateRequest | pb.ScoreRequest | pb.TokenizeRequest
    ) -> PromptInput:
        kind = request.WhichOneof("input")
        if kind == "conversation":
            return _conversation(request.conversation)
        if kind == "text":
            _check_not_empty("text", request.text)
            return Text(request.text)
        if isinstance(request, pb.TokenizeRequest):
            raise InvalidFieldError("input", "is missing: give a conversation or text")
        if kind is None:
            raise InvalidFieldError("input", "is missing: give a conversation, text or token_ids")
        return TokenIds(self._ids("token_ids", request.token_ids.ids))

    def _ids(self, field: str, ids: Sequence[int]) -> tuple[int, ...]:
        _check_not_empty(field, ids)
        self._check_tokens(f"{field}.ids", ids)
        return tuple(ids)

    def _check_tokens(self, field: str, token_ids: Sequence[int]) -> None:
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < self._vocab_size:
                self._check_token(f"{field}[{index}]", token_id)

    def _check_token(self, field: str, token_id: int) -> None:
        if not 0 <= token_id < self._vocab_size:
            raise InvalidFieldError(
                field, f"token {token_id} is not in the vocabulary, 0 to {self._vocab_size - 1}"
            )

    def _sampling(self, request: pb.GenerateRequest) -> SamplingParams:
        sent = request.sampling
        defaults = SamplingParams(seed=sent.seed if sent.HasField("seed") else self._draw_seed())

        def number(name: str, low: float, high: float, *, above: bool = False) -> float:
            """The field's value; `above`: greater than `low`."""
            if not sent.HasField(name):
                default: float = getattr(defaults, name)
                return default
            value: float = getattr(sent, name)
            _check_range(f"sampling.{name}", value, low, high, above=above)
            return value

        def logprobs(name: str) -> int | None:
            if not request.HasField(name):
                return None
            value: int = getattr(request, name)
            _check_range(name, value, 0, self._limits.max_logprobs)
            return value

        return dataclasses.replace(
            defaults,
            temperature=number("temperature", 0, MAX_TEMPERATURE),
            top_p=number("top_p", 0, 1, above=True),
            top_k=int(number("top_k", 0, 2**31 - 1)),
            min_p=number("min_p", 0, 1),
            repetition_penalty=number("repetition_penalty", *REPETITION_PENALTY_RANGE),
            presence_penalty=number("presence_penalty", -2, 2),
            frequency_penalty=number("frequency_penalty", -2, 2),
            logit_bias=self._logit_bias(sent),
            logprobs=logprobs("logprobs"),
            prompt_logprobs=logprobs("prompt_logprobs"),
        )

    def _logit_bias(self, sent: pb.SamplingParams) -> tuple[tuple[int, float], ...]:
        _check_count("sampling.logit_bias", len(sent.logit_bias), MAX_LOGIT_BIASES)
        for token_id, bias in sent.logit_bias.items():
            field = f"sampling.logit_bias[{token_id}]"
            self._check_token(field, token_id)
            _check_range(field, bias, -100, 100)
        return tuple(sorted(sent.logit_bias.items()))

    def _prompt_lookup_tokens(self, request: pb.GenerateRequest) -> int:
        most = self._limits.max_prompt_lookup_tokens
        if most == 0 and request.prompt_lookup_tokens > 0:
            raise InvalidFieldError("prompt_lookup_tokens", "is off on this server: leave it unset")
        _check_range("prompt_lookup_tokens", request.prompt_lookup_tokens, 0, most)
        return request.prompt_lookup_tokens

    def _stop(self, stops: Sequence[str]) -> tuple[str, ...]:
        _check_count("stop", len(stops), self._limits.max_stop_strings)
        for index, stop in enumerate(stops):
            field = f"stop[{index}]"
            _check_not_empty(field, stop)
            _check_count(field, len(stop), MAX_STOP_STRING_CHARACTERS, "characters")
        return tuple(stops)

    def _stop_token_ids(self, token_ids: Sequence[int]) -> frozenset[int]:
        _check_count("stop_token_ids", len(token_ids), MAX_STOP_TOKEN_IDS)
        self._check_tokens("stop_token_ids", token_ids)
        return frozenset(token_ids)


def _adapters(
    request: pb.GenerateRequest | pb.ScoreRequest,
) -> tuple[WeightedSelector, ...]:
    """What answers, with the request's scale in the weights."""
    named = parse_selector(request.adapter)
    if request.adapters and not named.is_base:
        raise InvalidFieldError("adapters", "cannot go with adapter: name all of them here")
    _check_count("adapters", len(request.adapters), MAX_COMPONENTS)
    scale = 1.0
    if request.HasField("adapter_scale"):
        scale = request.adapter_scale
        _check_weight("adapter_scale", scale)
        if named.is_base and not request.adapters:
            raise InvalidFieldError("adapter_scale", "needs an adapter, which is not given")
    if not named.is_base:
        return (WeightedSelector(named, scale),)
    weighted: list[WeightedSelector] = []
    for index, sent in enumerate(request.adapters):
        field = f"adapters[{index}]"
        _check_not_empty(f"{field}.adapter", sent.adapter)
        selector = parse_selector(sent.adapter, field=f"{field}.adapter")
        weight = sent.weight if sent.HasField("weight") else 1.0
        _check_weight(f"{field}.weight", weight)
        weighted.append(WeightedSelector(selector, weight * scale))
    return tuple(weighted)


def _task(task: str, adapters: Sequence[WeightedSelector]) -> str:
    if task:
        return parse_name(task, field="task")
    return adapters[0].selector.name if len(adapters) == 1 else ""


def _check_weight(field: str, weight: float) -> None:
    _check_range(field, weight, -MAX_WEIGHT, MAX_WEIGHT)
    if weight == 0:
        raise InvalidFieldError(field, "is 0, which is the base's answer: leave the adapter out")


def _conversation(sent: pb.Conversation) -> Conversation:
    if not sent.messages:
        raise InvalidFieldError("conversation.messages", "is empty: give at least one message")
    for index, message in enumerate(sent.messages):
        if message.role not in ROLES:
            known = ", ".join(repr(role) for role in ROLES)
            raise InvalidFieldError(
                f"conversation.messages[{index}].role",
                f"is {message.role[:40]!r}, and must be one of {known}",
            )
    for index, document in enumerate(sent.documents):
        _check_not_empty(f"conversation.documents[{index}].text", document.text)
    return Conversation(
        tuple(Message(m.role, m.content) for m in sent.messages),
        tuple(Document(d.title, d.text) for d in sent.documents),
    )


def _grammar(request: pb.GenerateRequest) -> Grammar | None:
    if not request.HasField("constraint"):
        return None
    sent = request.constraint
    match sent.WhichOneof("kind"):
        case "json_schema":
            _check_grammar_text("constraint.json_schema", sent.json_schema)
            return JsonSchema(sent.json_schema)
        case "regex":
            _check_grammar_text("constraint.regex", sent.regex)
            return Regex(sent.regex)
        case "choice":
            values = tuple(sent.choice.values)
            _check_not_empty("constraint.choice.values", values)
            _check_count("constraint.choice.values", len(values), MAX_CHOICES)
            for index, value in enumerate(values):
                _check_not_empty(f"constraint.choice.values[{index}]", value)
            _check_grammar_text("constraint.choice.values", "".join(values))
            return Choice(values)
        case _:
            raise InvalidFieldError(
                "constraint", "is empty: give a json_schema, regex or choice, or leave it unset"
            )


def _check_grammar_text(field: str, text: str) -> None:
    _check_not_empty(field, text)
    _check_count(field, len(text), MAX_CONSTRAINT_CHARACTERS, "characters")


def _check_not_empty(field: str, value: str | Sequence[object]) -> None:
    if not value:
        raise InvalidFieldError(field, "is empty")


def _check_count(field: str, count: int, most: int, what: str = "entries") -> None:
    if count > most:
        raise InvalidFieldError(field, f"has {count} {what}, and at most {most} are allowed")


def _check_range(field: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Refuses NaN too, which compares with nothing."""
    if not (low < value <= high if above else low <= value <= high):
        start = f"greater than {low}" if above else f"at least {low}"
        raise InvalidFieldError(field, f"is {value}, and must be {start} and at most {high}")
