"""One thing to learn from, in one of five formats, and its line of JSON.

    sft             prompt, completion                       say this
    preference      prompt, chosen, rejected, margin         rather this than that
    unpaired        prompt, completion, label (bool)         this is good; this is bad
    reward          prompt, completion, reward               worth so much, or
                    prompt, chosen, rejected, margin, tie    worth more than that; as much as that
    classification  prompt, completion                       the class is this

docs/guides/datasets.md lists all fields. `extraction.py` makes examples of feedback.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from graftwork_trainer.datasets import fields, prompts
from graftwork_trainer.errors import InvalidExample

FORMATS = ("sft", "preference", "unpaired", "reward", "classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What every format has. Use a subclass."""

    format: ClassVar[str]

    id: str  # unique; the feedback's, with "-1", "-2" ... where it gave several examples
    task: str
    prompt: prompts.Prompt
    create_time: datetime  # of the feedback, UTC
    source: str = "human"  # "human", "model", "code" or "implicit"
    author: str = ""
    episode_id: str = ""
    group_id: str = ""  # of the generations that answer the same request
    generation_ids: tuple[str, ...] = ()
    feedback_ids: tuple[str, ...] = ()
    truncated: bool = False  # an answer was cut off: at max_tokens, or by a cancelled call

    def answer(self) -> dict[str, Any]:
        """The fields that this format has beside the common ones, as JSON values."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `parse` reads back; fields at their defaults are left out."""
        value: dict[str, Any] = {
            "format": self.format,
            "id": self.id,
            "task": self.task,
            "prompt": self.prompt.to_json(),
            **self.answer(),
            "create_time": self.create_time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "source": self.source,
        }
        for name in ("author", "episode_id", "group_id"):
            if text := getattr(self, name):
                value[name] = text
        for name in ("generation_ids", "feedback_ids"):
            if ids := getattr(self, name):
                value[name] = list(ids)
        if self.truncated:
            value["truncated"] = True
        return value

    def to_line(self) -> bytes:
        """Its line of a .jsonl file; equal examples have equal lines."""
        line = json.dumps(
            self.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        return line.encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class SftExample(Example):
    format = "sft"
    completion: str

    def answer(self) -> dict[str, Any]:
        return {"completion": self.completion}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample(Example):
    format = "preference"
    chosen: str
    rejected: str
    margin: float | None = None

    def answer(self) -> dict[str, Any]:
        value: dict[str, Any] = {"chosen": self.chosen, "rejected": self.rejected}
        return value if self.margin is None else {**value, "margin": self.margin}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedExample(Example):
    format = "unpaired"
    completion: str
    label: bool

    def answer(self) -> dict[str, Any]:
        return {"completion": self.completion, "label": self.label}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardExample(Example):
    """A completion with its reward."""

    format = "reward"
    completion: str
    reward: float

    def answer(self) -> dict[str, Any]:
        return {"completion": self.completion, "reward": self.reward}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonExample(Example):
    """Two completions of which the first is worth more, or as much where `tie` is set."""

    format = "reward"
    chosen: str
    rejected: str
    margin: float | None = None
    tie: bool = False

    def answer(self) -> dict[str, Any]:
        value: dict[str, Any] = {"chosen": self.chosen, "rejected": self.rejected}
        if self.margin is not None:
            value["margin"] = self.margin
        return {**value, "tie": True} if self.tie else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationExample(Example):
    format = "classification"
    completion: str  # the class

    def answer(self) -> dict[str, Any]:
        return {"completion": self.completion}


_COMMON = {
    "format", "id", "task", "prompt", "create_time", "source", "author", "episode_id",
    "group_id", "generation_ids", "feedback_ids", "truncated",
}  # fmt: skip
_SOURCES = ("human", "model", "code", "implicit")


def parse(value: object, name: str = "example") -> Example:
    """The example in a decoded JSON object. Raises InvalidExample that names the field, below
    `name`."""
    sent = fields.mapping(value, name)
    format_name = fields.text(sent, "format", name)
    source = fields.text(sent, "source", name, default="human")
    if source not in _SOURCES:
        raise InvalidExample(f"{name}.source", f"must be one of {', '.join(_SOURCES)}")
    identity = fields.text(sent, "id", name)
    if not identity:
        raise InvalidExample(f"{name}.id", "must not be empty")
    common: dict[str, Any] = {
        "id": identity,
        "task": fields.text(sent, "task", name, default=""),
        "prompt": prompts.parse(sent.get("prompt"), f"{name}.prompt"),
        "create_time": fields.time(sent, "create_time", name),
        "source": source,
        "author": fields.text(sent, "author", name, default=""),
        "episode_id": fields.text(sent, "episode_id", name, default=""),
        "group_id": fields.text(sent, "group_id", name, default=""),
        "generation_ids": fields.texts(sent, "generation_ids", name),
        "feedback_ids": fields.texts(sent, "feedback_ids", name),
        "truncated": fields.boolean(sent, "truncated", name, default=False),
    }
    example_type, answer = _answer(sent, format_name, name)
    fields.only(sent, _COMMON | answer.keys(), name)
    return example_type(**common, **answer)


def parse_line(line: bytes, name: str = "example") -> Example:
    """The example in a line of JSON; raises InvalidExample."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidExample(name, f"is not valid JSON: {error}") from None
    return parse(value, name)


def _answer(
    sent: Mapping[str, Any], format_name: str, name: str
) -> tuple[type[Example], dict[str, Any]]:
    """The class of a format, and its own fields."""
    if format_name == "preference" or (format_name == "reward" and "reward" not in sent):
        pair: dict[str, Any] = {
            "chosen": fields.text(sent, "chosen", name),
            "rejected": fields.text(sent, "rejected", name),
            "margin": _margin(sent, name),
        }
        if format_name == "preference":
            return PreferenceExample, pair
        return ComparisonExample, {**pair, "tie": fields.boolean(sent, "tie", name, default=False)}
    if format_name not in FORMATS:
        raise InvalidExample(f"{name}.format", f"must be one of {', '.join(FORMATS)}")
    answer: dict[str, Any] = {"completion": fields.text(sent, "completion", name)}
    if format_name == "unpaired":
        return UnpairedExample, {**answer, "label": fields.boolean(sent, "label", name)}
    if format_name == "reward":
        return RewardExample, {**answer, "reward": fields.number(sent, "reward", name)}
    return (SftExample if format_name == "sft" else ClassificationExample), answer


def _margin(sent: Mapping[str, Any], name: str) -> float | None:
    if sent.get("margin") is None:
        return None
    margin = fields.number(sent, "margin", name)
    if margin < 0:
        raise InvalidExample(f"{name}.margin", "must not be negative")
    return margin
