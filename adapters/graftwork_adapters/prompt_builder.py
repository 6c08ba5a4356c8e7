"""Turns what a request gives as input into the tokens of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import jinja2
from graftwork.status import InvalidFieldError
from tokenizers import Tokenizer

from graftwork_adapters.prompt_file import INPUT, VersionPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Sent through a chat template to see whether it shows documents.
_PROBE = "9f1c2b7e-graftwork-probe"


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """At least one message, to be rendered with the chat template."""

    field: ClassVar[str] = "conversation"
    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Text to be tokenized as it is, not empty."""

    field: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """At least one token of the model's vocabulary."""

    field: ClassVar[str] = "token_ids"
    ids: tuple[int, ...]


PromptInput = Conversation | Text | TokenIds


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's tokens, and the text that was tokenized ("" where ids were given)."""

    token_ids: tuple[int, ...]
    text: str


class PromptBuilder:
    """Renders and tokenizes. Safe to call from any thread; long inputs take seconds, so call it
    off the event loop."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        # A copy of its own: transformers sets padding and truncation on the shared one at each
        # call.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._has_template = bool(tokenizer.chat_template)
        self._template_takes_documents = self._has_template and self._probe_documents()

    def build(self, source: PromptInput, around: VersionPrompt | None = None) -> Prompt:
        """The prompt's tokens, at least one; `around` is what the version that serves puts around
        it.

        Text is tokenized as the tokenizer's `encode` does by default: with the special tokens that
        the model expects around a text, such as Llama's begin-of-text. A conversation brings its
        special tokens in its template. Either may name special tokens in its text.

        Raises InvalidFieldError: no chat template, a conversation that the template refuses, an
        input without any token, text that is not valid Unicode.
        """
        if around is not None:
            source = _put_around(source, around)
        match source:
            case TokenIds(ids):
                prompt = Prompt(ids, "")
            case Text(text):
                ids = self._encode(text, "text", add_special_tokens=True)
                prompt = Prompt(ids, text)
            case Conversation():
                text = self._render(source)
                ids = self._encode(text, "conversation", add_special_tokens=False)
                prompt = Prompt(ids, text)
        if not prompt.token_ids:
            raise InvalidFieldError(source.field, "has no tokens: give at least one")
        return prompt

    def completion(self, text: str, field: str) -> tuple[int, ...]:
        """The tokens of a text that goes on after a prompt: no special tokens are added.

        Raises InvalidFieldError naming `field` where there are none.
        """
        ids = self._encode(text, field, add_special_tokens=False)
        if not ids:
            raise InvalidFieldError(field, "has no tokens: give at least one")
        return ids

    def _encode(self, text: str, field: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidFieldError(
                field, f"is not valid Unicode: a lone surrogate at character {error.start}"
            ) from None
        return tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def _render(self, conversation: Conversation) -> str:
        if not self._has_template:
            raise InvalidFieldError(
                "conversation", "the base model has no chat template: send text or token_ids"
            )
        documents = conversation.documents
        messages = conversation.messages
        if documents and not self._template_takes_documents:
            messages, documents = _with_documents(messages, documents), ()
        try:
            return self._apply_template(messages, documents)
        except jinja2.TemplateError as error:
            raise InvalidFieldError(
                "conversation.messages", f"the base model's chat template refuses them: {error}"
            ) from error

    def _apply_template(self, messages: Sequence[Message], documents: Sequence[Document]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            documents=[{"title": d.title, "text": d.text} for d in documents] or None,
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(rendered)

    def _probe_documents(self) -> bool:
        """Whether the template shows the documents that it is given."""
        try:
            rendered = self._apply_template([Message("user", "-")], [Document("-", _PROBE)])
        except jinja2.TemplateError:
            return False
        return _PROBE in rendered


def _put_around(source: PromptInput, prompt: VersionPrompt) -> PromptInput:
    """The input with a version's system message, examples or template."""
    match source:
        case TokenIds():
            return source
        case Text(text):
            return Text(prompt.template.replace(INPUT, text)) if prompt.template else source
        case Conversation(messages):
            has_system = messages[0].role == "system"
            own = [messages[0].content] if has_system else []
            system = "\n\n".join([prompt.system, *own] if prompt.system else own)
            before = [Message("system", system)] if system else []
            for example in prompt.examples:
                before += [Message("user", example.user), Message("assistant", example.assistant)]
            turns = messages[1:] if has_system else messages
            return Conversation((*before, *turns), source.documents)


def _with_documents(
    messages: tuple[Message, ...], documents: tuple[Document, ...]
) -> tuple[Message, ...]:
    """Puts documents at the head of the last user turn, numbered, with a blank line after each:

    Documents:

    [1] The first title
    The first text.

    [2] ...

    What the user said.
    """
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role != "user":
            continue
        passages = [
            f"[{number}] {document.title}\n{document.text}"
            for number, document in enumerate(documents, start=1)
        ]
        content = "\n\n".join(["Documents:", *passages, message.content])
        return (*messages[:index], Message("user", content), *messages[index + 1 :])
    raise InvalidFieldError("conversation.documents", "need a message of the role 'user'")
