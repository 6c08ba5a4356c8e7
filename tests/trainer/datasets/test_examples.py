import dataclasses
import json
import re
from datetime import UTC
from pathlib import Path

import pytest
from graftwork_trainer.datasets import examples, prompts
from graftwork_trainer.errors import InvalidExample
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PROMPT = st.one_of(
    st.builds(prompts.Text, TEXT),
    st.builds(prompts.TokenIds, st.lists(st.integers(0, 2**31), max_size=5).map(tuple)),
    st.builds(
        prompts.Conversation,
        st.lists(st.builds(prompts.Message, TEXT, TEXT), max_size=3).map(tuple),
        st.lists(st.builds(prompts.Document, TEXT, TEXT), max_size=2).map(tuple),
    ),
)
COMMON = {
    "id": TEXT.filter(bool),
    "task": TEXT,
    "prompt": PROMPT,
    "create_time": st.datetimes(timezones=st.just(UTC)),
    "source": st.sampled_from(["human", "model", "code", "implicit"]),
    "author": TEXT,
    "generation_ids": st.lists(TEXT, max_size=2).map(tuple),
    "truncated": st.booleans(),
}
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
MARGIN = st.none() | NUMBER.map(abs)
EXAMPLE = st.one_of(
    st.builds(examples.SftExample, completion=TEXT, **COMMON),
    st.builds(examples.PreferenceExample, chosen=TEXT, rejected=TEXT, margin=MARGIN, **COMMON),
    st.builds(examples.UnpairedExample, completion=TEXT, label=st.booleans(), **COMMON),
    st.builds(examples.RewardExample, completion=TEXT, reward=NUMBER, **COMMON),
    st.builds(
        examples.ComparisonExample,
        chosen=TEXT,
        rejected=TEXT,
        margin=MARGIN,
        tie=st.booleans(),
        **COMMON,
    ),
    st.builds(examples.ClassificationExample, completion=TEXT, **COMMON),
)
VALID = {
    "format": "sft",
    "id": "1",
    "prompt": {"text": "2 + 2"},
    "completion": "4",
    "create_time": "2026-01-01T00:00:00Z",
}


@given(EXAMPLE)
def test_a_line_reads_back_as_the_example_it_was_made_of(example):
    line = example.to_line()
    assert line.count(b"\n") == 1
    assert examples.parse_line(line) == example


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "dpo"}, "format"),
        ({"id": ""}, "id"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"text": "a", "token_ids": [1]}}, "prompt"),
        ({"prompt": {"token_ids": [1, -1]}}, "prompt.token_ids[1]"),
        ({"prompt": {"messages": [{"role": "user"}]}}, "prompt.messages[0].content"),
        ({"prompt": {"messages": [], "documents": [{"body": ""}]}}, "prompt.documents[0].body"),
        ({"completion": 4}, "completion"),
        ({"completion": "\ud800"}, "completion"),
        ({"create_time": "2026-01-01T00:00:00"}, "create_time"),
        ({"create_time": "yesterday"}, "create_time"),
        ({"create_time": "0001-01-01T00:00:00+14:00"}, "create_time"),
        ({"source": "cat"}, "source"),
        ({"generation_ids": [1]}, "generation_ids[0]"),
        ({"complete": "4"}, "complete"),
        ({"format": "reward"}, "chosen"),
        ({"format": "reward", "reward": float("nan")}, "reward"),
        ({"format": "reward", "reward": 10**400}, "reward"),
        ({"format": "reward", "reward": True}, "reward"),
        ({"format": "unpaired"}, "label"),
        ({"format": "preference", "chosen": "a", "rejected": "b", "margin": -1}, "margin"),
    ],
)
def test_a_wrong_field_is_named(change, field):
    with pytest.raises(InvalidExample) as caught:
        examples.parse(VALID | change, "line 3")
    assert caught.value.field == f"line 3.{field}"


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(line):
    with pytest.raises(InvalidExample):
        examples.parse_line(line)


def test_defaults_are_left_out_of_the_line():
    assert json.loads(examples.parse(VALID).to_line()).keys() == {*VALID, "source", "task"}


def test_the_example_in_the_guide_is_one():
    guide = Path(__file__).parents[3] / "docs" / "guides" / "datasets.md"
    (sample,) = re.findall(r"```json\n(.*?)```", guide.read_text(), re.DOTALL)
    assert isinstance(examples.parse_line(sample.encode()), examples.SftExample)


def test_the_guide_names_every_field():
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "datasets.md").read_text()
    table = guide.split("| field | |")[1].split("\n\n")[0]
    named = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))
    )
    kinds = [examples.SftExample, examples.UnpairedExample, examples.RewardExample]
    kinds += [examples.PreferenceExample, examples.ComparisonExample]
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert named == fields | {"format"}
