"""graftwork_prompt.json: the prompt that a version puts around its requests.

    {"system": "Answer in rhyme.",
     "examples": [{"user": "What is rain?", "assistant": "The sky's own ..."}],
     "template": "Question: {input}\\nAnswer:"}

All fields are optional, one must be there, and there are no others. In a conversation the system
message comes first (before the request's own, with a blank line between them), then the examples,
then the request's turns. A text is put into the template. Token ids stay as they are.
"""

from dataclasses import dataclass
from typing import Any

from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.folder import PROMPT_FILE
from graftwork_adapters.strict_json import parse_object

INPUT = "{input}"
_FIELDS = {"system", "examples", "template"}


@dataclass(frozen=True, slots=True)
class Example:
    """A turn of the user and its answer."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class VersionPrompt:
    """What is put around a request; "" and () where there is nothing."""

    system: str
    examples: tuple[Example, ...]
    template: str  # holds INPUT once, unless it is ""


def parse_prompt(data: bytes) -> VersionPrompt:
    """Raises InvalidArtifact."""
    fields = parse_object(data, source=PROMPT_FILE)
    if unknown := sorted(fields.keys() - _FIELDS):
        raise InvalidArtifact(
            f"{PROMPT_FILE}: {unknown[0][:80]!r} is no field of a prompt; these are "
            f"{', '.join(sorted(_FIELDS))}"
        )
    if not fields:
        raise InvalidArtifact(f"{PROMPT_FILE}: needs one of {', '.join(sorted(_FIELDS))}")
    template = _text(fields["template"], "template") if "template" in fields else ""
    if template and template.count(INPUT) != 1:
        raise InvalidArtifact(
            f"{PROMPT_FILE}: template must hold {INPUT} once, not {template.count(INPUT)} times"
        )
    system = _text(fields["system"], "system") if "system" in fields else ""
    return VersionPrompt(system, _examples(fields), template)


def _examples(fields: dict[str, Any]) -> tuple[Example, ...]:
    if "examples" not in fields:
        return ()
    sent = fields["examples"]
    if not isinstance(sent, list) or not sent:
        raise InvalidArtifact(f"{PROMPT_FILE}: examples must be a list that is not empty")
    examples: list[Example] = []
    for index, example in enumerate(sent):
        name = f"examples[{index}]"
        if not isinstance(example, dict) or example.keys() != {"user", "assistant"}:
            raise InvalidArtifact(f"{PROMPT_FILE}: {name} needs exactly user and assistant")
        user = _text(example["user"], f"{name}.user")
        examples.append(Example(user, _text(example["assistant"], f"{name}.assistant")))
    return tuple(examples)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArtifact(f"{PROMPT_FILE}: {name} must be a text that is not empty")
    return value
