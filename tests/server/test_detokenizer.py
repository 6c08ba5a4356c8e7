import pytest
from graftwork_server.detokenizer import Detokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.sampling.tiny_tokenizers import byte_fallback, byte_level

TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
# Token of each single byte. In ByteLevel's alphabet printable bytes stand for themselves, and the
# others follow from U+0100 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TOKENS = {
    "byte_level": {
        **{b: TOKENIZERS["byte_level"].convert_tokens_to_ids(chr(b)) for b in _PRINTABLE},
        **{
            b: TOKENIZERS["byte_level"].convert_tokens_to_ids(chr(256 + i))
            for i, b in enumerate(_OTHERS)
        },
    },
    "byte_fallback": {
        b: TOKENIZERS["byte_fallback"].convert_tokens_to_ids(f"<0x{b:02X}>") for b in range(256)
    },
}


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]


def parts_of(tokenizer, chunks):
    stream = Detokenizer(tokenizer).start()
    return [*(stream.push(chunk) for chunk in chunks), stream.finish()]


def whole(tokenizer, token_ids):
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=300)
@given(
    name=st.sampled_from(list(TOKENIZERS)),
    # Ids past the tokenizer's last are those that pad a model's vocabulary.
    chunks=st.lists(st.lists(st.integers(0, 450), max_size=4), max_size=40),
)
@example(name="byte_fallback", chunks=[[259], [259], [260]])
def test_parts_add_up_to_the_whole(name, chunks):
    tokenizer = TOKENIZERS[name]
    token_ids = [token_id for chunk in chunks for token_id in chunk]
    assert "".join(parts_of(tokenizer, chunks)) == whole(tokenizer, token_ids)


@settings(max_examples=200)
@given(name=st.sampled_from(list(TOKENIZERS)), text=st.text(max_size=60))
def test_text_comes_back_character_by_character(name, text):
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    parts = parts_of(tokenizer, [[token_id] for token_id in token_ids])
    assert "".join(parts) == whole(tokenizer, token_ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0x80, 0xBF, 0xE2, 0xF0, 0xC3, 0x41]), max_size=120))
def test_broken_bytes(data):
    for name, tokenizer in TOKENIZERS.items():
        token_ids = [BYTE_TOKENS[name][byte] for byte in data]
        parts = parts_of(tokenizer, [[token_id] for token_id in token_ids])
        assert "".join(parts) == whole(tokenizer, token_ids)


def test_a_split_character_waits_for_its_end():
    tokenizer = TOKENIZERS["byte_level"]
    chunks = [[BYTE_TOKENS["byte_level"][byte]] for byte in "a€b".encode()]
    assert parts_of(tokenizer, chunks) == ["a", "", "", "€", "b", ""]


def test_the_window_stays_short_on_broken_bytes():
    tokenizer = TOKENIZERS["byte_level"]
    stream = Detokenizer(tokenizer).start()
    token_id = BYTE_TOKENS["byte_level"][0x80]
    for _ in range(500):
        stream.push([token_id])
    assert len(stream._window) <= 20


def test_special_tokens_are_left_out():
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = [1, *tokenizer.encode("the fox"), 2]
    assert "".join(parts_of(tokenizer, [token_ids])) == "the fox"


def test_an_incomplete_end_is_shown_at_the_end():
    tokenizer = TOKENIZERS["byte_level"]
    assert parts_of(tokenizer, [[BYTE_TOKENS["byte_level"][0xE2]]]) == ["", "\ufffd"]


def test_token_text():
    detokenizer = Detokenizer(TOKENIZERS["byte_level"])
    assert detokenizer.token_text(2) == "<|im_end|>"
    assert detokenizer.token_text(BYTE_TOKENS["byte_level"][0xE2]) == "\ufffd"
    assert detokenizer.token_text(9999) == ""
    fallback = TOKENIZERS["byte_fallback"]
    the = fallback.convert_tokens_to_ids("▁the")
    assert Detokenizer(fallback).token_text(the) == " the"
