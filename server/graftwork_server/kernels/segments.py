"""Which rows of a step belong to which adapter slot: integers, computed once per step."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

TILE_ROWS = 16  # rows that a kernel on CUDA takes together


@dataclass(frozen=True, slots=True)
class Segments:
    """The rows of one step by adapter slot."""

    num_rows: int
    runs: tuple[tuple[int, int, int], ...]  # (slot, start, stop), base rows (slot -1) left out
    run_table: Tensor  # (len(runs), 3) int32 on the CPU: the same for the kernels
    slots: frozenset[int]  # of the runs
    _tiles: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

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

    def tiles(self, device: torch.device) -> Tensor:
        """The runs cut into tiles of at most TILE_ROWS rows: (num_tiles, 3) int32 on `device`,
        (slot, start, stop) each. Moved once, however often it is asked for."""
        if device not in self._tiles:
            tiles = [
                (slot, first, min(first + TILE_ROWS, stop))
                for slot, start, stop in self.runs
                for first in range(start, stop, TILE_ROWS)
            ]
            table = torch.tensor(tiles, dtype=torch.int32).reshape(len(tiles), 3)
            self._tiles[device] = table.to(device)
        return self._tiles[device]

    def slot_of_row(self) -> Tensor:
        """(num_rows,) int32, -1 for the base."""
        slots = torch.full((self.num_rows,), -1, dtype=torch.int32)
        for slot, start, stop in self.runs:
            slots[start:stop] = slot
        return slots
