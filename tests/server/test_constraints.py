import json
import random
import re

import numpy as np
import pytest
from graftwork.status import InvalidFieldError
from graftwork_server.constraints import ConstraintCompiler
from graftwork_server.request import Choice, ConstraintFailedError, JsonSchema, Regex

from tests.server.sampling.tiny_tokenizers import byte_fallback, byte_level

VOCAB_SIZE = 450  # more logits than tokens, as models pad them
EOS, OTHER_EOS = 2, 0
TOKENIZER = byte_level()
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler():
    return ConstraintCompiler(TOKENIZER, [EOS, OTHER_EOS], VOCAB_SIZE)


def allowed(constraint):
    words = np.zeros((VOCAB_SIZE + 31) // 32, dtype=np.int32)
    constraint.fill_bitmask(memoryview(words))
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=VOCAB_SIZE)
    return set(np.nonzero(bits)[0].tolist())


def walk(constraint, seed):
    """A random output that the constraint allows, and whether it ended by itself."""
    chance = random.Random(seed)
    token_ids = []
    for _ in range(300):
        token_id = chance.choice(sorted(allowed(constraint)))
        complete = constraint.accept(token_id)
        if token_id in (EOS, OTHER_EOS):
            assert complete
            return TOKENIZER.decode(token_ids)
        token_ids.append(token_id)
        if complete:
            return TOKENIZER.decode(token_ids)
    raise AssertionError("the output does not end")


def accepts(constraint, text):
    """Whether the whole text may be the output."""
    for token_id in TOKENIZER.encode(text, add_special_tokens=False):
        if token_id not in allowed(constraint):
            return False
        constraint.accept(token_id)
    return EOS in allowed(constraint)


@pytest.mark.parametrize("seed", range(10))
def test_json_output_matches_its_schema(compiler, seed):
    person = json.loads(walk(compiler.compile(JsonSchema(json.dumps(PERSON))), seed))
    assert set(person) == {"name", "age", "tags"}
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 150
    assert set(person["tags"]) <= {"a", "b"}


@pytest.mark.parametrize("seed", range(10))
def test_regex_output_matches(compiler, seed):
    pattern = r"[a-z]{2,4}(-[0-9]+)?"
    assert re.fullmatch(pattern, walk(compiler.compile(Regex(pattern)), seed))


CHOICES = ("yes", "yesterday", 'a"b', "back\\slash", "new\nline", "é☃😀", "(a|b)*", "/x/", "\x01")


@pytest.mark.parametrize("value", CHOICES)
def test_choice_allows_each_value_as_it_stands(compiler, value):
    assert accepts(compiler.compile(Choice(CHOICES)), value)


@pytest.mark.parametrize("text", ["ye", "no", "yes ", "ab", ""])
def test_choice_allows_nothing_else(compiler, text):
    assert not accepts(compiler.compile(Choice(CHOICES)), text)


def test_only_end_tokens_follow_a_complete_output(compiler):
    constraint = compiler.compile(Regex("abc"))
    token_ids = TOKENIZER.encode("abc", add_special_tokens=False)
    assert [constraint.accept(t) for t in token_ids] == [*[False] * (len(token_ids) - 1), True]
    assert allowed(constraint) == {EOS, OTHER_EOS}


def test_where_the_output_may_end_it_may_also_go_on(compiler):
    constraint = compiler.compile(Choice(("yes", "yesterday")))
    for token_id in TOKENIZER.encode("yes", add_special_tokens=False):
        assert not constraint.accept(token_id)
    assert allowed(constraint) > {EOS, OTHER_EOS}
    assert constraint.accept(EOS)


def test_padding_is_never_allowed(compiler):
    assert max(allowed(compiler.compile(Regex("(?s:.*)")))) < len(TOKENIZER)


def test_sequences_do_not_share_their_state(compiler):
    first, second = compiler.compile(Regex("ab")), compiler.compile(Regex("ab"))
    before = allowed(second)
    first.accept(TOKENIZER.convert_tokens_to_ids("a"))
    assert allowed(second) == before != allowed(first)


def test_only_the_latest_grammars_stay_compiled():
    compiler = ConstraintCompiler(TOKENIZER, [EOS], VOCAB_SIZE, max_cached=2)
    for pattern in ("a", "b", "a", "c"):
        compiler.compile(Regex(pattern))
    assert list(compiler._compiled) == [Regex("a"), Regex("c")]


def test_byte_fallback_tokenizer():
    tokenizer = byte_fallback()
    compiler = ConstraintCompiler(tokenizer, [2], len(tokenizer))
    constraint = compiler.compile(Choice(("a☃",)))
    token_ids = tokenizer.convert_tokens_to_ids(["a", "<0xE2>", "<0x98>", "<0x83>"])
    assert [constraint.accept(token_id) for token_id in token_ids][-1]


@pytest.mark.parametrize(
    ("grammar", "field", "message"),
    [
        (JsonSchema("{"), "json_schema", "not valid JSON: Expecting property name"),
        (JsonSchema("[1]"), "json_schema", r"must be a JSON object, and is '\[1\]'"),
        (JsonSchema('{"minimum": NaN}'), "json_schema", "NaN is no JSON number"),
        (JsonSchema('{"type": "objct"}'), "json_schema", "Invalid type: objct"),
        (JsonSchema('{"uniqueItems": true}'), "json_schema", "Unimplemented keys.*uniqueItems"),
        (JsonSchema('{"x-guidance": {"lenient": true}, "uniqueItems": true}'), "json_schema",
         "Unimplemented keys.*uniqueItems"),
        (JsonSchema('{"$ref": "http://example.com/x"}'), "json_schema", "does not fetch"),
        (JsonSchema('{"type": "string", "minLength": 5, "maxLength": 2}'), "json_schema",
         "Unsatisfiable"),
        (JsonSchema('{"items":' * 20_000 + "{}" + "}" * 20_000), "json_schema", "nested too deep"),
        (JsonSchema('{"items":' * 300 + "{}" + "}" * 300), "json_schema", "recursion limit"),
        (JsonSchema('{"const": "\\ud800"}'), "json_schema", "not JSON serializable.*ud800"),
        (JsonSchema('{"const": 123456789012345678901}'), "json_schema", "not JSON serializable"),
        # Text that closes the document it would be pasted into.
        (JsonSchema('{} }, {"lark_grammar": "start: /x/"'), "json_schema", "not valid JSON"),
        (Regex("a(?:b"), "regex", "unclosed group"),
        (Regex("a(?=b)"), "regex", "look-around"),
        (Regex(r"[^\s\S]"), "regex", "no output can match"),
        (JsonSchema(json.dumps({"properties": {f"p{i}": {"format": "date-time"} for i in
         range(9000)}})), "json_schema", "schema too large"),
    ],
)  # fmt: skip
def test_refused(compiler, grammar, field, message):
    with pytest.raises(InvalidFieldError, match=message) as caught:
        compiler.compile(grammar)
    assert caught.value.field == f"constraint.{field}"
    assert len(caught.value.message) < 300


def test_a_grammar_that_grows_too_costly_fails_its_sequence(compiler):
    constraint = compiler.compile(Regex("([a-z]{1,500}){1,500}"))
    with pytest.raises(ConstraintFailedError, match="too many expressions"):
        walk(constraint, 0)


def test_a_token_that_is_not_allowed_fails_the_sequence(compiler):
    constraint = compiler.compile(Regex("ab"))
    with pytest.raises(ConstraintFailedError):
        constraint.accept(TOKENIZER.convert_tokens_to_ids("b"))
