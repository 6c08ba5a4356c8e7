"""The examples that contenders are asked: a snapshot's lines, as prompts with their right answers.

Formats with one right answer are asked: `sft` and `classification`, and of `preference` the chosen
answer is taken for right.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork import Conversation, Document, Message
from graftwork.types import Prompt

from graftwork_trainer.datasets import prompts
from graftwork_trainer.datasets.examples import (
    ClassificationExample,
    Example,
    PreferenceExample,
    SftExample,
    parse_line,
)

# Answers of a task are classes when so few different ones stand for so many examples.
_MAX_CLASSES = 50
_MIN_EXAMPLES_PER_CLASS = 3


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

    Raises InvalidExample that names file, line and field, and OSError.
    """
    with path.open("rb") as lines:
        parsed = [
            parse_line(line, f"{path.name} line {number}") for number, line in enumerate(lines, 1)
        ]
    return [found for example in parsed if (found := _example(example)) is not None]


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


def _example(example: Example) -> EvaluationExample | None:
    match example:
        case SftExample() | ClassificationExample():
            answer = example.completion
        case PreferenceExample():
            answer = example.chosen
        case _:
            return None
    is_class = isinstance(example, ClassificationExample)
    return EvaluationExample(example.id, example.task, _prompt(example.prompt), answer, is_class)


def _prompt(prompt: prompts.Prompt) -> Prompt:
    match prompt:
        case prompts.Text(text):
            return text
        case prompts.TokenIds(ids):
            return ids
        case prompts.Conversation(messages, documents):
            return Conversation(
                tuple(Message(turn.role, turn.content) for turn in messages),
                tuple(Document(document.text, document.title) for document in documents),
            )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
