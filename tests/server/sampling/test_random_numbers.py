from collections import Counter

import pytest
from graftwork_server.random_numbers import choice_seed, philox, uniform
from hypothesis import given
from hypothesis import strategies as st

ALL_ONES = 0xFFFFFFFF
U64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter, key, expected):
    """The known answers that come with Random123."""
    assert philox(counter, key) == expected


@given(U64, U64, U64)
def test_uniform_is_in_range_and_repeats(seed, position, stream):
    number = uniform(seed, position, stream)
    assert 0 <= number < 1
    assert number == uniform(seed, position, stream)


def test_neighbouring_seeds_and_positions_are_spread_evenly():
    numbers = [uniform(seed, position) for seed in range(50) for position in range(100)]
    counts = Counter(int(number * 10) for number in numbers)
    assert len(set(numbers)) == 5000
    assert sum((counts[i] - 500) ** 2 / 500 for i in range(10)) < 27.9


def test_choices_have_seeds_of_their_own():
    assert choice_seed(7, 0) == 7
    seeds = {choice_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_refuses_what_is_no_unsigned_integer(seed):
    with pytest.raises(ValueError, match="no unsigned 64-bit integer"):
        uniform(seed, 0)
