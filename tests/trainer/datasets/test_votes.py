"""Pairs made of thumbs, against a plain way to make them, and in bounded memory."""

import itertools
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_trainer.datasets.extraction import examples
from graftwork_trainer.datasets.judged import Judged
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.datasets.feedback import feedback, generation


@dataclass(frozen=True)
class Thumb:
    prompt: str
    answer: str
    voter: str  # "": somebody
    is_up: bool
    inline: bool = False

    def judged(self, number: int) -> Judged:
        vote = pb.THUMBS_UP if self.is_up else pb.THUMBS_DOWN
        name = f"f{number}"
        if not self.inline:
            about = generation(f"g{number}", self.answer, prompt=self.prompt)
            given = feedback(name, generation_id=about.id, author=self.voter, thumbs=vote)
            return given, [about]
        prompt = pb.InlinePrompt(task="sums")
        prompt.conversation.messages.add(role="user", content=self.prompt)
        prompt.conversation.messages.add(role="assistant", content=self.answer)
        return feedback(name, prompt=prompt, author=self.voter, thumbs=vote), []


def plain_pairs(thumbs: list[Thumb]) -> list[tuple[str, str, tuple[str, str]]]:
    """Chosen, rejected, and the feedback on both, with everything in memory."""
    votes: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    first: dict[tuple[str, str], str] = {}
    for number, thumb in enumerate(thumbs):
        first.setdefault((thumb.prompt, thumb.answer), f"f{number}")
        voter = thumb.voter or f"somebody {number}"
        votes[thumb.prompt][thumb.answer][voter] = 1 if thumb.is_up else -1
    found = []
    for prompt, answers in votes.items():
        scores = {answer: sum(by.values()) for answer, by in answers.items()}
        liked = [answer for answer, score in scores.items() if score > 0]
        disliked = [answer for answer, score in scores.items() if score < 0]
        found += [
            (up, down, (first[prompt, up], first[prompt, down]))
            for up, down in zip(liked, disliked, strict=False)
        ]
    return found


@given(
    st.lists(
        st.builds(
            Thumb,
            st.sampled_from(["2 + 2 = ?", "\0?", "ü?"]),
            st.sampled_from(["4", "5", "6", "7\0"]),
            st.sampled_from(["", "ann", "bob\0", "cy"]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_pairs_are_those_of_the_plain_way(thumbs: list[Thumb]):
    judged = (thumb.judged(number) for number, thumb in enumerate(thumbs))
    found = [(e.chosen, e.rejected, e.feedback_ids) for e in examples(judged, "preference")]
    assert found == plain_pairs(thumbs)


def test_memory_does_not_grow_with_the_thumbs():
    """40 MB of prompts and answers, of which a few at a time are in memory."""
    words = "word " * 2000

    def judged() -> Iterator[Judged]:
        for number in range(2000):
            prompt = f"{words} {number // 2}"
            yield Thumb(prompt, f"{words} {number}", "", number % 2 == 0).judged(number)

    tracemalloc.start()
    try:
        num_pairs = sum(1 for _ in examples(judged(), "preference"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_pairs == 1000
    assert peak < 2_000_000


def test_of_one_prompt_every_answer_is_in_one_pair():
    thumbs = [Thumb("?", str(number), "", number % 3 > 0) for number in range(3000)]
    judged = (thumb.judged(number) for number, thumb in enumerate(thumbs))
    found = list(examples(judged, "preference"))
    assert len(found) == 1000
    used = itertools.chain.from_iterable((e.chosen, e.rejected) for e in found)
    assert len(set(used)) == 2000
