import pytest
from graftwork.status import InvalidFieldError
from graftwork_adapters.prompt_builder import (
    Conversation,
    Document,
    Message,
    PromptBuilder,
    Text,
    TokenIds,
)
from graftwork_adapters.prompt_file import Example, VersionPrompt
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from tests.server.sampling.tiny_tokenizers import byte_level

DOCUMENT_TEMPLATE = (
    "{% for d in documents or [] %}<doc>{{ d['title'] }}: {{ d['text'] }}</doc>{% endfor %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)
ALTERNATING_TEMPLATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
DOCUMENTS = (Document("Rivers", "The Nile is long."), Document("Lakes", "Baikal is deep."))


def user(content):
    return Message("user", content)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def builder(tokenizer):
    return PromptBuilder(tokenizer)


def test_conversation_goes_through_the_template(builder, tokenizer):
    conversation = Conversation((Message("system", "Be brief."), user("hello")))
    prompt = builder.build(conversation)
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert list(prompt.token_ids) == tokenizer.encode(prompt.text, add_special_tokens=False)
    assert prompt.token_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_text_takes_the_tokenizers_own_special_tokens():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    builder = PromptBuilder(tokenizer)
    assert list(builder.build(Text("the fox")).token_ids) == tokenizer.encode("the fox")
    assert builder.build(Text("the fox")).token_ids[0] == 0
    assert builder.build(Conversation((user("hi"),))).token_ids[0] != 0
    assert builder.completion("the fox", "completions[0]")[0] != 0


def test_padding_and_truncation_of_the_shared_tokenizer_do_not_count():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    builder = PromptBuilder(tokenizer)
    text = "the quick brown fox jumps"
    assert tokenizer.decode(builder.build(Text(text)).token_ids) == text


def test_token_ids_stay_as_they_are(builder):
    assert builder.build(TokenIds((5, 6))).token_ids == (5, 6)


def test_documents_go_to_a_template_that_shows_them():
    builder = PromptBuilder(byte_level(chat_template=DOCUMENT_TEMPLATE))
    prompt = builder.build(Conversation((user("Which?"),), DOCUMENTS))
    assert prompt.text == (
        "<doc>Rivers: The Nile is long.</doc><doc>Lakes: Baikal is deep.</doc>user: Which?\n"
    )


def test_documents_go_before_the_last_user_turn_of_another_template(builder):
    messages = (user("hello"), Message("assistant", "hi"), user("Which?"))
    prompt = builder.build(Conversation(messages, DOCUMENTS))
    assert "<|im_start|>user\nhello<|im_end|>" in prompt.text
    assert (
        "<|im_start|>user\nDocuments:\n\n[1] Rivers\nThe Nile is long.\n\n[2] Lakes\n"
        "Baikal is deep.\n\nWhich?<|im_end|>" in prompt.text
    )


def test_documents_without_a_user_turn_are_refused(builder):
    conversation = Conversation((Message("system", "x"),), DOCUMENTS)
    with pytest.raises(InvalidFieldError, match="role 'user'") as caught:
        builder.build(conversation)
    assert caught.value.field == "conversation.documents"


def test_what_the_template_refuses_is_refused():
    builder = PromptBuilder(byte_level(chat_template=ALTERNATING_TEMPLATE))
    with pytest.raises(InvalidFieldError, match="Roles must alternate") as caught:
        builder.build(Conversation((user("a"), user("b"))))
    assert caught.value.field == "conversation.messages"


def test_conversation_without_a_template_is_refused():
    builder = PromptBuilder(byte_level(chat_template=None))
    with pytest.raises(InvalidFieldError, match="no chat template"):
        builder.build(Conversation((user("a"),)))


def test_what_has_no_tokens_is_refused(builder):
    for source in (Text(""), TokenIds(())):
        with pytest.raises(InvalidFieldError, match="has no tokens") as caught:
            builder.build(source)
        assert caught.value.field == source.field
    with pytest.raises(InvalidFieldError, match=r"completions\[3\].text: has no tokens"):
        builder.completion("", "completions[3].text")


def test_lone_surrogates_are_refused(builder):
    with pytest.raises(InvalidFieldError, match="lone surrogate at character 2"):
        builder.build(Text("ab\ud800"))
    with pytest.raises(InvalidFieldError, match="conversation: is not valid Unicode"):
        builder.build(Conversation((user("\udfff"),)))


@settings(max_examples=50)
@given(text=st.text(min_size=1))
def test_any_text_comes_back(text, builder, tokenizer):
    prompt = builder.build(Text(text))
    assert tokenizer.decode(prompt.token_ids) == text


EXAMPLE_TURNS = [("user", "sun?"), ("assistant", "fun.")]
AROUND = VersionPrompt("Rhyme.", (Example("sun?", "fun."),), "Q: {input} A:")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", "hi")], [("system", "Rhyme."), *EXAMPLE_TURNS, ("user", "hi")]),
        (
            [("system", "Be brief."), ("user", "hi")],
            [("system", "Rhyme.\n\nBe brief."), *EXAMPLE_TURNS, ("user", "hi")],
        ),
    ],
)
def test_a_version_puts_its_prompt_before_the_turns(builder, messages, expected):
    def conversation(turns):
        return Conversation(tuple(Message(*turn) for turn in turns), DOCUMENTS)

    assert builder.build(conversation(messages), AROUND) == builder.build(conversation(expected))


def test_a_version_puts_a_text_into_its_template(builder):
    expected = builder.build(Text("Q: {a} A:"))
    assert builder.build(Text("{a}"), AROUND) == expected
    assert builder.build(Text("a"), VersionPrompt("Rhyme.", (), "")) == builder.build(Text("a"))


def test_a_version_leaves_token_ids_alone(builder):
    assert builder.build(TokenIds((5, 6)), AROUND).token_ids == (5, 6)


def test_examples_without_a_system_message(builder):
    around = VersionPrompt("", (Example("sun?", "fun."),), "")
    said = Conversation((user("hi"),))
    expected = Conversation(tuple(Message(*turn) for turn in [*EXAMPLE_TURNS, ("user", "hi")]))
    assert builder.build(said, around) == builder.build(expected)
