"""What cannot be learned from: nothing asked or answered, cut off, or at odds with the majority."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from graftwork_trainer.datasets.examples import (
    ClassificationExample,
    ComparisonExample,
    Example,
    PreferenceExample,
    RewardExample,
    SftExample,
    UnpairedExample,
)
from graftwork_trainer.datasets.prompts import Conversation, TokenIds
from graftwork_trainer.datasets.scrub import scrub_example


def clean(examples: Iterable[Example], dropped: Counter[str], *, scrub: bool) -> list[Example]:
    """The usable examples, in their order. `dropped` counts the others by reason: `unscrubbable`
    (token ids, where texts are scrubbed), `truncated`, `empty_prompt`, `empty_answer` and
    `same_answers` (nothing to prefer)."""
    kept = []
    for example in examples:
        candidate = scrub_example(example) if scrub else example
        reason = "unscrubbable" if candidate is None else _fault(candidate)
        if candidate is None or reason:
            dropped[reason] += 1
        else:
            kept.append(candidate)
    return kept


def without_contradictions(examples: list[Example], dropped: Counter[str]) -> list[Example]:
    """Where examples contradict each other, those that most authors agree with.

    Two contradict that give the same prompt different classes, the same answer opposite labels, or
    the same two answers opposite orders. An author's last word counts; whoever gives no name counts
    each time. `dropped` counts the minority as `outvoted`, and all as `contradictory` where no side
    has the majority. `examples` come in order of time.
    """
    votes: dict[Any, dict[str, Any]] = defaultdict(dict)  # by what is claimed about, by author
    for example in examples:
        if (claim := _claim(example)) is not None:
            about, verdict = claim
            votes[about][example.author or f"\0{example.id}"] = verdict
    winners = {about: _majority(by_author.values()) for about, by_author in votes.items()}
    kept = []
    for example in examples:
        claim = _claim(example)
        if claim is None or winners[claim[0]] == claim[1]:
            kept.append(example)
        else:
            dropped["contradictory" if winners[claim[0]] is None else "outvoted"] += 1
    return kept


def class_of(example: Example) -> str:
    """What is balanced: the class, "good" or "bad"; "" where the format has no classes."""
    if isinstance(example, ClassificationExample):
        return example.completion
    if isinstance(example, UnpairedExample):
        return "good" if example.label else "bad"
    return ""


def answers_of(example: Example) -> tuple[str, ...]:
    """The texts of its answers."""
    if isinstance(example, PreferenceExample | ComparisonExample):
        return (example.chosen, example.rejected)
    if isinstance(example, SftExample | UnpairedExample | RewardExample | ClassificationExample):
        return (example.completion,)
    raise TypeError(f"{type(example).__name__} is no format")


def _fault(example: Example) -> str:
    """Why it cannot be used; "" where it can."""
    prompt, answers = example.prompt, answers_of(example)
    if isinstance(prompt, TokenIds):
        asked = bool(prompt.ids)
    elif isinstance(prompt, Conversation):
        asked = any(message.content.strip() for message in prompt.messages)
    else:
        asked = bool(prompt.text.strip())
    if example.truncated:
        return "truncated"
    if not asked:
        return "empty_prompt"
    if not all(answer.strip() for answer in answers):
        return "empty_answer"
    if len(answers) > len(set(answers)):
        return "same_answers"
    return ""


def _claim(example: Example) -> tuple[Any, Any] | None:
    """What it says something about, and what it says; None where others cannot contradict it."""
    asked = (example.task, example.prompt)
    if isinstance(example, ClassificationExample):
        return asked, example.completion
    if isinstance(example, UnpairedExample):
        return (*asked, example.completion), example.label
    if isinstance(example, PreferenceExample | ComparisonExample):
        tie = isinstance(example, ComparisonExample) and example.tie
        pair = frozenset((example.chosen, example.rejected))
        return (*asked, pair), "" if tie else f">{example.chosen}"
    return None


def _majority(verdicts: Iterable[Any]) -> Any:
    """The verdict that more give than any other; None where there is none."""
    first, *others = Counter(verdicts).most_common(2)
    return None if others and others[0][1] == first[1] else first[0]
