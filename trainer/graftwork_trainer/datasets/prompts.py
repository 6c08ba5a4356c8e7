"""A prompt as an example holds it: a conversation, a text, or token ids.

As JSON an object with the one key that says which:

    {"messages": [{"role": "user", "content": "Is it spam?"}]}
    {"messages": [...], "documents": [{"title": "", "text": "..."}]}
    {"text": "Is it spam? "}
    {"token_ids": [1, 4093, 28]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from graftwork.v1 import feedback_service_pb2, generation_service_pb2

from graftwork_trainer.datasets import fields
from graftwork_trainer.errors import InvalidExample


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A retrieved passage."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the base's chat template renders."""

    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages]
        }
        if self.documents:
            value["documents"] = [{"title": d.title, "text": d.text} for d in self.documents]
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """What the base sees as it is."""

    text: str

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids of the base's own tokenizer."""

    ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"token_ids": list(self.ids)}


Prompt: TypeAlias = Conversation | Text | TokenIds


def of_input(
    source: feedback_service_pb2.Generation | feedback_service_pb2.InlinePrompt,
) -> Prompt | None:
    """The prompt of a generation or of an inline prompt; None where neither was stored."""
    kind = source.WhichOneof("input")
    if kind == "conversation":
        return _conversation_of(source.conversation)
    if kind == "text":
        return Text(source.text)
    if kind == "token_ids" and isinstance(source, feedback_service_pb2.Generation):
        return TokenIds(tuple(source.token_ids.ids))
    return None


def parse(value: object, name: str) -> Prompt:
    """The prompt in a decoded JSON object; raises InvalidExample under `name`."""
    sent = fields.mapping(value, name)
    if sent.keys() == {"text"}:
        return Text(fields.text(sent, "text", name))
    if sent.keys() == {"token_ids"}:
        ids = fields.sequence(sent, "token_ids", name)
        for index, token in enumerate(ids):
            if type(token) is not int or token < 0:
                raise InvalidExample(f"{name}.token_ids[{index}]", "must be an integer >= 0")
        return TokenIds(tuple(ids))
    if "messages" in sent and sent.keys() <= {"messages", "documents"}:
        return _parse_conversation(sent, name)
    raise InvalidExample(name, "needs exactly one of messages (with documents), text, token_ids")


def _parse_conversation(sent: Mapping[str, Any], name: str) -> Conversation:
    messages = []
    for index, item in enumerate(fields.sequence(sent, "messages", name)):
        at = f"{name}.messages[{index}]"
        message = fields.mapping(item, at)
        fields.only(message, {"role", "content"}, at)
        messages.append(
            Message(fields.text(message, "role", at), fields.text(message, "content", at))
        )
    documents = []
    for index, item in enumerate(fields.sequence(sent, "documents", name, default=[])):
        at = f"{name}.documents[{index}]"
        document = fields.mapping(item, at)
        fields.only(document, {"title", "text"}, at)
        documents.append(
            Document(
                fields.text(document, "title", at, default=""), fields.text(document, "text", at)
            )
        )
    return Conversation(tuple(messages), tuple(documents))


def _conversation_of(sent: generation_service_pb2.Conversation) -> Conversation:
    return Conversation(
        tuple(Message(m.role, m.content) for m in sent.messages),
        tuple(Document(d.title, d.text) for d in sent.documents),
    )
