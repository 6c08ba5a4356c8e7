import random
import time
from collections import Counter

import pytest
from graftwork_trainer.datasets import duplicates

from tests.trainer.datasets.feedback import example

LONG = (
    "The quick brown fox jumps over the lazy dog while the cat sleeps on the warm mat by the fire"
)


def asked(number, text, **fields):
    return example(number, prompt={"text": text}, **{"completion": "yes", **fields})


def find(*examples, similarity=0.9):
    dropped = Counter()
    return duplicates.find(examples, similarity, dropped), dropped


def test_the_first_of_equal_examples_is_kept():
    found, dropped = find(asked(1, LONG), asked(2, LONG), asked(3, LONG, task="other"))
    assert found.kept == [0, 2]
    assert dropped == {"duplicate": 1}
    assert found.pairs == [(0, 2)]  # one task's training must not see another's validation


@pytest.mark.parametrize("changed", [LONG.upper(), LONG + "!", LONG.replace(" ", "  \n")])
def test_the_first_of_similar_examples_is_kept(changed):
    found, dropped = find(asked(1, LONG), asked(2, changed))
    assert found.kept == [0]
    assert dropped == {"near_duplicate": 1}


def test_similar_prompts_with_other_answers_stay_together():
    found, dropped = find(asked(1, LONG), asked(2, LONG + "!", completion="no"))
    assert (found.kept, found.pairs) == ([0, 1], [(0, 1)])
    assert not dropped


def test_one_prompt_with_several_answers_stays_together():
    found, _ = find(asked(1, "Hi"), asked(2, "Hi", completion="no"), asked(3, "Hi", completion="?"))
    assert (found.kept, found.pairs) == ([0, 1, 2], [(0, 1), (0, 2)])


def test_at_similarity_one_only_equal_prompts_count():
    found, dropped = find(asked(1, LONG), asked(2, LONG + "!"), asked(3, LONG), similarity=1.0)
    assert (found.kept, found.pairs) == ([0, 1], [])
    assert dropped == {"duplicate": 1}


def test_a_common_instruction_makes_nothing_similar():
    words = [f"{first}{second}" for first in "abcdef" for second in "uvwxyz"]
    found, dropped = find(*(asked(n, f"{LONG} Is this spam: {w}") for n, w in enumerate(words)))
    assert len(found.kept) == len(words)
    assert not dropped
    assert not found.pairs


def test_token_ids_are_compared_too():
    one, other = ({"token_ids": [*range(100, 140), last]} for last in (1, 2))
    found, _ = find(
        example(1, prompt=one, completion="yes"), example(2, prompt=other, completion="yes")
    )
    assert found.kept == [0]


def test_held_examples_are_kept_whatever_they_resemble():
    dropped = Counter()
    examples = [asked(1, LONG), asked(2, LONG), asked(3, LONG)]
    assert duplicates.find(examples, 0.9, dropped, held=2).kept == [0, 1]
    assert dropped == {"duplicate": 1}


def test_many_equal_prompts_take_linear_time():
    examples = [asked(n, LONG, completion=f"answer {n}") for n in range(3000)]
    start = time.process_time()
    found, _ = find(*examples)
    assert len(found.kept) == 3000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.9])
def test_pairs_at_the_threshold_are_found(similarity):
    rng = random.Random(0)
    prompts = []
    for _ in range(150):
        words = [f"{rng.randrange(10**6):06d}" for _ in range(60)]
        changed = rng.randrange(40)
        twin = [f"{rng.randrange(10**6):06d}" for _ in range(changed)] + words[changed:]
        prompts += [" ".join(words), " ".join(twin)]
    found, _ = find(
        *(asked(n, text, completion=f"{n}") for n, text in enumerate(prompts)),
        similarity=similarity,
    )
    shingles = [{t[k : k + 5] for k in range(len(t) - 4)} for t in prompts]
    expected = {
        (n, n + 1)
        for n in range(0, len(prompts), 2)
        if len(shingles[n] & shingles[n + 1]) >= similarity * len(shingles[n] | shingles[n + 1])
    }
    assert len(expected) >= 5
    assert expected == set(found.pairs)
