"""Which tokens are guessed, and how many."""

import pytest
from graftwork_server.drafting import PromptLookup
from graftwork_server.request import SamplingParams, Sequence
from hypothesis import given
from hypothesis import strategies as st


def lookup_of(prompt, most=8, stops=(), confident=True):
    sequence = Sequence(
        0,
        tuple(prompt),
        SamplingParams(seed=0),
        max_tokens=1000,
        stop_token_ids=frozenset(stops),
        prompt_lookup_tokens=most,
    )
    lookup = PromptLookup(sequence)
    if confident:
        lookup.learn(most, most)
    return sequence, lookup


@pytest.mark.parametrize(
    ("prompt", "draft"),
    [
        ((1, 2, 3, 4, 5, 9, 1, 2, 3), (4, 5, 9, 1, 2, 3, 4, 5)),  # and on from its own start
        ((1, 2, 3, 4, 9, 7, 2, 3), (4, 9, 7, 2, 3, 4, 9, 7)),  # the last two, where three are new
        ((1, 2, 3, 8, 5, 2, 3, 7, 1, 2, 3), (8, 5, 2, 3, 7, 1, 2, 3)),  # three before the last two
        ((1, 2, 4, 5, 1, 2, 6, 7, 1, 2), (6, 7, 1, 2, 6, 7, 1, 2)),  # the latest place
        ((4, 5, 5), ()),
        ((5, 5, 5), (5,) * 8),
        ((5, 5), ()),
        ((5,), ()),
        ((-1, -2, 6, 7, 8, 6, 7), (8, 6, 7, 8, 6, 7, 8, 6)),
    ],
)
def test_what_followed_the_last_tokens_before(prompt, draft):
    _, lookup = lookup_of(prompt)
    assert lookup.propose(100) == draft


def test_output_is_looked_up_as_it_grows():
    sequence, lookup = lookup_of((1, 2, 3))
    assert lookup.propose(8) == ()
    sequence.output_token_ids += [7, 8, 9, 7, 8]
    assert lookup.propose(2) == (9, 7)
    assert lookup.propose(2) == (9, 7)  # a plan may be dropped
    sequence.output_token_ids += [5, 1, 2]
    assert lookup.propose(3) == (3, 7, 8)


def test_a_draft_ends_before_a_stop_token_and_within_its_room():
    _, lookup = lookup_of((1, 2, 3, 4, 5, 1, 2), stops=(5,))
    assert lookup.propose(8) == (3, 4)
    assert lookup.propose(1) == (3,)
    assert lookup.propose(0) == ()
    assert lookup.propose(-1) == ()


def test_how_much_is_guessed_follows_how_much_was_right():
    _, lookup = lookup_of((1, 2) * 20, most=6, confident=False)
    lengths = []
    for num_accepted in (1, 2, 4, 6, 0, 1, 1, 1):
        lengths.append(len(lookup.propose(100)))
        lookup.learn(lengths[-1], num_accepted)
    assert lengths == [1, 2, 4, 6, 6, 1, 2, 1]
    lookup.learn(0, 0)
    assert len(lookup.propose(100)) == 2


def test_a_short_draft_for_want_of_room_is_no_reason_to_guess_less():
    _, lookup = lookup_of((1, 2) * 20, most=6)
    lookup.learn(1, 1)
    assert len(lookup.propose(100)) == 6


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.lists(st.integers(0, 3), max_size=20),
    st.integers(1, 12),
)
def test_against_a_plain_search(prompt, output, most):
    sequence, lookup = lookup_of(prompt, most)
    for token_id in output:
        sequence.output_token_ids.append(token_id)
        lookup.propose(most)
    assert lookup.propose(most) == searched([*prompt, *output], most)


def searched(tokens, most):
    for size in (3, 2):
        for place in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) > size and tokens[place - size : place] == tokens[-size:]:
                followers = list(tokens)
                for index in range(most):
                    followers.append(followers[place + index])
                return tuple(followers[len(tokens) :])
    return ()
