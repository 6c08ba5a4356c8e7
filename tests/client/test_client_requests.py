import json

import pytest
from graftwork import Conversation, Document, InvalidArgument, Message
from graftwork.requests import (
    SAMPLING_FIELDS,
    GenerateOptions,
    generate_request,
    score_request,
    tokenize_request,
    update_request,
)
from graftwork.types import Origin
from graftwork.v1 import generation_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st


def test_what_is_left_out_is_not_set() -> None:
    request = generate_request("hi", {"temperature": None, "seed": None})
    assert request == pb.GenerateRequest(text="hi")
    assert not request.HasField("sampling")


def test_zero_is_set() -> None:
    request = generate_request("hi", {"temperature": 0, "logprobs": 0, "store": False})
    assert request.sampling.HasField("temperature")
    assert request.HasField("logprobs")
    assert request.HasField("store")


def test_an_unknown_origin_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="origin: "):
        generate_request("hi", {"origin": Origin.UNKNOWN})


def test_every_option_reaches_its_field() -> None:
    request = generate_request(
        [1, 2],
        {
            "adapter": "poet@2",
            "temperature": 0.5,
            "top_p": 0.25,
            "top_k": 3,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "seed": 2**64 - 1,
            "logit_bias": {7: -100.0},
            "max_tokens": 5,
            "min_tokens": 1,
            "stop": ["\n", "END"],
            "stop_token_ids": [0],
            "ignore_eos": True,
            "n": 2,
            "logprobs": 4,
            "prompt_logprobs": 0,
            "choice": ["yes", "no"],
            "priority": -3,
            "episode_id": "episode",
            "store": True,
            "task": "verses",
            "origin": Origin.ROLLOUT,
            "prompt_lookup_tokens": 6,
        },
    )
    assert request == pb.GenerateRequest(
        adapter="poet@2",
        token_ids=pb.TokenIds(ids=[1, 2]),
        sampling=pb.SamplingParams(
            temperature=0.5,
            top_p=0.25,
            top_k=3,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=1,
            frequency_penalty=-1,
            seed=2**64 - 1,
            logit_bias={7: -100.0},
        ),
        max_tokens=5,
        min_tokens=1,
        stop=["\n", "END"],
        stop_token_ids=[0],
        ignore_eos=True,
        n=2,
        logprobs=4,
        prompt_logprobs=0,
        constraint=pb.Constraint(choice=pb.Constraint.Choices(values=["yes", "no"])),
        priority=-3,
        episode_id="episode",
        store=True,
        task="verses",
        origin=pb.ORIGIN_ROLLOUT,
        prompt_lookup_tokens=6,
    )


def test_options_and_the_wire_name_the_same_fields() -> None:
    wire = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}
    wire -= {"conversation", "text", "token_ids", "sampling", "constraint"}
    wire |= {field.name for field in pb.Constraint.DESCRIPTOR.fields}
    wire |= {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert wire == GenerateOptions.__optional_keys__
    assert set(SAMPLING_FIELDS) == {f.name for f in pb.SamplingParams.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": "hi"}],
        [Message("user", "hi")],
        Conversation([Message("user", "hi")]),
    ],
)
def test_conversations(turns) -> None:
    request = generate_request(turns, {})
    assert request.conversation == pb.Conversation(messages=[pb.Message(role="user", content="hi")])


def test_documents() -> None:
    prompt = Conversation([Message("user", "hi")], [Document("text", title="title")])
    request = generate_request(prompt, {})
    assert request.conversation.documents[0] == pb.Document(title="title", text="text")


def test_json_schema_as_mapping_or_text() -> None:
    schema = {"type": "object"}
    for given_schema in (schema, json.dumps(schema)):
        request = generate_request("hi", {"json_schema": given_schema})
        assert json.loads(request.constraint.json_schema) == schema


def test_one_stop_string() -> None:
    assert generate_request("hi", {"stop": "END"}).stop == ["END"]


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("hi", {"seed": -1}, "sampling.seed"),
        ("hi", {"top_k": 2**31}, "sampling.top_k"),
        ("hi", {"temperature": "hot"}, "sampling.temperature"),
        ("hi", {"logit_bias": {"a": 1}}, "sampling.logit_bias"),
        ("hi", {"max_tokens": 1.5}, "max_tokens"),
        ("hi", {"stop": 3}, "stop"),
        ("hi", {"adapter": 3}, "adapter"),
        ("hi", {"regex": "a", "choice": ["a"]}, "constraint"),
        ("hi", {"json_schema": {"enum": [{1, 2}]}}, "constraint.json_schema"),
        ("hi", {"choice": [1]}, "constraint.choice"),
        ("\ud800", {}, "text"),
        ([2**31], {}, "token_ids"),
        ([], {}, "prompt"),
        (3, {}, "prompt"),
        (["hi"], {}, "conversation.messages[0]"),
        ([{"role": "user"}], {}, "conversation.messages[0]"),
        ([{"role": "user", "content": 3}], {}, "conversation.messages[0].content"),
    ],
)
def test_what_the_wire_cannot_carry_is_named(prompt, options, field) -> None:
    with pytest.raises(InvalidArgument, match=r".+") as caught:
        generate_request(prompt, options)
    assert caught.value.field == field
    assert str(caught.value).startswith(field) or field == "constraint"
    assert isinstance(caught.value, ValueError)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        generate_request("hi", {"temprature": 1})  # type: ignore[typeddict-unknown-key]


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1))
def test_token_ids_are_kept(ids: list[int]) -> None:
    assert list(generate_request(ids, {}).token_ids.ids) == ids
    assert list(score_request(ids, [ids], "").completions[0].token_ids.ids) == ids


def test_score_takes_texts_and_token_ids() -> None:
    request = score_request("hi", ["yes", [1, 2], []], "poet")
    kinds = [completion.WhichOneof("completion") for completion in request.completions]
    assert kinds == ["text", "token_ids", "token_ids"]
    with pytest.raises(InvalidArgument, match="one string"):
        score_request("hi", "yes", "")


def test_adapters_and_their_weights() -> None:
    expected = [pb.WeightedAdapter(adapter="poet", weight=0.5), pb.WeightedAdapter(adapter="b@2")]
    expected[1].weight = -1
    adapters = {"poet": 0.5, "b@2": -1}
    request = generate_request("hi", {"adapters": adapters, "adapter_scale": 2})
    assert (list(request.adapters), request.adapter_scale) == (expected, 2)
    scored = score_request("hi", ["yes"], adapters=adapters, adapter_scale=2)
    assert (list(scored.adapters), scored.adapter_scale) == (expected, 2)
    assert not score_request("hi", ["yes"], "poet").HasField("adapter_scale")


@pytest.mark.parametrize(
    ("adapters", "field"),
    [
        ({"poet": "much"}, "adapters[0].weight"),
        ({7: 1}, "adapters[0].adapter"),
        (["a"], "adapters"),
    ],
)
def test_adapters_that_the_wire_cannot_carry(adapters, field) -> None:
    with pytest.raises(InvalidArgument) as caught:
        generate_request("hi", {"adapters": adapters})
    assert caught.value.field == field


def test_token_ids_are_not_tokenized() -> None:
    with pytest.raises(InvalidArgument, match="already"):
        tokenize_request([1, 2])


def test_update_masks_what_is_given() -> None:
    request = update_request(
        "poet", live_version=None, traffic_split={1: 90, 2: 10}, pinned=False, request_id=None
    )
    assert list(request.update_mask.paths) == ["traffic_split", "pinned"]
    assert [(s.version, s.percent) for s in request.adapter.traffic_split] == [(1, 90), (2, 10)]
    with pytest.raises(InvalidArgument, match="nothing to update"):
        update_request("poet", live_version=None, traffic_split=None, pinned=None, request_id=None)
