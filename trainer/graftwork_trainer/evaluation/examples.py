"""The examples that contenders are asked: a snapshot's lines, as prompts with their right answers.

Of the five formats those with one right answer are asked: `sft` and `classification`; of
`preference` the chosen answer is taken for right.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork import Conversation, Document, Message
from graftwork.types import Prompt

from graftwork_trainer.evaluation.errors import InvalidSnapshot

# Answers of a task are classes when so few different ones stand for so many examples.
_MAX_CLASSES = 50
_MIN_EXAMPLES_PER_CLASS = 3
_ANSWER_FIELDS = {"sft": "completion", "classification": "completion", "preference": "chosen"}


@dataclass(frozen=True, slots=True)
class EvaluationExample:
    """A prompt and its right answer."""

    id: str
    task: str
    prompt: Prompt
    reference: str
    is_class: bool = False  # the data set says so; otherwise `classes_by_task` finds out


def read_examples(path: Path) -> list[EvaluationExample]:
    """The examples of a snapshot's .jsonl file that have a right answer, in its order.

    A file that is not there holds none. Raises InvalidSnapshot that names file and line.
    """
    if not path.exists():
        return []
    found = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                example = _example(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidSnapshot(f"{path.name}, line {number}: no example: {error}") from error
            if example is not None:
                found.append(example)
    return found


def sample(examples: Sequence[EvaluationExample], limit: int) -> list[EvaluationExample]:
    """At most `limit` of the examples in their order, the same ones each time: by their ids' hash,
    so that neither order nor time decides which."""
    if len(examples) <= limit:
        return list(examples)
    ranked = sorted(range(len(examples)), key=lambda index: _hash(examples[index].id))
    return [examples[index] for index in sorted(ranked[:limit])]


def classes_by_task(examples: Iterable[EvaluationExample]) -> dict[str, tuple[str, ...]]:
    """The classes of each task whose answers are classes, in alphabetical order.

    A data set of format `classification` says that they are. In others, answers are taken for
    classes when at most 50 different ones stand for at least three examples each on average.
    Give training examples too: a class may be missing from the validation split.
    """
    counts: dict[str, Counter[str]] = {}
    stated: set[str] = set()
    for example in examples:
        counts.setdefault(example.task, Counter())[example.reference] += 1
        if example.is_class:
            stated.add(example.task)
    return {
        task: tuple(sorted(answers))
        for task, answers in counts.items()
        if task in stated
        or len(answers) <= min(_MAX_CLASSES, answers.total() // _MIN_EXAMPLES_PER_CLASS)
    }


def digest_of(examples: Iterable[EvaluationExample]) -> str:
    """SHA-256 over ids, prompts and answers, in hexadecimal."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


def _example(value: dict[str, Any]) -> EvaluationExample | None:
    answer_field = _ANSWER_FIELDS.get(value["format"])
    if answer_field is None:
        return None
    is_class = value["format"] == "classification"
    return EvaluationExample(
        str(value["id"]), value["task"], _prompt(value["prompt"]), value[answer_field], is_class
    )


def _prompt(value: dict[str, Any]) -> Prompt:
    if "messages" in value:
        return Conversation(
            tuple(Message(turn["role"], turn["content"]) for turn in value["messages"]),
            tuple(
                Document(document["text"], document.get("title", ""))
                for document in value.get("documents", ())
            ),
        )
    if "text" in value:
        return str(value["text"])
    return tuple(int(token) for token in value["token_ids"])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
