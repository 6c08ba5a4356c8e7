import pytest
import torch
from graftwork_server.kernels.output_scale import (
    OutputScaleTable,
    apply_output_scale,
    apply_output_scale_reference,
)
from graftwork_server.kernels.segments import Segments


def test_kernel_agrees_with_reference_and_leaves_the_base():
    torch.manual_seed(0)
    table = OutputScaleTable(5, 50)
    table.set(0, torch.randn(50), torch.randn(50))
    table.set(1, torch.randn(50).half(), None)
    table.set(2, None, torch.randn(50).double())
    table.set(3, torch.randn(50), None)
    table.clear(3)
    segments = Segments.from_lengths([(-1, 3), (2, 70), (0, 1), (3, 2), (4, 1), (1, 2)])
    before = torch.randn(segments.num_rows, 50)
    y, expected = before.clone(), before.clone()
    apply_output_scale(y, table, segments)
    apply_output_scale_reference(expected, table, segments)
    torch.testing.assert_close(y, expected)
    assert torch.equal(y[:3], before[:3])
    assert torch.equal(y[74:77], before[74:77])


def test_a_vector_of_another_length_is_refused():
    table = OutputScaleTable(1, 8)
    with pytest.raises(ValueError, match="does not fit"):
        table.set(0, torch.ones(7), None)
    with pytest.raises(IndexError):
        table.set(1, None, None)
