"""Modules of the base whose output rows the resident adapters edit, by slot.

A forward hook edits them, so that the base's tree of modules stays as it is; a module that no
resident adapter edits has no hook and costs nothing.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork_server.kernels.module_edits import (
    BottleneckTable,
    KernelBottleneck,
    KernelNorm,
    NormTable,
    add_bottlenecks,
    replace_rms_norm,
)
from graftwork_server.kernels.segments import Segments
from graftwork_server.packed_parts import Edit, RowEdit
from graftwork_server.step_segments import StepSegments


class EditedModule:
    """Edits the output rows of a module: (1, num_rows, ...), alone or first in a tuple."""

    def __init__(
        self, module: nn.Module, step: StepSegments, *, max_slots: int, is_head: bool
    ) -> None:
        self._module = module
        self._step = step
        self._is_head = is_head
        self._slots: set[int] = set()
        self.norms = NormTable(max_slots)
        self.bottlenecks = BottleneckTable(max_slots)
        self._edits: dict[int, RowEdit] = {}
        self._handle: RemovableHandle | None = None

    def place(self, slot: int, edit: Edit) -> None:
        self._slots.add(slot)
        match edit:
            case KernelNorm():
                self.norms.place(slot, edit)
            case KernelBottleneck():
                self.bottlenecks.place(slot, edit)
            case _:
                self._edits[slot] = edit
        if self._handle is None:
            self._handle = self._module.register_forward_hook(self._edit, with_kwargs=True)

    def clear(self, slot: int) -> None:
        self._slots.remove(slot)
        self.norms.clear(slot)
        self.bottlenecks.clear(slot)
        self._edits.pop(slot, None)
        if not self._slots and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _edit(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        del module
        segments = self._step.logit_rows if self._is_head else self._step.tokens
        if segments.slots.isdisjoint(self._slots):
            return output
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        y: Tensor = output[0] if isinstance(output, tuple) else output
        if self.norms.concerns(segments):
            self._replace_norms(x[0], y[0], segments)
        if self.bottlenecks.concerns(segments):
            add_bottlenecks(y[0], self.bottlenecks, segments)
        for slot, start, stop in segments.runs if self._edits else ():
            edit = self._edits.get(slot)
            if edit is not None:
                y[0, start:stop] = edit(x[0, start:stop], y[0, start:stop])
        return output

    def _replace_norms(self, x: Tensor, y: Tensor, segments: Segments) -> None:
        """x, y: (num_rows, ..., features), with several rows of features for each token where the
        norm is of heads."""
        norms = [self.norms.get(slot) for slot in segments.slots]
        norm = next(norm for norm in norms if norm is not None)  # all have the base's constants
        per_token = y[0].numel() // y.shape[-1]
        if per_token != 1:
            segments = segments.scaled(per_token)
        rows = x.contiguous().view(-1, x.shape[-1])
        replace_rms_norm(
            y.view(rows.shape), rows, self.norms, segments, offset=norm.offset, eps=norm.eps
        )
