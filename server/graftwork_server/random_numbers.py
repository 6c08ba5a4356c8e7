"""Random numbers as a pure function of (seed, position, stream): Philox4x32-10.

A draw does not depend on what was drawn before it, so a token is reproducible whatever else is in
the batch and after a preemption. The function and its test vectors are those of Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

TOKEN_STREAM = 0
_CHOICE_STREAM = 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = _MULTIPLIERS[0] * c0
        product_1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & _MASK_32,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & _MASK_32,
        )
        k0 = (k0 + _KEY_INCREMENTS[0]) & _MASK_32
        k1 = (k1 + _KEY_INCREMENTS[1]) & _MASK_32
    return c0, c1, c2, c3


def random_bits(seed: int, position: int, stream: int) -> int:
    """64 random bits. `seed`, `position` and `stream` are unsigned 64-bit integers."""
    low, high, _, _ = philox((*_words(position), *_words(stream)), _words(seed))
    return (high << 32) | low


def uniform(seed: int, position: int, stream: int = TOKEN_STREAM) -> float:
    """A number in [0, 1), a multiple of 2^-53."""
    return (random_bits(seed, position, stream) >> 11) * 2.0**-53


def choice_seed(seed: int, index: int) -> int:
    """The seed of the index-th choice of one request; choice 0 keeps the request's own."""
    return seed if index == 0 else random_bits(seed, index, _CHOICE_STREAM)


def _words(number: int) -> tuple[int, int]:
    """The low and high 32-bit words of an unsigned 64-bit integer."""
    if not 0 <= number <= _MASK_64:
        raise ValueError(f"{number} is no unsigned 64-bit integer")
    return number & _MASK_32, number >> 32
