"""What of the training split is trained on, and how often.

First few shots are chosen, then classes balanced, tasks mixed, and noisy copies added, each on what
the one before left. A copy's id is the original's with "~1", "~2" ...
"""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from graftwork.status import InvalidFieldError

from graftwork_trainer.datasets.cleaning import class_of
from graftwork_trainer.datasets.examples import Example
from graftwork_trainer.datasets.order import shuffled_key
from graftwork_trainer.datasets.prompts import Conversation, Message, Prompt, Text
from graftwork_trainer.datasets.settings import DatasetSettings

_DROP_PROBABILITY = 0.1
_MIN_WORDS = 4

_Key = TypeVar("_Key")


def training_set(examples: Sequence[Example], settings: DatasetSettings) -> list[Example]:
    """The examples to train on, in random order. Raises InvalidFieldError where the mixture does
    not name the tasks that there are."""
    chosen = sorted(examples, key=_random_order)
    if settings.max_per_class:
        classes = _by(chosen, _stratum).values()
        chosen = [example for of in classes for example in of[: settings.max_per_class]]
    if settings.balance:
        chosen = _balanced(chosen, settings.balance)
    if settings.mixture:
        chosen = _mixed(chosen, settings.mixture)
    if settings.augmentation:
        chosen += [
            copy
            for example in chosen
            for number in range(1, settings.augmentation + 1)
            if (copy := augmented(example, number)) is not None
        ]
    return sorted(chosen, key=_random_order)


def mixture_counts(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """How many examples of each task make up the whole: shares by weight of the sum of the sizes,
    rounded by the largest remainder (Hamilton's method), and at least one each."""
    total, scale = sum(sizes.values()), sum(weights.values())
    exact = {task: weights[task] / scale * total for task in sorted(sizes)}
    counts = {task: math.floor(share) for task, share in exact.items()}
    remainders = sorted(exact, key=lambda task: counts[task] - exact[task])
    for task in remainders[: total - sum(counts.values())]:
        counts[task] += 1
    return {task: max(1, count) for task, count in counts.items()}


def augmented(example: Example, number: int) -> Example | None:
    """A copy in whose question a tenth of the words are dropped, and two neighbours swapped ("easy
    data augmentation", Wei and Zou, 2019). None for questions of fewer than four words, and for
    token ids. The same example and number give the same copy."""
    # Not for secrets; Random.random() is the same in all versions of Python.
    rng = random.Random(shuffled_key("augment", f"{example.id}~{number}"))  # noqa: S311
    prompt = _augmented_prompt(example.prompt, rng)
    if prompt is None or prompt == example.prompt:
        return None
    return replace(example, id=f"{example.id}~a{number}", prompt=prompt)


def _augmented_prompt(prompt: Prompt, rng: random.Random) -> Prompt | None:
    if isinstance(prompt, Text):
        text = _noisy(prompt.text, rng)
        return None if text is None else Text(text)
    if not isinstance(prompt, Conversation):
        return None
    for place in range(len(prompt.messages) - 1, -1, -1):
        message = prompt.messages[place]
        if message.role == "user":
            if (text := _noisy(message.content, rng)) is None:
                return None
            messages = list(prompt.messages)
            messages[place] = Message(message.role, text)
            return replace(prompt, messages=tuple(messages))
    return None


def _noisy(text: str, rng: random.Random) -> str | None:
    # Words at even places, the space between them at odd ones; an end may be "".
    pieces = re.split(r"(\s+)", text)
    if len(text.split()) < _MIN_WORDS:
        return None
    words = [place for place in range(0, len(pieces), 2) if pieces[place]]
    left = int(rng.random() * (len(words) - 1))
    one, other = words[left], words[left + 1]
    pieces[one], pieces[other] = pieces[other], pieces[one]
    # The first word stays, so that something does.
    gone = {place for place in words[1:] if rng.random() < _DROP_PROBABILITY}
    return "".join(
        piece
        for place, piece in enumerate(pieces)
        if place not in gone and not (place % 2 and place + 1 in gone)
    )


def _balanced(examples: list[Example], balance: float) -> list[Example]:
    """Repeats classes below that share of their task's largest."""
    by_class = _by(examples, _stratum)
    largest = Counter[str]()
    for (task, _), members in by_class.items():
        largest[task] = max(largest[task], len(members))
    return [
        example
        for (task, _), members in by_class.items()
        for example in _repeated(members, max(len(members), math.ceil(balance * largest[task])))
    ]


def _mixed(examples: list[Example], weights: Mapping[str, float]) -> list[Example]:
    by_task = _by(examples, lambda example: example.task)
    if weights.keys() != by_task.keys():
        raise InvalidFieldError(
            "dataset.mixture",
            f"must name the tasks that have examples to train on, {', '.join(sorted(by_task))}; "
            f"it names {', '.join(sorted(weights))}",
        )
    counts = mixture_counts({task: len(of) for task, of in by_task.items()}, weights)
    return [e for task, members in by_task.items() for e in _repeated(members, counts[task])]


def _repeated(members: list[Example], count: int) -> list[Example]:
    """The first `count`, beginning anew at the end."""
    rounds = [divmod(place, len(members)) for place in range(count)]
    return [
        replace(members[place], id=f"{members[place].id}~{turn}") if turn else members[place]
        for turn, place in rounds
    ]


def _stratum(example: Example) -> tuple[str, str]:
    return example.task, class_of(example)


def _by(examples: Sequence[Example], key: Callable[[Example], _Key]) -> dict[_Key, list[Example]]:
    found: dict[_Key, list[Example]] = defaultdict(list)
    for example in examples:
        found[key(example)].append(example)
    return found


def _random_order(example: Example) -> bytes:
    return shuffled_key("train", example.id)
