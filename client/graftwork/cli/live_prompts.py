"""What users asked lately, and nobody has compared answers to."""

import itertools
from collections.abc import Iterator

from graftwork.client import Client
from graftwork.feedback_types import Answer, Feedback, Preference, Ranking
from graftwork.types import Origin, Prompt

_WINDOW = 1000  # generations that count as recent
_PAGE = 100


def unjudged_prompts(client: Client, task: str) -> list[Prompt]:
    """Inputs of the task's latest user generations without a preference or a ranking on any answer
    to them, each once, newest first.

    Feedback on a generation is younger than it, so that all feedback on these is looked at.
    """
    recent = list(
        itertools.islice(
            client.feedback.generations(task=task, origins=[Origin.USER], page_size=_PAGE), _WINDOW
        )
    )
    if not recent:
        return []
    judged: set[str] = set()  # ids of generations, and of groups
    inputs: set[Prompt] = set()
    for item in client.feedback.list(
        task=task,
        kinds=["preference", "ranking"],
        after=min(generation.create_time for generation in recent),
        page_size=_PAGE,
    ):
        judged |= {item.generation_id, item.group_id}
        judged |= {answer.generation_id for answer in _answers(item)}
        if item.prompt is not None:
            inputs.add(item.prompt.input)
    judged.discard("")
    inputs |= {g.input for g in recent if g.id in judged or g.group_id in judged}
    return [prompt for prompt in dict.fromkeys(g.input for g in recent) if prompt not in inputs]


def _answers(item: Feedback) -> Iterator[Answer]:
    match item.value:
        case Preference(chosen, rejected):
            yield from (chosen, rejected)
        case Ranking(ranks):
            yield from itertools.chain.from_iterable(ranks)
