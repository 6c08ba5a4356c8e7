"""Addresses that a kernel reads, by adapter slot: how a module finds each row's adapter."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

from graftwork_server.kernels.segments import Segments

Entry = TypeVar("Entry")


class SlotTable(Generic[Entry]):
    """A row of integers and the entry that owns the memory they point to, for each slot.

    Not locked: `set` and `clear` must not run while a step that uses the table does.
    """

    def __init__(self, max_slots: int, num_columns: int) -> None:
        self.addresses = torch.zeros(max_slots, num_columns, dtype=torch.int64)  # zeros: empty
        self._rows = self.addresses.numpy()
        self._entries: dict[int, Entry] = {}

    def set(self, slot: int, entry: Entry, row: Sequence[int]) -> None:
        """Raises IndexError for a bad slot."""
        self._check(slot)
        self._entries[slot] = entry
        self._rows[slot] = row

    def clear(self, slot: int) -> None:
        """Frees the slot, which may be empty."""
        self._check(slot)
        if self._entries.pop(slot, None) is not None:
            self._rows[slot] = 0

    def get(self, slot: int) -> Entry | None:
        return self._entries.get(slot)

    def concerns(self, segments: Segments) -> bool:
        """Whether any row of a step belongs to a slot with an entry."""
        return not segments.slots.isdisjoint(self._entries)

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.addresses.shape[0]:
            raise IndexError(f"slot {slot} is outside 0 to {self.addresses.shape[0] - 1}")
