"""Adapters on the device: what is grafted onto each linear module of the base, by slot.

The base's linear modules are wrapped in `GraftedLinear`s, which call the base's own and add what
the rows' adapters do. The base's tensors are never written.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from graftwork_adapters.canonical import LinearModule
from torch import Tensor, nn

from graftwork_server.attention import GatedRun, GatedTokens, PrefixWrite
from graftwork_server.base_model import BaseModel
from graftwork_server.decoder_stack import (
    DecoderStack,
    LinearTables,
    StackedLayer,
    stacked_layers,
)
from graftwork_server.edited_module import EditedModule
from graftwork_server.fusion import WholeList
from graftwork_server.kernels.gated_prompts import GatedPromptTable
from graftwork_server.kernels.input_transforms import InputTable, KernelInput, transform_inputs
from graftwork_server.kernels.low_rank import LowRankTable, add_low_rank
from graftwork_server.kernels.module_edits import KernelBottleneck, KernelNorm
from graftwork_server.kernels.output_scale import OutputScaleTable, apply_output_scale
from graftwork_server.kernels.pair_rotation import (
    KernelPairRotation,
    PairRotationTable,
    rotate_pairs,
)
from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.terms import KernelTerm, TermTable, add_terms
from graftwork_server.packed_adapter import PackedAdapter, PackedModule
from graftwork_server.packed_parts import PackedParts
from graftwork_server.packed_terms import PackedTerm
from graftwork_server.packed_terms import add_terms as add_torch_terms
from graftwork_server.packed_transforms import (
    PackedBlockRotations,
    PackedInput,
    PackedPairRotation,
    PackedScale,
    transform_rows,
)
from graftwork_server.step_segments import NO_SEGMENTS, StepSegments

logger = logging.getLogger(__name__)


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
        self._slots: set[int] = set()  # that change this module
        self._low_rank_slots: set[int] = set()
        self._output_scale_slots: set[int] = set()
        self._inputs = InputTable(max_slots)
        self._terms = TermTable(max_slots)
        self._rotations = PairRotationTable(max_slots)
        self._torch_inputs: dict[int, PackedInput] = {}
        self._torch_terms: dict[int, PackedTerm] = {}
        self._torch_rotations: dict[int, PackedPairRotation] = {}
        self._step = step
        self._is_head = is_head  # the head sees the rows whose logits are wanted, not all tokens

    def place(self, slot: int, module: PackedModule) -> None:
        self._slots.add(slot)
        if module.low_rank is not None:
            self._low_rank.set(slot, module.low_rank)
            self._low_rank_slots.add(slot)
        if module.scale is not None or module.bias is not None:
            self._output_scale.set(slot, module.scale, module.bias)
            self._output_scale_slots.add(slot)
        match module.input:
            case KernelInput():
                self._inputs.place(slot, module.input)
            case PackedScale() | PackedBlockRotations():
                self._torch_inputs[slot] = module.input
        match module.rotation:
            case KernelPairRotation():
                self._rotations.place(slot, module.rotation)
            case PackedPairRotation():
                self._torch_rotations[slot] = module.rotation
        if isinstance(module.term, KernelTerm):
            self._terms.place(slot, module.term)
        elif module.term is not None:
            self._torch_terms[slot] = module.term

    def clear(self, slot: int) -> None:
        self._slots.remove(slot)
        if slot in self._low_rank_slots:
            self._low_rank.clear(slot)
            self._low_rank_slots.remove(slot)
        if slot in self._output_scale_slots:
            self._output_scale.clear(slot)
            self._output_scale_slots.remove(slot)
        for table in (self._inputs, self._terms, self._rotations):
            table.clear(slot)
        for entries in (self._torch_inputs, self._torch_terms, self._torch_rotations):
            entries.pop(slot, None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self._is_head:
            self._step.head_input = x
        if self._segments.slots.isdisjoint(self._slots):
            unchanged: Tensor = self.base(x)
            return unchanged
        segments = self._segments
        x = self._transform(x, segments)
        y: Tensor = self.base(x)
        rows = x.reshape(-1, x.shape[-1])
        out = y.view(-1, y.shape[-1])
        if not segments.slots.isdisjoint(self._low_rank_slots):
            add_low_rank(out, rows, self._low_rank, segments)
        if self._terms.concerns(segments):
            add_terms(out, rows, self._terms, segments)
        if self._torch_terms:
            add_torch_terms(out, rows, self._torch_terms, segments.runs)
        if not segments.slots.isdisjoint(self._output_scale_slots):
            apply_output_scale(out, self._output_scale, segments)
        if self._rotations.concerns(segments):
            rotate_pairs(out, self._rotations, segments)
        if self._torch_rotations:
            y = transform_rows(out, self._torch_rotations, segments.runs).view(y.shape)
        return y

    @property
    def tables(self) -> LinearTables:
        return LinearTables(
            self._inputs.addresses,
            self._low_rank.addresses,
            self._terms.addresses,
            self._output_scale.addresses,
            self._rotations.addresses,
        )

    @property
    def _segments(self) -> Segments:
        return self._step.logit_rows if self._is_head else self._step.tokens

    def _transform(self, x: Tensor, segments: Segments) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self._inputs.concerns(segments):
            rows = transform_inputs(rows, self._inputs, segments)
        if self._torch_inputs:
            rows = transform_rows(rows, self._torch_inputs, segments.runs)
        return rows.view(x.shape)


class DeviceAdapters:
    """The slots of all grafted modules together; written between steps only."""

    def __init__(self, base: BaseModel, *, max_slots: int) -> None:
        self._step = StepSegments()
        self._max_slots = max_slots
        self._gated_slots: set[int] = set()
        self._gated_tables: dict[int, GatedPromptTable] = {}
        self._virtual_tokens: dict[int, Tensor] = {}
        self._adapters: dict[int, PackedAdapter] = {}
        self._parts: dict[int, PackedParts] = {}
        self._base = base
        stacks = stacked_layers(base.model)
        self._edited: dict[str, EditedModule] = {}
        self._embedding = base.model.get_input_embeddings()
        head = base.model.get_output_embeddings()
        self._grafts: dict[str, GraftedLinear] = {}
        for name, shape in base.linear_modules.items():
            module = base.model.get_submodule(name)
            graft = GraftedLinear(
                module, shape, self._step, max_slots=max_slots, is_head=module is head
            )
            base.model.set_submodule(name, graft)
            self._grafts[name] = graft
        self._layer_prefixes = tuple(f"{layer.name}." for layer in base.layers)
        self._stacked_edits: dict[str, type] = {}  # what the stacks do themselves, by module
        self._unstacked_slots: set[int] = set()  # of adapters that do anything else in a layer
        for name, layers in stacks.items():
            try:
                self._stack(name, layers)
            except RuntimeError as error:
                logger.warning("%s: its layers are computed module by module: %s", name, error)

    def _stack(self, list_name: str, layers: Sequence[StackedLayer]) -> None:
        """Lets one stack stand for the layers of a list. Raises RuntimeError where they do not fit
        each other."""
        modules = cast("WholeList", self._base.model.get_submodule(list_name))
        stack = DecoderStack(modules, self._step)
        indices = {layer.name: index for index, layer in enumerate(self._base.layers)}
        for layer in layers:
            index = indices[layer.name]
            self._gated_tables[index] = GatedPromptTable(self._max_slots)
            stack.add(
                layer,
                {name: self._grafts[name].tables for name in layer.linears},
                [self._edited_module(name).norms.addresses for name in layer.norm_names],
                [self._edited_module(name).bottlenecks.addresses for name in layer.block_names],
                self._gated_tables[index].addresses,
            )
        for layer in layers:
            self._stacked_edits.update(dict.fromkeys(layer.norm_names, KernelNorm))
            self._stacked_edits.update(dict.fromkeys(layer.block_names, KernelBottleneck))
        modules.stand_in = stack

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        """Makes an empty slot hold an adapter, whose tensors it shares."""
        for name, module in adapter.modules.items():
            self._grafts[name].place(slot, module)
        if adapter.virtual_tokens is not None:
            self._virtual_tokens[slot] = adapter.virtual_tokens
        for name, edit in adapter.parts.edits.items():
            self._edited_module(name).place(slot, edit)
        for layer, prompt in adapter.parts.kernel_gated_prompts.items():
            if layer not in self._gated_tables:
                self._gated_tables[layer] = GatedPromptTable(self._max_slots)
            self._gated_tables[layer].place(slot, prompt)
            self._gated_slots.add(slot)
        self._parts[slot] = adapter.parts
        self._adapters[slot] = adapter
        if not self._is_stackable(adapter):
            self._unstacked_slots.add(slot)

    def _is_stackable(self, adapter: PackedAdapter) -> bool:
        """Whether the stacks do all that the adapter does within decoder layers."""
        return (
            all(module.is_for_kernels for module in adapter.modules.values())
            and all(
                isinstance(edit, self._stacked_edits.get(name, ()))
                or not f"{name}.".startswith(self._layer_prefixes)
                for name, edit in adapter.parts.edits.items()
            )
            and not adapter.parts.gated_prompts
        )

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        for name in self._adapters.pop(slot).modules:
            self._grafts[name].clear(slot)
        for name in self._parts.pop(slot).edits:
            self._edited[name].clear(slot)
        if slot in self._gated_slots:
            self._gated_slots.remove(slot)
            for table in self._gated_tables.values():
                table.clear(slot)
        self._virtual_tokens.pop(slot, None)
        self._unstacked_slots.discard(slot)

    @contextmanager
    def step(self, tokens: Segments, logit_rows: Segments) -> Iterator[None]:
        """While inside, the base's modules act with these segments' adapters."""
        self._step.tokens, self._step.logit_rows = tokens, logit_rows
        self._step.is_stackable = tokens.slots.isdisjoint(self._unstacked_slots)
        try:
            yield
        finally:
            self._step.is_stackable = False
            self._step.tokens = self._step.logit_rows = NO_SEGMENTS
            self._step.head_input = None

    def embed(self, token_ids: Tensor, segments: Segments) -> Tensor:
        """The embeddings of a step's tokens: (num_tokens, hidden_size).

        token_ids: (num_tokens,) int64; id -(i + 1) is row i of the virtual tokens of its slot.
        Those of a key/value prefix get embeddings that nothing reads.
        """
        real_ids = token_ids.clamp_min(0)
        embeddings: Tensor = self._embedding(real_ids)
        for slot, start, stop in segments.runs:
            own = self._parts[slot].embedding
            if own is not None:
                own.embed(real_ids[start:stop], embeddings[start:stop])
            table = self._virtual_tokens.get(slot)
            if table is None:
                continue
            ids = token_ids[start:stop]
            rows = torch.nonzero(ids < 0).squeeze(-1)
            if rows.numel():
                embeddings[start + rows] = table[-ids[rows] - 1]
        return embeddings

    def prefix_writes(self, token_ids: Tensor, segments: Segments) -> tuple[PrefixWrite, ...]:
        """The virtual tokens of a step that stand for key/value prefixes."""
        writes = []
        for slot, start, stop in segments.runs:
            prefix = self._parts[slot].prefix
            if prefix is None:
                continue
            ids = token_ids[start:stop]
            rows = torch.nonzero(ids < 0).squeeze(-1)
            if rows.numel():
                writes.append(PrefixWrite(start + rows, -ids[rows] - 1, prefix))
        return tuple(writes)

    def has_prefix(self, slot: int) -> bool:
        """Whether the virtual tokens of a slot's adapter are keys and values only."""
        return slot in self._parts and self._parts[slot].prefix is not None

    def gated_runs(self, segments: Segments) -> tuple[GatedRun, ...]:
        """The tokens of a step whose adapters have gated prompts for torch to compute."""
        return tuple(
            GatedRun(start, stop, self._parts[slot].gated_prompts)
            for slot, start, stop in segments.runs
            if self._parts[slot].gated_prompts
        )

    def gated_tokens(self, segments: Segments) -> GatedTokens | None:
        """What the kernel needs for the gated prompts of a step, if there are any."""
        if segments.slots.isdisjoint(self._gated_slots):
            return None
        return GatedTokens(segments, self._gated_tables)

    def class_scores(self, slot: int, logit_row: int) -> tuple[float, ...]:
        """Of the classifier in a slot, from a row whose logits the step in progress computed."""
        classifier, hidden = self._parts[slot].classifier, self._step.head_input
        if classifier is None or hidden is None:
            raise RuntimeError(f"slot {slot} holds no classifier, or no step is in progress")
        return classifier.scores(hidden.reshape(-1, hidden.shape[-1])[logit_row])

    def _edited_module(self, name: str) -> EditedModule:
        if name not in self._edited:
            graft = self._grafts.get(name)
            module = self._base.model.get_submodule(name) if graft is None else graft.base
            is_head = name == self._base.head_name
            self._edited[name] = EditedModule(
                module, self._step, max_slots=self._max_slots, is_head=is_head
            )
        return self._edited[name]
