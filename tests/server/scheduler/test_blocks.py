import pytest
from graftwork_server.blocks import BlockManager, IntegrityError, PrefixKeys
from graftwork_server.request import SamplingParams, Sequence


def keys(tokens, digest="", block_size=2):
    sequence = Sequence(0, tuple(tokens), SamplingParams(seed=0), 1, adapter_digest=digest)
    return list(PrefixKeys(sequence, block_size).first(len(tokens) // block_size))


def cached(blocks, tokens):
    """Computes, publishes and frees the blocks of `tokens`."""
    chain = keys(tokens)
    taken = blocks.allocate(len(chain))
    for block, key in zip(taken, chain, strict=True):
        blocks.publish(block, key)
    blocks.free(taken)
    return taken


def test_keys_depend_on_adapter_tokens_and_all_that_comes_before():
    assert keys([1, 2, 3, 4]) == keys([1, 2, 3, 4])
    assert keys([1, 2, 3, 4])[0] == keys([1, 2, 9, 9])[0]
    assert keys([1, 2, 3, 4])[1] != keys([9, 2, 3, 4])[1]
    assert keys([3, 4])[0] != keys([1, 2, 3, 4])[1]
    assert keys([1, 2], "a")[0] != keys([1, 2], "b")[0]
    assert keys([-1, -2], "a")[0] != keys([1, 2], "a")[0]
    assert len(keys([1, 2])[0]) == 16


def test_keys_follow_the_output():
    sequence = Sequence(0, (1, 2, 3), SamplingParams(seed=0), 5)
    chain = PrefixKeys(sequence, 2)
    first = chain[0]
    sequence.output_token_ids += [4, 5]
    assert [first, chain[1]] == keys([1, 2, 3, 4, 5])


def test_match_stops_at_the_first_block_that_is_missing():
    blocks = BlockManager(8, 2)
    taken = cached(blocks, [1, 2, 3, 4])
    assert blocks.match(keys([1, 2, 3, 4, 5, 6])) == taken
    assert blocks.match(keys([1, 2, 9, 4, 5, 6])) == taken[:1]
    assert blocks.match(keys([9, 2, 3, 4])) == []


def test_allocation_is_all_or_nothing():
    blocks = BlockManager(4, 2)
    assert blocks.allocate(5) is None
    assert blocks.allocate(3, spare=2) is None
    assert blocks.num_available == 4
    assert blocks.allocate(3, spare=1) is not None
    assert blocks.num_available == 1
    assert blocks.usage == 0.75


def test_reuse_of_unreferenced_blocks_counts_against_what_is_available():
    blocks = BlockManager(3, 2)
    taken = cached(blocks, [1, 2, 3, 4])
    assert blocks.num_available == 3
    assert blocks.allocate(2, taken) is None
    assert blocks.allocate(1, taken) is not None
    assert blocks.num_available == 0


def test_shared_blocks_are_available_when_the_last_holder_leaves():
    blocks = BlockManager(4, 2)
    taken = cached(blocks, [1, 2])
    first, second = blocks.allocate(0, taken), blocks.allocate(0, taken)
    blocks.free(first)
    assert blocks.num_available == 3
    blocks.free(second)
    assert blocks.num_available == 4
    blocks.check_integrity(idle=True)


def test_the_least_recently_used_is_evicted_and_a_tail_before_its_head():
    blocks = BlockManager(4, 2)
    cached(blocks, [1, 2, 3, 4])
    cached(blocks, [5, 6, 7, 8])
    blocks.free(blocks.allocate(0, blocks.match(keys([1, 2, 3, 4]))))  # now used later
    blocks.allocate(1)
    assert len(blocks.match(keys([5, 6, 7, 8]))) == 1
    blocks.allocate(2)
    assert len(blocks.match(keys([5, 6, 7, 8]))) == 0
    assert len(blocks.match(keys([1, 2, 3, 4]))) == 1
    blocks.check_integrity()


def test_free_blocks_are_taken_before_cached_ones():
    blocks = BlockManager(3, 2)
    cached(blocks, [1, 2])
    blocks.allocate(2)
    assert len(blocks.match(keys([1, 2]))) == 1


def test_a_second_block_of_one_key_is_not_cached():
    blocks = BlockManager(4, 2)
    first, second = blocks.allocate(2)
    (key,) = keys([1, 2])
    blocks.publish(first, key)
    blocks.publish(second, key)
    assert blocks.match([key]) == [first]
    blocks.free([second, first])
    assert blocks.match([key]) == [first]
    blocks.check_integrity(idle=True)


def test_freeing_twice_is_noticed():
    blocks = BlockManager(2, 2)
    taken = blocks.allocate(1)
    blocks.free(taken)
    with pytest.raises(IntegrityError, match="freed twice"):
        blocks.free(taken)


def test_a_leak_is_noticed():
    blocks = BlockManager(2, 2)
    blocks.allocate(1)
    blocks.check_integrity()
    with pytest.raises(IntegrityError, match="1 blocks are referenced"):
        blocks.check_integrity(idle=True)
