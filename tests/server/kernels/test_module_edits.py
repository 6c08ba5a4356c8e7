import pytest
import torch
from graftwork_adapters.bottleneck import NON_LINEARITIES
from graftwork_adapters.canonical_parts import GatedPrompt
from graftwork_server.kernels.elementwise import rms_norm_reference
from graftwork_server.kernels.gated_prompts import (
    GatedPromptTable,
    KernelGatedPrompt,
    add_gated_prompts,
)
from graftwork_server.kernels.low_rank import PackedLowRank
from graftwork_server.kernels.module_edits import (
    ACTIVATIONS,
    BottleneckTable,
    KernelBottleneck,
    KernelNorm,
    NormTable,
    add_bottlenecks,
    replace_rms_norm,
)
from graftwork_server.kernels.segments import Segments
from graftwork_server.packed_attention import PackedGatedPrompt
from torch.nn import functional

LENGTHS = [(-1, 2), (3, 1), (0, 5), (1, 1), (2, 21), (0, 1), (4, 70), (5, 3)]
SEGMENTS = Segments.from_lengths(LENGTHS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_of_several_slots(offset):
    table = NormTable(max_slots=6)
    weights = {slot: torch.randn(50) for slot in (0, 1, 2, 4)}
    for slot, weight in weights.items():
        table.place(slot, KernelNorm(weight, offset, 1e-5))
    x, y = torch.randn(SEGMENTS.num_rows, 50), torch.randn(SEGMENTS.num_rows, 50)
    expected = y.clone()
    for slot, start, stop in SEGMENTS.runs:
        if slot in weights:
            expected[start:stop] = rms_norm_reference(
                x[start:stop], weights[slot], offset=offset, eps=1e-5
            )
    replace_rms_norm(y, x, table, SEGMENTS, offset=offset, eps=1e-5)
    torch.testing.assert_close(y, expected)


def test_every_non_linearity_has_a_number():
    assert ACTIVATIONS.keys() == NON_LINEARITIES.keys()


@pytest.mark.parametrize("name", NON_LINEARITIES)
def test_bottlenecks_of_several_slots(name):
    table = BottleneckTable(max_slots=6)
    parts = {}
    for slot, size in ((0, 4), (1, 7), (2, 16), (4, 9)):
        down, up = torch.randn(size, 50), torch.randn(50, size)
        down_bias, up_bias = torch.randn(size), torch.randn(50)
        parts[slot] = down, down_bias, up, up_bias
        pair = PackedLowRank.pack(down, up)
        table.place(slot, KernelBottleneck(pair, down_bias, up_bias, name))
    y = torch.randn(SEGMENTS.num_rows, 50)
    before, expected = y.clone(), y.clone()
    for slot, start, stop in SEGMENTS.runs:
        if slot in parts:
            down, down_bias, up, up_bias = parts[slot]
            h = NON_LINEARITIES[name](functional.linear(before[start:stop], down, down_bias))
            expected[start:stop] += functional.linear(h, up, up_bias)
    add_bottlenecks(y, table, SEGMENTS)
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-4)
    for row, slot in enumerate(SEGMENTS.slot_of_row().tolist()):
        alone = before[row : row + 1].clone()
        add_bottlenecks(alone, table, Segments.from_lengths([(slot, 1)]))
        assert torch.equal(alone[0], y[row])


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 20), (4, 4, 16), (3, 1, 64)])
def test_gated_prompts_of_several_slots(heads, kv_heads, dim):
    table = GatedPromptTable(max_slots=6)
    references = {}
    for slot, length in ((0, 1), (1, 10), (2, 17), (4, 4)):
        keys, values = torch.randn(2, kv_heads, length, dim).unbind()
        prompt = GatedPrompt(keys, values, gate=0.3 + slot)
        table.place(slot, KernelGatedPrompt.pack(prompt))
        references[slot] = PackedGatedPrompt(prompt, heads, torch.device("cpu"), torch.float32)
    query = torch.randn(SEGMENTS.num_rows, heads + 2, dim)[:, 1:-1]
    output = torch.randn(SEGMENTS.num_rows, heads, dim)
    before, expected = output.clone(), output.clone()
    for slot, start, stop in SEGMENTS.runs:
        if slot in references:
            rows = slice(start, stop)
            references[slot].attend(query[rows].transpose(0, 1), expected[rows].transpose(0, 1))
    arguments = {"num_kv_heads": kv_heads, "scale": dim**-0.5}
    add_gated_prompts(output, query, table, SEGMENTS, **arguments)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    for row, slot in enumerate(SEGMENTS.slot_of_row().tolist()):
        alone = before[row : row + 1].clone()
        segments = Segments.from_lengths([(slot, 1)])
        add_gated_prompts(alone, query[row : row + 1], table, segments, **arguments)
        assert torch.equal(alone[0], output[row])


def test_segments_of_several_rows_for_each():
    scaled = Segments.from_lengths([(-1, 1), (2, 3)]).scaled(4)
    assert scaled.runs == ((2, 4, 16),)
    assert scaled.run_table.tolist() == [[2, 4, 16]]
    assert scaled.num_rows == 16
