"""Adapters on the device: what is grafted onto each linear module of the base, by slot.

The base's linear modules are wrapped in `GraftedLinear`s, which call the base's own and add what
the rows' adapters do. The base's tensors are never written.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from graftwork_adapters.canonical import LinearModule
from torch import Tensor, nn

from graftwork_server.base_model import BaseModel
from graftwork_server.kernels.low_rank import LowRankTable, add_low_rank
from graftwork_server.kernels.output_scale import OutputScaleTable, apply_output_scale
from graftwork_server.kernels.segments import Segments
from graftwork_server.packed_adapter import PackedAdapter, PackedModule
from graftwork_server.packed_terms import PackedTerm, add_terms
from graftwork_server.packed_transforms import PackedInput, PackedPairRotation, transform_rows

NO_SEGMENTS = Segments.from_lengths([])


class StepSegments:
    """The segments of the step in progress, shared by all grafted modules."""

    def __init__(self) -> None:
        self.tokens = NO_SEGMENTS
        self.logit_rows = NO_SEGMENTS


class GraftedLinear(nn.Module):
    """A linear module of the base, with what the resident adapters do to its input and output."""

    def __init__(
        self,
        base: nn.Module,
        shape: LinearModule,
        step: StepSegments,
        *,
        max_slots: int,
        is_head: bool,
    ) -> None:
        super().__init__()
        self.base = base
        self._low_rank = LowRankTable(max_slots, shape.in_features, shape.out_features)
        self._output_scale = OutputScaleTable(max_slots, shape.out_features)
        self._low_rank_slots: set[int] = set()
        self._output_scale_slots: set[int] = set()
        self._inputs: dict[int, PackedInput] = {}
        self._terms: dict[int, PackedTerm] = {}
        self._rotations: dict[int, PackedPairRotation] = {}
        self._step = step
        self._is_head = is_head  # the head sees the rows whose logits are wanted, not all tokens

    def place(self, slot: int, module: PackedModule) -> None:
        if module.low_rank is not None:
            self._low_rank.set(slot, module.low_rank)
            self._low_rank_slots.add(slot)
        if module.scale is not None or module.bias is not None:
            self._output_scale.set(slot, module.scale, module.bias)
            self._output_scale_slots.add(slot)
        if module.input is not None:
            self._inputs[slot] = module.input
        if module.term is not None:
            self._terms[slot] = module.term
        if module.rotation is not None:
            self._rotations[slot] = module.rotation

    def clear(self, slot: int) -> None:
        if slot in self._low_rank_slots:
            self._low_rank.clear(slot)
            self._low_rank_slots.remove(slot)
        if slot in self._output_scale_slots:
            self._output_scale.clear(slot)
            self._output_scale_slots.remove(slot)
        self._inputs.pop(slot, None)
        self._terms.pop(slot, None)
        self._rotations.pop(slot, None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        segments = self._step.logit_rows if self._is_head else self._step.tokens
        runs = segments.runs
        if runs and self._inputs:
            rows = x.reshape(-1, x.shape[-1])
            x = transform_rows(rows, self._inputs, runs).view(x.shape)
        y: Tensor = self.base(x)
        if runs:
            rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
            if self._low_rank_slots:
                add_low_rank(out, rows, self._low_rank, segments)
            if self._terms:
                add_terms(out, rows, self._terms, runs)
            if self._output_scale_slots:
                apply_output_scale(out, self._output_scale, segments)
            if self._rotations:
                y = transform_rows(out, self._rotations, runs).view(y.shape)
        return y


class DeviceAdapters:
    """The slots of all grafted modules together; written between steps only."""

    def __init__(self, base: BaseModel, *, max_slots: int) -> None:
        self._step = StepSegments()
        self._virtual_tokens: dict[int, Tensor] = {}
        self._adapters: dict[int, PackedAdapter] = {}
        head = base.model.get_output_embeddings()
        self._grafts: dict[str, GraftedLinear] = {}
        for name, shape in base.linear_modules.items():
            module = base.model.get_submodule(name)
            graft = GraftedLinear(
                module, shape, self._step, max_slots=max_slots, is_head=module is head
            )
            base.model.set_submodule(name, graft)
            self._grafts[name] = graft

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        """Makes an empty slot hold an adapter, whose tensors it shares."""
        for name, module in adapter.modules.items():
            self._grafts[name].place(slot, module)
        if adapter.virtual_tokens is not None:
            self._virtual_tokens[slot] = adapter.virtual_tokens
        self._adapters[slot] = adapter

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        for name in self._adapters.pop(slot).modules:
            self._grafts[name].clear(slot)
        self._virtual_tokens.pop(slot, None)

    @contextmanager
    def step(self, tokens: Segments, logit_rows: Segments) -> Iterator[None]:
        """While inside, the base's modules act with these segments' adapters."""
        self._step.tokens, self._step.logit_rows = tokens, logit_rows
        try:
            yield
        finally:
            self._step.tokens = self._step.logit_rows = NO_SEGMENTS

    def put_virtual_tokens(self, embeddings: Tensor, token_ids: Tensor, segments: Segments) -> None:
        """Writes the embeddings of virtual tokens into (num_tokens, hidden_size), in place.

        token_ids: (num_tokens,) int64; id -(i + 1) is row i of the virtual tokens of its slot.
        """
        for slot, start, stop in segments.runs:
            table = self._virtual_tokens.get(slot)
            if table is None:
                continue
            ids = token_ids[start:stop]
            rows = torch.nonzero(ids < 0).squeeze(-1)
            if rows.numel():
                embeddings[start + rows] = table[-ids[rows] - 1]
