"""Answers to one prompt in an order that tells nothing, and verdicts on them as feedback."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from graftwork.client import Client
from graftwork.feedback_types import Answer, FeedbackOptions, Preference, Ranking
from graftwork.types import FinishReason, Generation, Prompt

_MOST_MARGIN = 3.4e38  # within a float32, which a margin is on the wire


@dataclass(frozen=True, slots=True)
class Candidate:
    generation_id: str
    text: str
    served_by: str  # "name@version"
    is_cut: bool  # off at its most tokens

    @property
    def answer(self) -> Answer:
        return Answer(generation_id=self.generation_id)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Different answers to one prompt, in the order in which they are shown."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    target: FeedbackOptions  # what the feedback is on

    @property
    def texts(self) -> list[str]:
        return [candidate.text for candidate in self.candidates]

    def best(self, place: int) -> list[FeedbackOptions]:
        """The answer at `place` is better than each other; of those nothing is said."""
        chosen = self.candidates[place]
        others = [other for other in self.candidates if other is not chosen]
        return [
            {**self.target, "preference": Preference(chosen.answer, other.answer)}
            for other in others
        ]

    def tie(self) -> list[FeedbackOptions]:
        """All are equally good."""
        return self.scored([0.0] * len(self.candidates))

    def scored(self, scores: Sequence[float]) -> list[FeedbackOptions]:
        """One score for each answer, higher is better: a preference with its margin, or a ranking
        where there are more than two."""
        ranked = sorted(
            zip(scores, self.candidates, strict=True), key=lambda pair: pair[0], reverse=True
        )
        if len(ranked) == 2:
            (high, chosen), (low, rejected) = ranked
            tie = high == low
            margin = None if tie else min(high - low, _MOST_MARGIN)
            return [
                {
                    **self.target,
                    "preference": Preference(chosen.answer, rejected.answer, margin, tie),
                }
            ]
        ranks = [
            [candidate.answer for _, candidate in rank]
            for _, rank in groupby(ranked, key=lambda pair: pair[0])
        ]
        return [{**self.target, "ranking": Ranking(ranks)}]

    def without(self, places: set[int]) -> "Comparison":
        """The same, less some answers."""
        kept = tuple(c for place, c in enumerate(self.candidates) if place not in places)
        return Comparison(self.prompt, kept, self.target)


def sample(
    client: Client,
    prompt: Prompt,
    *,
    adapter: str,
    against: str | None,
    number: int,
    options: Mapping[str, Any],
) -> Comparison:
    """Several answers of `adapter`, or one of it and one of `against`; of answers that read the
    same one is kept. The order of the answers follows from the seed of the request."""
    if against is None:
        made = client.generate(prompt, adapter=adapter, n=number, **options)
        found = list(_candidates(made))
        target: FeedbackOptions = {"group_id": made.group_id}
    else:
        made = client.generate(prompt, adapter=adapter, **options)
        other = client.generate(prompt, adapter=against, **{**options, "seed": made.seed})
        found = [*_candidates(made), *_candidates(other)]
        target = {"generation_id": found[0].generation_id}
    by_text: dict[str, Candidate] = {}
    for candidate in found:
        by_text.setdefault(candidate.text, candidate)
    different = list(by_text.values())
    random.Random(made.seed).shuffle(different)  # noqa: S311
    return Comparison(prompt, tuple(different), target)


def _candidates(made: Generation) -> Iterator[Candidate]:
    for choice in made.choices:
        is_cut = choice.finish_reason is FinishReason.LENGTH
        yield Candidate(choice.generation_id, choice.text, str(made.served_by), is_cut)
