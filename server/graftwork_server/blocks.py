"""Blocks of the paged key/value cache: who holds them, and which can be read again.

A block is *free* (nothing worth keeping), *referenced* (sequences read or write it), or *cached*
(nobody holds it, but its content has a key and can be found again). Free and cached blocks are
available; cached ones are taken last, the least recently used first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from graftwork_server import request


class IntegrityError(RuntimeError):
    """The accounting contradicts itself: a defect of the scheduler, never a caller's mistake."""


class PrefixKeys:
    """The hash chain over the full blocks of one sequence, extended as far as it is asked for.

    The key of a block is BLAKE2b-128 over the key of the block before and the block's token ids;
    the chain starts at the adapter's digest. Two blocks of one key hold the same keys and values:
    same adapter, same tokens at the same positions after the same tokens.
    """

    def __init__(self, sequence: request.Sequence, block_size: int) -> None:
        self._sequence = sequence
        self._block_size = block_size
        self._seed = hashlib.blake2b(sequence.adapter_digest.encode(), digest_size=16).digest()
        self._keys: list[bytes] = []

    def __getitem__(self, index: int) -> bytes:
        """The key of the block of positions [index * block_size, (index + 1) * block_size)."""
        keys, size = self._keys, self._block_size
        while len(keys) <= index:
            start = len(keys) * size
            token_ids = array("q", self._sequence.token_ids(start, start + size))
            parent = keys[-1] if keys else self._seed
            keys.append(hashlib.blake2b(parent + token_ids.tobytes(), digest_size=16).digest())
        return keys[index]

    def first(self, count: int) -> Iterable[bytes]:
        """The keys of the first `count` blocks, computed one by one as they are consumed."""
        return (self[index] for index in range(count))


class BlockManager:
    """Reference counts and prefix cache over `num_blocks` blocks of `block_size` positions.

    Without `prefix_cache` no block is ever found again.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.num_query_tokens = 0  # tokens looked up in the prefix cache
        self.num_hit_tokens = 0  # of these, found
        self._references = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # taken from the end
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """The referenced share of all blocks, in [0, 1]."""
        return 1.0 - self.num_available / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """The number of blocks that `num_tokens` positions take."""
        return -(-num_tokens // self.block_size)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest run of `keys`, from the first, that is in the cache. Takes no
        reference: pass them to `allocate` before anything else is allocated."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def allocate(self, count: int, reuse: Sequence[int] = (), spare: int = 0) -> list[int] | None:
        """References the matched blocks `reuse` and `count` others whose content is nobody's.

        Returns `reuse` and the others in one list, or None, with nothing changed, if fewer than
        `spare` blocks would stay available.
        """
        revived = sum(self._references[block] == 0 for block in reuse)
        if self.num_available - revived - count < spare:
            return None
        for block in reuse:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1
        return [*reuse, *(self._take() for _ in range(count))]

    def free(self, block_ids: Sequence[int]) -> None:
        """Drops one reference of each. Of blocks freed together the later are evicted first: a
        prefix is of use without what follows it, not the other way round."""
        for block in reversed(block_ids):
            if self._references[block] <= 0:
                raise IntegrityError(f"block {block} is freed twice")
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._key_of[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Makes a referenced block, all of whose positions are computed, findable by its key. Where
        another block has the key already, that one stays the block of record."""
        if self.prefix_cache and key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def count_lookup(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        self.num_query_tokens += num_query_tokens
        self.num_hit_tokens += num_hit_tokens

    def check_integrity(self, *, idle: bool = False) -> None:
        """Raises IntegrityError if a block is in two places or in none; `idle`: or referenced."""
        available = [*self._free, *self._cached]
        referenced = [block for block, count in enumerate(self._references) if count > 0]
        if sorted([*available, *referenced]) != list(range(self.num_blocks)):
            raise IntegrityError("a block is both available and referenced, or neither")
        if idle and referenced:
            raise IntegrityError(f"{len(referenced)} blocks are referenced, and nothing runs")
        keyed = {key: block for block, key in enumerate(self._key_of) if key is not None}
        if keyed != self._block_of:
            raise IntegrityError("keys and blocks of the prefix cache disagree")
        if any(self._key_of[block] is not None for block in self._free):
            raise IntegrityError("a free block has a key")
        if any(self._key_of[block] is None for block in self._cached):
            raise IntegrityError("a cached block has no key")

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            key = self._key_of[block]
            if key is None:
                raise IntegrityError("a cached block has no key")
            del self._block_of[key]
            self._key_of[block] = None
        self._references[block] = 1
        return block
