"""What live feedback says of a canary and of its incumbent: a pure function of the journal's rows.

bad: thumbs down; a correction or a label that the answer contradicts; the worse of two compared
answers; a reward below the incumbent's average. good: the opposite of each. Demonstrations, ties
and remarks say neither.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from graftwork.v1 import feedback_service_pb2

from graftwork_trainer.datasets.judged import Answer, Item, Judged, Nothing


@dataclass(frozen=True, slots=True)
class Tally:
    """Items of feedback on one version."""

    good: int = 0
    bad: int = 0


def tally(
    judged: Iterable[Judged], adapter: str, *, canary: int, incumbent: int
) -> tuple[Tally, Tally]:
    """Feedback on the canary, and on the incumbent."""
    versions = {canary, incumbent}
    votes: dict[int, list[bool]] = {canary: [], incumbent: []}
    rewards: dict[int, list[float]] = {canary: [], incumbent: []}
    for feedback, generations in judged:
        item = Item.of(feedback, generations)
        for version, verdict in _verdicts(item, adapter, versions):
            if isinstance(verdict, bool):
                votes[version].append(verdict)
            else:
                rewards[version].append(verdict)
    if rewards[incumbent]:
        bar = fmean(rewards[incumbent])
        for version in versions:
            votes[version] += [reward >= bar for reward in rewards[version]]
    return _tally(votes[canary]), _tally(votes[incumbent])


def _tally(votes: list[bool]) -> Tally:
    return Tally(sum(votes), len(votes) - sum(votes))


def _verdicts(item: Item, adapter: str, versions: set[int]) -> Iterator[tuple[int, bool | float]]:
    """What one item says of each version: whether it is good, or a reward. An item on several
    answers of one version is one item."""
    said: dict[int, bool | float] = {}
    try:
        for answer, verdict in _answers(item):
            version = _version_of(answer, adapter)
            if version in versions:
                # Of a group or episode, one answer that was wrong makes it bad.
                said[version] = min(verdict, said.get(version, verdict))
    except Nothing:
        return
    yield from said.items()


def _answers(item: Item) -> Iterator[tuple[Answer, bool | float]]:
    """Each answer that the item is about, with what it says of it. Raises Nothing."""
    feedback = item.feedback
    if item.kind in ("preference", "ranking"):
        ranks = item.ranks()
        if len(ranks) > 1:
            yield from ((answer, False) for answer in ranks[-1])
            yield from ((answer, True) for answer in ranks[0])
    elif item.kind in ("thumbs", "reward", "label", "correction"):
        for _, answer in item.answered():
            match item.kind:
                case "thumbs":
                    yield answer, feedback.thumbs == feedback_service_pb2.THUMBS_UP
                case "reward":
                    yield answer, feedback.reward
                case "label":
                    yield answer, answer.text.strip() == feedback.label.strip()
                case "correction":
                    yield answer, answer.text.strip() == feedback.correction.strip()


def _version_of(answer: Answer, adapter: str) -> int | None:
    """The version of the adapter that alone gave an answer."""
    if answer.generation is None:
        return None
    served_by = answer.generation.served_by
    if served_by.components or served_by.adapter != adapter:
        return None
    return served_by.version
