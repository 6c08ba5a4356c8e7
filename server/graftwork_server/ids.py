"""Identifiers that the server issues: UUIDv7 (RFC 9562), in order of issue within a process."""

import secrets
import threading
import time
import uuid
from collections.abc import Callable

_RANDOM_BITS = 74  # rand_a (12) and rand_b (62), used as one counter
_MAX_RANDOM = (1 << _RANDOM_BITS) - 1
_MAX_STEP_BITS = 32


class IdGenerator:
    """Issues UUIDv7 strings, each greater than the one before; safe to call from any thread.

    Within one millisecond, or while the clock stands still or goes back, the random part grows by a
    random step (RFC 9562, section 6.2, method 2), so ids stay in order and hard to guess.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """`clock_ns` returns Unix time in nanoseconds, `random_bits(k)` an integer of k bits."""
        self._clock_ns = clock_ns
        self._random_bits = random_bits
        self._lock = threading.Lock()
        self._milliseconds = -1
        self._random = 0

    def new(self) -> str:
        """A new id in the canonical form, 36 characters."""
        with self._lock:
            milliseconds, random = self._advance()
        value = milliseconds << 80  # bits 127..80
        value |= 0x7 << 76  # version
        value |= (random >> 62) << 64  # rand_a
        value |= 0b10 << 62  # variant
        value |= random & ((1 << 62) - 1)  # rand_b
        return str(uuid.UUID(int=value))

    def _advance(self) -> tuple[int, int]:
        now = self._clock_ns() // 1_000_000
        if now > self._milliseconds:
            self._milliseconds = now
            self._random = self._random_bits(_RANDOM_BITS)
            return self._milliseconds, self._random
        self._random += 1 + self._random_bits(_MAX_STEP_BITS)
        if self._random > _MAX_RANDOM:
            # The counter is used up: borrow the next millisecond.
            self._milliseconds += 1
            self._random = self._random_bits(_RANDOM_BITS)
        return self._milliseconds, self._random
