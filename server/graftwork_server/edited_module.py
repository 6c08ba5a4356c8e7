"""Modules of the base whose output rows the resident adapters edit, by slot.

A forward hook edits them, so that the base's tree of modules stays as it is; a module that no
resident adapter edits has no hook and costs nothing.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork_server.packed_parts import RowEdit
from graftwork_server.step_segments import StepSegments


class EditedModule:
    """Edits the output rows of a module: (1, num_rows, ...), alone or first in a tuple."""

    def __init__(self, module: nn.Module, step: StepSegments, *, is_head: bool) -> None:
        self._module = module
        self._step = step
        self._is_head = is_head
        self._edits: dict[int, RowEdit] = {}
        self._handle: RemovableHandle | None = None

    def place(self, slot: int, edit: RowEdit) -> None:
        self._edits[slot] = edit
        if self._handle is None:
            self._handle = self._module.register_forward_hook(self._edit, with_kwargs=True)

    def clear(self, slot: int) -> None:
        del self._edits[slot]
        if not self._edits and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _edit(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        del module
        segments = self._step.logit_rows if self._is_head else self._step.tokens
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        y: Tensor = output[0] if isinstance(output, tuple) else output
        for slot, start, stop in segments.runs:
            edit = self._edits.get(slot)
            if edit is not None:
                y[0, start:stop] = edit(x[0, start:stop], y[0, start:stop])
        return output
