"""Output scales and bias deltas of many slots on one batch: `y[m] = scale_s * y[m] + bias_s`.

This is the last step of DoRA: `scale * (x W^T + low rank) + b`. A module whose linear has already
added its own bias `b` passes `b - scale * b` here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_server.kernels.build import kernels_loaded
from graftwork_server.kernels.segments import Segments


@dataclass(frozen=True, slots=True)
class OutputScaleEntry:
    scale: Tensor | None  # (out_features,) float32, contiguous; None: ones
    bias: Tensor | None  # (out_features,) float32, contiguous; None: zeros


class OutputScaleTable:
    """Output scales and bias deltas of one linear module by adapter slot.

    Not locked: `set` and `clear` must not run while a step that uses the table does.
    """

    def __init__(self, max_slots: int, out_features: int) -> None:
        self.out_features = out_features
        self._entries: list[OutputScaleEntry | None] = [None] * max_slots
        # (max_slots, 2) int64: addresses of scale and bias, 0 where there is none.
        self.addresses = torch.zeros(max_slots, 2, dtype=torch.int64)
        self._rows = self.addresses.numpy()

    def set(self, slot: int, scale: Tensor | None, bias: Tensor | None) -> None:
        """scale, bias: (out_features,), any float dtype; kept as float32.

        Raises ValueError where a shape does not fit, IndexError for a bad slot.
        """
        self._check(slot)
        entry = OutputScaleEntry(self._prepare(scale), self._prepare(bias))
        self._entries[slot] = entry
        self._rows[slot] = (_address(entry.scale), _address(entry.bias))

    def clear(self, slot: int) -> None:
        """Frees the slot; an empty slot changes nothing."""
        self._check(slot)
        self._rows[slot] = 0
        self._entries[slot] = None

    def get(self, slot: int) -> OutputScaleEntry | None:
        self._check(slot)
        return self._entries[slot]

    def _prepare(self, vector: Tensor | None) -> Tensor | None:
        if vector is None:
            return None
        if vector.shape != (self.out_features,):
            raise ValueError(
                f"a vector of shape {tuple(vector.shape)} does not fit {self.out_features} outputs"
            )
        return vector.detach().to(torch.float32).contiguous()

    def _check(self, slot: int) -> None:
        if not 0 <= slot < len(self._entries):
            raise IndexError(f"slot {slot} is outside 0 to {len(self._entries) - 1}")


def _address(vector: Tensor | None) -> int:
    return 0 if vector is None else vector.data_ptr()


def apply_output_scale(y: Tensor, table: OutputScaleTable, segments: Segments) -> None:
    """Scales and shifts each row of y (rows, out_features) float32 by its slot, in place.

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    if y.device.type == "cpu" and kernels_loaded():
        torch.ops.graftwork.apply_output_scale.default(y, table.addresses, segments.run_table)
    else:
        apply_output_scale_reference(y, table, segments)


def apply_output_scale_reference(y: Tensor, table: OutputScaleTable, segments: Segments) -> None:
    """The same in plain torch, on any device."""
    for slot, start, stop in segments.runs:
        entry = table.get(slot)
        if entry is None:
            continue
        if entry.scale is not None:
            y[start:stop] *= entry.scale
        if entry.bias is not None:
            y[start:stop] += entry.bias
