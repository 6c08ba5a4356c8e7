import contextlib
import dataclasses
import math
import subprocess
import sys

import pytest
from google.protobuf.message import DecodeError
from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as pb
from graftwork_adapters.prompt_builder import Conversation, Document, Message, Text, TokenIds
from graftwork_adapters.selector import Selector
from graftwork_server.calls import Limits, check_score_length, tokens_to_generate
from graftwork_server.random_numbers import choice_seed
from graftwork_server.request import Choice, JsonSchema, Regex, SamplingParams
from graftwork_server.validate import RequestValidator
from hypothesis import given, settings
from hypothesis import strategies as st

VOCAB_SIZE = 1000
LIMITS = Limits(
    max_context_tokens=100,
    max_new_tokens=64,
    default_max_tokens=32,
    max_n=4,
    max_logprobs=20,
    max_stop_strings=3,
    max_queued_requests=8,
    max_adapter_rank=64,
    max_device_adapters=8,
    max_completions=2,
    max_prompt_lookup_tokens=8,
)
VALIDATOR = RequestValidator(LIMITS, VOCAB_SIZE, draw_seed=lambda: 77)


def weighted(**weights):
    return [pb.WeightedAdapter(adapter=name, weight=weight) for name, weight in weights.items()]


def generate(**fields):
    return VALIDATOR.generate(pb.GenerateRequest(**{"text": "hello", **fields}))


def test_limits_are_the_fields_of_the_wire():
    assert [f.name for f in pb.Model.Limits.DESCRIPTOR.fields] == list(Limits.__slots__)


def test_defaults_are_those_of_the_proto():
    call = generate()
    assert call.sampling == SamplingParams(seed=77)
    assert call.prompt == Text("hello")
    assert (call.adapters, call.max_tokens, call.min_tokens, call.n) == ((), None, 0, 1)
    assert (call.stop, call.stop_token_ids, call.ignore_eos) == ((), frozenset(), False)
    assert (call.grammar, call.priority, call.episode_id, call.store) == (None, 0, "", True)
    assert call.prompt_lookup_tokens == 0


def test_all_fields_arrive():
    call = generate(
        adapter="a@3",
        sampling=pb.SamplingParams(
            temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, repetition_penalty=1.5,
            presence_penalty=-2, frequency_penalty=2, seed=0, logit_bias={9: -100, 3: 1.5},
        ),
        max_tokens=64, min_tokens=2, stop=["a", "bc"], stop_token_ids=[5, 6], ignore_eos=True,
        n=4, logprobs=0, prompt_logprobs=20, priority=-100, episode_id="e", store=False,
        prompt_lookup_tokens=8,
    )  # fmt: skip
    assert call.sampling == SamplingParams(
        seed=0, temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, repetition_penalty=1.5,
        presence_penalty=-2, frequency_penalty=2, logit_bias=((3, 1.5), (9, -100.0)), logprobs=0,
        prompt_logprobs=20,
    )  # fmt: skip
    assert (call.max_tokens, call.min_tokens, call.n) == (64, 2, 4)
    assert call.adapters == ((Selector("a", 3), 1.0),)
    assert (call.stop, call.priority, call.episode_id) == (("a", "bc"), -100, "e")
    assert call.store is False
    assert call.prompt_lookup_tokens == 8
    assert call.all_stop_token_ids([1]) == {5, 6}


def test_adapters_carry_their_weights_and_the_scale():
    sent = [pb.WeightedAdapter(adapter="a@2", weight=-0.5), pb.WeightedAdapter(adapter="b")]
    call = generate(adapters=sent, adapter_scale=3)
    assert call.adapters == ((Selector("a", 2), -1.5), (Selector("b"), 3.0))
    assert generate(adapter="a", adapter_scale=2).adapters == ((Selector("a"), 2.0),)


def test_end_tokens_stop_unless_ignored():
    assert generate(stop_token_ids=[5]).all_stop_token_ids([1, 2]) == {1, 2, 5}


def test_choices_draw_apart_and_score_the_prompt_once():
    call = generate(n=2, prompt_logprobs=1, sampling=pb.SamplingParams(seed=9))
    assert call.sampling_of_choice(0) == call.sampling
    assert call.sampling_of_choice(1).seed == choice_seed(9, 1)
    assert call.sampling_of_choice(1).prompt_logprobs is None


def test_inputs():
    conversation = pb.Conversation(
        messages=[pb.Message(role="user", content="")],
        documents=[pb.Document(title="t", text="x")],
    )
    expected = Conversation((Message("user", ""),), (Document("t", "x"),))
    assert generate(conversation=conversation, text=None).prompt == expected
    assert generate(token_ids=pb.TokenIds(ids=[0, 999])).prompt == TokenIds((0, 999))
    assert VALIDATOR.tokenize(pb.TokenizeRequest(text="a")) == Text("a")


@pytest.mark.parametrize(
    ("constraint", "grammar"),
    [
        (pb.Constraint(json_schema="{}"), JsonSchema("{}")),
        (pb.Constraint(regex="a*"), Regex("a*")),
        (pb.Constraint(choice=pb.Constraint.Choices(values=["a", "b"])), Choice(("a", "b"))),
    ],
)
def test_constraints(constraint, grammar):
    assert generate(constraint=constraint).grammar == grammar


def choices(values):
    return pb.Constraint(choice=pb.Constraint.Choices(values=values))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"text": None}, "input", "is missing"),
        ({"text": ""}, "text", "is empty"),
        ({"conversation": pb.Conversation()}, "conversation.messages", "is empty"),
        (
            {"conversation": {"messages": [{"role": "user"}, {"role": "bot"}]}},
            "conversation.messages[1].role",
            "is 'bot', and must be one of 'system', 'user', 'assistant'",
        ),
        (
            {"conversation": {"messages": [{"role": "user"}], "documents": [{"title": "t"}]}},
            "conversation.documents[0].text",
            "is empty",
        ),
        ({"token_ids": pb.TokenIds()}, "token_ids", "is empty"),
        ({"token_ids": {"ids": [1, 1000]}}, "token_ids.ids[1]", "token 1000 .* 0 to 999"),
        ({"token_ids": {"ids": [-1]}}, "token_ids.ids[0]", "token -1"),
        ({"sampling": {"temperature": math.nan}}, "sampling.temperature", "is nan"),
        ({"sampling": {"temperature": -0.5}}, "sampling.temperature", "is -0.5.*at least 0 and"),
        ({"sampling": {"temperature": math.inf}}, "sampling.temperature", "is inf.*at most 100"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p", "is 0.0.*greater than 0 and at most 1"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p", "is 1.5"),
        ({"sampling": {"top_p": math.nan}}, "sampling.top_p", "is nan"),
        ({"sampling": {"top_k": -1}}, "sampling.top_k", "is -1"),
        ({"sampling": {"min_p": 2}}, "sampling.min_p", "is 2"),
        ({"sampling": {"repetition_penalty": 0}}, "sampling.repetition_penalty", "is 0"),
        ({"sampling": {"presence_penalty": 2.5}}, "sampling.presence_penalty", "is 2.5"),
        ({"sampling": {"frequency_penalty": -3}}, "sampling.frequency_penalty", "is -3"),
        ({"sampling": {"logit_bias": {1000: 1}}}, "sampling.logit_bias[1000]", "vocabulary"),
        ({"sampling": {"logit_bias": {4: 101}}}, "sampling.logit_bias[4]", "is 101"),
        ({"sampling": {"logit_bias": {4: math.nan}}}, "sampling.logit_bias[4]", "is nan"),
        (
            {"sampling": pb.SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0))},
            "sampling.logit_bias",
            "has 1025 entries, and at most 1024",
        ),
        ({"max_tokens": 0}, "max_tokens", "is 0.*at least 1"),
        ({"max_tokens": -5}, "max_tokens", "is -5"),
        ({"max_tokens": 65}, "max_tokens", "is 65.*at most 64"),
        ({"min_tokens": -1}, "min_tokens", "is -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "is 9, more than max_tokens, 8"),
        ({"stop": ["a", ""]}, "stop[1]", "is empty"),
        ({"stop": ["a"] * 4}, "stop", "has 4 entries, and at most 3"),
        ({"stop": ["a" * 257]}, "stop[0]", "257 characters"),
        ({"stop_token_ids": [1, 2000]}, "stop_token_ids[1]", "token 2000"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids", "129"),
        ({"n": 0}, "n", "is 0"),
        ({"n": 5}, "n", "is 5, .*at most 4"),
        ({"logprobs": -1}, "logprobs", "is -1"),
        ({"prompt_lookup_tokens": 9}, "prompt_lookup_tokens", "is 9, .* at most 8"),
        ({"prompt_lookup_tokens": -1}, "prompt_lookup_tokens", "is -1"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "is 21"),
        ({"priority": 101}, "priority", "is 101"),
        ({"episode_id": "x" * 129}, "episode_id", "129 characters"),
        ({"constraint": pb.Constraint()}, "constraint", "is empty"),
        ({"constraint": pb.Constraint(regex="")}, "constraint.regex", "is empty"),
        ({"constraint": pb.Constraint(json_schema=" " * 65_537)}, "constraint.json_schema",
         "65537 characters"),
        ({"constraint": choices([])}, "constraint.choice.values", "is empty"),
        ({"constraint": choices(["a", ""])}, "constraint.choice.values[1]", "is empty"),
        ({"constraint": choices(["a"] * 1025)}, "constraint.choice.values", "1025"),
        ({"constraint": choices(["a" * 40_000] * 2)}, "constraint.choice.values", "80000"),
        ({"adapter": "A"}, "adapter", "lower case"),
        ({"adapter": "a", "adapters": weighted(b=1)}, "adapters", "cannot go with adapter"),
        ({"adapter_scale": 0.5}, "adapter_scale", "needs an adapter"),
        ({"adapter": "a", "adapter_scale": 0}, "adapter_scale", "is 0"),
        ({"adapter": "a", "adapter_scale": float("nan")}, "adapter_scale", "nan"),
        ({"adapters": weighted(b=101)}, "adapters[0].weight", "at most 100"),
        ({"adapters": weighted(a=1, b=0)}, "adapters[1].weight", "is 0"),
        ({"adapters": [pb.WeightedAdapter(weight=1)]}, "adapters[0].adapter", "empty"),
        ({"adapters": [pb.WeightedAdapter(adapter="a@0")]}, "adapters[0].adapter", "version"),
        ({"adapters": [pb.WeightedAdapter(adapter="a")] * 17}, "adapters", "17"),
        ({"constraint": pb.Constraint(regex="a"), "ignore_eos": True}, "ignore_eos", "constraint"),
    ],
)  # fmt: skip
def test_refused(fields, field, message):
    with pytest.raises(InvalidFieldError, match=message) as caught:
        generate(**fields)
    assert caught.value.field == field


def test_score():
    call = VALIDATOR.score(
        pb.ScoreRequest(
            adapter="a",
            text="p",
            completions=[{"text": "yes"}, {"token_ids": {"ids": [4, 5]}}],
        )
    )
    assert call.adapters == ((Selector("a"), 1.0),)
    assert (call.prompt, call.completions) == (Text("p"), ("yes", (4, 5)))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"completions": [{"text": "a"}] * 3}, "completions"),
        ({"completions": [{}]}, "completions[0]"),
        ({"completions": [{"text": ""}]}, "completions[0].text"),
        ({"completions": [{"token_ids": {}}]}, "completions[0].token_ids"),
        ({"completions": [{"token_ids": {"ids": [1000]}}]}, "completions[0].token_ids.ids[0]"),
        ({"completions": [{"text": "a"}], "text": ""}, "text"),
    ],
)
def test_score_refused(fields, field):
    with pytest.raises(InvalidFieldError) as caught:
        VALIDATOR.score(pb.ScoreRequest(**{"text": "p", **fields}))
    assert caught.value.field == field


def test_score_without_completions_is_for_classifiers():
    assert VALIDATOR.score(pb.ScoreRequest(text="p")).completions == ()


def test_prompt_lookup_may_be_off():
    limits = dataclasses.replace(LIMITS, max_prompt_lookup_tokens=0)
    validator = RequestValidator(limits, VOCAB_SIZE, draw_seed=lambda: 77)
    request = pb.GenerateRequest(text="hello", prompt_lookup_tokens=0)
    assert validator.generate(request).prompt_lookup_tokens == 0
    request.prompt_lookup_tokens = 1
    with pytest.raises(InvalidFieldError, match="prompt_lookup_tokens: is off on this server"):
        validator.generate(request)


def test_tokenize_refused():
    with pytest.raises(InvalidFieldError, match="conversation or text"):
        VALIDATOR.tokenize(pb.TokenizeRequest())


@pytest.mark.parametrize(
    ("fields", "num_prompt", "num_virtual", "expected"),
    [
        ({}, 10, 0, 32),
        ({}, 90, 0, 10),
        ({}, 90, 5, 5),
        ({"max_tokens": 50}, 50, 0, 50),
        ({"min_tokens": 40}, 10, 0, 40),
    ],
)
def test_tokens_to_generate(fields, num_prompt, num_virtual, expected):
    assert tokens_to_generate(generate(**fields), num_prompt, num_virtual, LIMITS) == expected


@pytest.mark.parametrize(
    ("fields", "num_prompt", "num_virtual", "message"),
    [
        ({}, 100, 0, "text: has 100 tokens, and the context of 100 .* shorten the prompt by 1 "),
        ({}, 99, 8, "text: has 99 tokens and 8 virtual ones .* by 8 tokens"),
        ({"max_tokens": 51}, 50, 0, "max_tokens: is 51, .* leaves room for 50 in the context of"),
        ({"min_tokens": 20}, 90, 0, "min_tokens: is 20, .* leaves room for 10"),
    ],
)
def test_no_room(fields, num_prompt, num_virtual, message):
    with pytest.raises(InvalidFieldError, match=message):
        tokens_to_generate(generate(**fields), num_prompt, num_virtual, LIMITS)


def test_score_length():
    call = VALIDATOR.score(pb.ScoreRequest(text="p", completions=[{"text": "a"}, {"text": "b"}]))
    check_score_length(call, 90, [10, 3], 0, LIMITS)
    with pytest.raises(InvalidFieldError, match=r"completions\[1\]: has 11, .* room for 10"):
        check_score_length(call, 90, [10, 11], 0, LIMITS)
    with pytest.raises(InvalidFieldError, match="text: has 100 tokens"):
        check_score_length(call, 100, [1, 1], 0, LIMITS)


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_valid(data):
    """What parses off the wire is either a valid call or an error that names a field."""
    request = pb.GenerateRequest()
    with contextlib.suppress(DecodeError, InvalidFieldError):
        request.ParseFromString(data)
        assert 0 <= VALIDATOR.generate(request).sampling.temperature <= 100


def test_no_torch_is_loaded():
    modules = "calls, detokenizer, ids, random_numbers, request, stop_strings, validate"
    script = (
        f"from graftwork_server import {modules}; from graftwork_adapters import prompt_builder; "
        "import sys; sys.exit('torch' in sys.modules)"
    )
    path = ":".join(sys.path)
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, check=True)
