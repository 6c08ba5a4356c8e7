import torch
from graftwork_server.kernels.segments import Segments


def test_neighbours_of_one_slot_become_one_run():
    segments = Segments.from_lengths([(-1, 2), (3, 1), (3, 4), (0, 0), (1, 2), (3, 1)])
    assert segments.num_rows == 10
    assert segments.runs == ((3, 2, 7), (1, 7, 9), (3, 9, 10))
    assert segments.run_table.tolist() == [list(run) for run in segments.runs]
    assert segments.slot_of_row().tolist() == [-1, -1, 3, 3, 3, 3, 3, 1, 1, 3]


def test_base_rows_have_no_runs():
    segments = Segments.from_lengths([(-1, 4)])
    assert segments.runs == ()
    assert segments.run_table.shape == (0, 3)
    assert segments.run_table.dtype == torch.int32
