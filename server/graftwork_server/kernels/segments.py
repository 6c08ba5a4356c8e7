"""Which rows of a step belong to which adapter slot: integers, computed once per step."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """The rows of one step by adapter slot."""

    num_rows: int
    runs: tuple[tuple[int, int, int], ...]  # (slot, start, stop), base rows (slot -1) left out
    run_table: Tensor  # (len(runs), 3) int32 on the CPU: the same for the kernels
    slots: frozenset[int]  # of the runs

    @classmethod
    def from_lengths(cls, lengths: Iterable[tuple[int, int]]) -> "Segments":
        """From (slot, number of rows) in row order; slot -1 is the base. Neighbours of one slot
        become one run."""
        runs: list[tuple[int, int, int]] = []
        row = 0
        for slot, length in lengths:
            start, row = row, row + length
            if slot < 0 or length == 0:
                continue
            if runs and runs[-1][0] == slot and runs[-1][2] == start:
                runs[-1] = (slot, runs[-1][1], row)
            else:
                runs.append((slot, start, row))
        table = torch.tensor(runs, dtype=torch.int32).reshape(len(runs), 3)
        return cls(row, tuple(runs), table, frozenset(slot for slot, _, _ in runs))

    def scaled(self, factor: int) -> "Segments":
        """Of as many rows for each row."""
        runs = tuple((slot, start * factor, stop * factor) for slot, start, stop in self.runs)
        table = self.run_table * torch.tensor([1, factor, factor], dtype=torch.int32)
        return Segments(self.num_rows * factor, runs, table, self.slots)

    def slot_of_row(self) -> Tensor:
        """(num_rows,) int32, -1 for the base."""
        slots = torch.full((self.num_rows,), -1, dtype=torch.int32)
        for slot, start, stop in self.runs:
            slots[start:stop] = slot
        return slots
