"""From feedback to examples: a pure function of the journal's rows.

demonstration  sft
correction     sft; preference and reward: it over the original answer
label          classification; sft
preference     preference; reward, ties too; unpaired: chosen good, rejected bad
ranking        preference: every two of unequal rank; reward, ties too;
               unpaired: first rank good, last rank bad
thumbs         unpaired; preference and reward: an answer with thumbs up over one to the same
               prompt with thumbs down
reward         reward; unpaired: by threshold
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from graftwork.v1 import feedback_service_pb2

from graftwork_trainer.datasets.examples import (
    FORMATS,
    ClassificationExample,
    ComparisonExample,
    Example,
    PreferenceExample,
    RewardExample,
    SftExample,
    UnpairedExample,
)
from graftwork_trainer.datasets.judged import Answer, Asked, Item, Judged, Nothing
from graftwork_trainer.datasets.votes import Votes

_PAIRED = {"preference", "reward"}


def examples(
    judged: Iterable[Judged],
    format_name: str,
    *,
    reward_threshold: float | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Example]:
    """Examples of one format, in the order of the feedback; pairs made of thumbs come last.

    Feedback of kinds that the format does not take is passed over. Feedback that gives nothing
    although its kind would is counted in `dropped` by reason: `no_prompt` (the generation is gone,
    or its prompt was not stored), `several_prompts` (a label of an episode with several requests),
    `no_answer` (a named answer is gone) and `contradictory` (as many thumbs up as down for one
    answer, where thumbs make pairs).

    Raises ValueError for an unknown format.
    """
    if format_name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format_name!r}")
    counts = Counter[str]() if dropped is None else dropped
    with closing(Votes()) as votes:
        for feedback, generations in judged:
            item = Item.of(feedback, generations)
            try:
                if item.kind == "thumbs" and format_name in _PAIRED:
                    votes.add(item)
                else:
                    yield from _numbered(_made(item, format_name, reward_threshold))
            except Nothing as nothing:
                counts[str(nothing)] += 1
        yield from _voted(votes, format_name, counts)


def _made(item: Item, format_name: str, threshold: float | None) -> list[Example]:
    """The examples of one item, none where the format does not take its kind. Raises Nothing."""
    match format_name, item.kind:
        case "sft", "demonstration" | "correction" | "label":
            made = _told(item, SftExample)
        case "classification", "label":
            made = _told(item, ClassificationExample)
        case "preference" | "reward", "correction":
            made = _corrected(item, format_name)
        case "preference" | "reward", "preference" | "ranking":
            made = _compared(item, format_name)
        case "unpaired", "preference" | "ranking":
            made = _ends(item)
        case "unpaired", "thumbs":
            made = _judged(item, label=item.feedback.thumbs == feedback_service_pb2.THUMBS_UP)
        case "unpaired", "reward" if threshold is not None:
            made = _judged(item, label=item.feedback.reward >= threshold)
        case "reward", "reward":
            made = [
                RewardExample(
                    **item.common(asked, [answer]),
                    completion=answer.text,
                    reward=item.feedback.reward,
                )
                for asked, answer in item.answered()
            ]
        case _:
            made = []
    return made


def _told(
    item: Item, example_type: type[SftExample] | type[ClassificationExample]
) -> list[Example]:
    text: str = getattr(item.feedback, item.kind)
    return [example_type(**item.common(item.one(), []), completion=text)]


def _corrected(item: Item, format_name: str) -> list[Example]:
    if item.feedback.WhichOneof("target") == "prompt" and item.one().answer is None:
        return []  # nothing was answered that it corrects
    better, asked = Answer(item.feedback.correction), item.one()
    originals = {answer.text: answer for _, answer in item.answered()}
    return [
        _pair(item, asked, better, original, format_name)
        for text, original in originals.items()
        if text != better.text
    ]


def _judged(item: Item, *, label: bool) -> list[Example]:
    return [
        UnpairedExample(**item.common(asked, [answer]), completion=answer.text, label=label)
        for asked, answer in item.answered()
    ]


def _compared(item: Item, format_name: str) -> list[Example]:
    """Every two answers of unequal rank; those of equal rank as ties, for reward models."""
    asked, ranks = item.one(), item.ranks()
    made = [
        _pair(item, asked, better, worse, format_name)
        for upper, lower in itertools.combinations(ranks, 2)
        for better, worse in itertools.product(upper, lower)
        if better.text != worse.text
    ]
    if format_name == "reward":
        made += [
            _pair(item, asked, one, other, format_name, tie=True)
            for rank in ranks
            for one, other in itertools.combinations(rank, 2)
            if one.text != other.text
        ]
    return made


def _ends(item: Item) -> list[Example]:
    """The best and the worst answers; what lies between, and a tie, is neither good nor bad."""
    asked, ranks = item.one(), item.ranks()
    if len(ranks) < 2:
        return []
    return [
        UnpairedExample(**item.common(asked, [answer]), completion=answer.text, label=label)
        for rank, label in ((ranks[0], True), (ranks[-1], False))
        for answer in rank
    ]


def _pair(
    item: Item,
    asked: Asked,
    better: Answer,
    worse: Answer,
    format_name: str,
    *,
    tie: bool = False,
) -> Example:
    margin = None
    if item.kind == "preference" and item.feedback.preference.HasField("margin"):
        margin = item.feedback.preference.margin
    common = item.common(asked, [better, worse])
    return _comparison(common, better.text, worse.text, format_name, margin=margin, tie=tie)


def _comparison(
    common: dict[str, Any],
    chosen: str,
    rejected: str,
    format_name: str,
    *,
    margin: float | None = None,
    tie: bool = False,
) -> Example:
    if format_name == "preference":
        return PreferenceExample(**common, chosen=chosen, rejected=rejected, margin=margin)
    return ComparisonExample(**common, chosen=chosen, rejected=rejected, margin=margin, tie=tie)


def _numbered(made: list[Example]) -> Iterator[Example]:
    """Unique ids where one item of feedback gives several examples."""
    for index, example in enumerate(made):
        yield example if index == 0 else replace(example, id=f"{example.id}-{index}")


def _voted(votes: Votes, format_name: str, counts: Counter[str]) -> Iterator[Example]:
    for up, down in votes.pairs():
        common = up.item.common(up.asked, [up.answer, down.answer])
        common["feedback_ids"] = (up.item.feedback.id, down.item.feedback.id)
        yield _comparison(common, up.answer.text, down.answer.text, format_name)
    if contradictory := votes.num_contradictory:
        counts["contradictory"] += contradictory
