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
from graftwork_trainer.base.model import TrainingBase
from graftwork_trainer.recipes.tokenization import ExampleTokenizer, prompt_of

from tests.server.sampling.tiny_tokenizers import byte_fallback, byte_level

CHAT = Conversation((Message("system", "be kind"), Message("user", "hello world")))


@pytest.fixture(scope="module")
def base(written_base):
    return written_base().load()


@pytest.mark.parametrize(
    "prompt",
    [
        CHAT,
        Conversation((Message("user", "fox"),), (Document("a", "the dog"),)),
        Text("the quick <|im_end|> brown"),
        TokenIds((3, 4, 5)),
    ],
)
@pytest.mark.parametrize(
    "around", [None, VersionPrompt("Be brief.", (Example("hi", "ho"),), "Q: {input} A:")]
)
def test_prompts_are_the_servers(base, written_base, prompt, around):
    served = PromptBuilder(written_base().served.tokenizer).build(prompt, around)
    example = ExampleTokenizer(base, around).tokenize(prompt, "spam", "x")
    assert example.prompt == served.token_ids


def test_completions_end_as_the_base_ends_its_answers(base):
    end = base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert base.description.end_token_ids == (end,)
    tokenizer = ExampleTokenizer(base)
    for prompt in (CHAT, Text("the fox")):
        example = tokenizer.tokenize(prompt, "spam", "x")
        assert example.completion[-1] == end
        assert base.tokenizer.decode(example.completion[:-1]) == "spam"


def with_tokenizer(base, tokenizer, end_token_ids):
    description = type(base.description)(
        **{name: getattr(base.description, name) for name in base.description.__dataclass_fields__}
        | {"end_token_ids": end_token_ids}
    )
    return TrainingBase(base.model, tokenizer, description)


def test_a_template_may_end_turns_unlike_texts(base):
    """As Llama 3 has it: a turn ends with another token than a text."""
    tokenizer = byte_level()
    tokenizer.eos_token = "<|endoftext|>"
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|im_end|>")}
    examples = ExampleTokenizer(with_tokenizer(base, tokenizer, tuple(ids.values())))
    assert examples.tokenize(CHAT, "spam", "x").completion[-1] == ids["<|im_end|>"]
    assert examples.tokenize(Text("fox"), "spam", "x").completion[-1] == ids["<|endoftext|>"]


def test_a_base_without_end_tokens_learns_none(base):
    tokenizer = byte_fallback()
    tokenizer.eos_token = None
    example = ExampleTokenizer(with_tokenizer(base, tokenizer, ())).tokenize(Text("a"), "b", "x")
    assert tokenizer.decode(example.completion).strip() == "b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": "fox"}, Text("fox")),
        ({"token_ids": [1, 2]}, TokenIds((1, 2))),
        ({"messages": [{"role": "user", "content": "a"}]}, Conversation((Message("user", "a"),))),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "documents": [{"title": "t", "text": "d"}],
            },
            Conversation((Message("user", "a"),), (Document("t", "d"),)),
        ),
    ],
)
def test_prompts_are_read(value, expected):
    assert prompt_of({"prompt": value}, "x") == expected


@pytest.mark.parametrize("value", [None, "fox", {}, {"messages": [{"role": "user"}]}, {"text": 1}])
def test_damaged_prompts_are_named(value):
    with pytest.raises(InvalidFieldError, match=r"^x\.prompt: "):
        prompt_of({"prompt": value}, "x")
