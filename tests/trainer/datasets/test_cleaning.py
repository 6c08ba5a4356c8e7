from collections import Counter

import pytest
from graftwork_trainer.datasets.cleaning import clean, without_contradictions

from tests.trainer.datasets.feedback import example

PROMPT = {"prompt": {"text": "2 + 2 ="}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"truncated": True}, "truncated"),
        ({"prompt": {"text": " \n"}}, "empty_prompt"),
        ({"prompt": {"messages": [{"role": "user", "content": ""}]}}, "empty_prompt"),
        ({"prompt": {"token_ids": []}}, "empty_prompt"),
        ({"completion": " "}, "empty_answer"),
        ({"format": "preference", "chosen": "a", "rejected": ""}, "empty_answer"),
        ({"format": "preference", "chosen": "a", "rejected": "a"}, "same_answers"),
    ],
)
def test_what_cannot_be_learned_from_is_dropped(fields, reason):
    dropped = Counter()
    good = example(2)
    assert clean([example(1, **fields), good], dropped, scrub=False) == [good]
    assert dropped == {reason: 1}


def test_scrubbing_is_a_switch():
    secret, tokens = example(1, completion="ann@example.org"), example(2, prompt={"token_ids": [1]})
    dropped = Counter()
    assert clean([secret, tokens], dropped, scrub=False) == [secret, tokens]
    assert not dropped
    (scrubbed,) = clean([secret, tokens], dropped, scrub=True)
    assert scrubbed.completion == "[EMAIL]"
    assert dropped == {"unscrubbable": 1}


def test_answers_that_scrubbing_makes_the_same_are_dropped():
    dropped = Counter()
    pair = example(1, format="preference", chosen="ann@example.org", rejected="bob@example.org")
    assert clean([pair], dropped, scrub=True) == []
    assert dropped == {"same_answers": 1}


def label(number, completion, author):
    return example(number, format="classification", completion=completion, author=author, **PROMPT)


def test_the_majority_of_authors_decides():
    votes = [label(1, "spam", "ann"), label(2, "ham", "bob"), label(3, "spam", "cay")]
    dropped = Counter()
    assert without_contradictions(votes, dropped) == [votes[0], votes[2]]
    assert dropped == {"outvoted": 1}


def test_a_tie_drops_all():
    votes = [label(1, "spam", "ann"), label(2, "ham", "bob")]
    dropped = Counter()
    assert without_contradictions(votes, dropped) == []
    assert dropped == {"contradictory": 2}


def test_an_author_votes_once_and_by_the_last_word():
    votes = [label(1, "spam", "ann"), label(2, "spam", "ann"), label(3, "ham", "ann")]
    dropped = Counter()
    assert without_contradictions(votes, dropped) == [votes[2]]
    assert dropped == {"outvoted": 2}


def test_whoever_gives_no_name_votes_each_time():
    votes = [label(1, "spam", ""), label(2, "spam", ""), label(3, "ham", "ann")]
    assert without_contradictions(votes, Counter()) == votes[:2]


def test_opposite_preferences_and_labels_contradict():
    dropped = Counter()
    ab = example(1, format="preference", chosen="a", rejected="b", **PROMPT)
    ba = example(2, format="preference", chosen="b", rejected="a", **PROMPT)
    bc = example(3, format="preference", chosen="b", rejected="c", **PROMPT)
    assert without_contradictions([ab, ba, bc], dropped) == [bc]
    up = example(4, format="unpaired", completion="a", label=True, **PROMPT)
    down = example(5, format="unpaired", completion="a", label=False, **PROMPT)
    assert without_contradictions([up, down], dropped) == []
    assert dropped == {"contradictory": 4}


def test_different_answers_to_one_prompt_do_not_contradict():
    told = [example(1, completion="4", **PROMPT), example(2, completion="four", **PROMPT)]
    assert without_contradictions(told, Counter()) == told
