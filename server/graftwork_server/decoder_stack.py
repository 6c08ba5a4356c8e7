"""A base's decoder layers in one call of the CPU kernels.

Module by module a step of a small model is some 400 calls from Python, each of which also waits for
the interpreter's lock beside a busy event loop. One call for all layers computes the same bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from graftwork_server.attention import AttentionStep
from graftwork_server.fusion import FusedAttention, FusedGatedMlp, FusedRmsNorm, WholeList
from graftwork_server.kernels.build import kernels_loaded
from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.step_segments import StepSegments

# norm, attention, residual, norm, MLP, residual
_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}


@dataclass(frozen=True, slots=True)
class LinearTables:
    """What adapters do to one linear module, by slot: tables of addresses."""

    inputs: Tensor
    low_ranks: Tensor
    terms: Tensor
    output_scales: Tensor
    rotations: Tensor


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """A decoder layer as the kernel computes it."""

    name: str
    attention_norm: FusedRmsNorm
    attention: FusedAttention
    mlp_norm: FusedRmsNorm
    linears: Mapping[str, Int8Linear]  # q, k, v, o, gate, up and down by full name

    @property
    def norm_names(self) -> tuple[str, str]:
        return f"{self.name}.input_layernorm", f"{self.name}.post_attention_layernorm"

    @property
    def block_names(self) -> tuple[str, str, str]:
        """Of the modules behind which a bottleneck may stand."""
        return f"{self.name}.self_attn", f"{self.name}.mlp", self.name


def stacked_layers(model: nn.Module) -> dict[str, list[StackedLayer]]:
    """The lists of `model` whose modules are all decoder layers that the kernel computes, by name.
    To be asked before adapters are grafted onto their linear modules."""
    found = {}
    for list_name, modules in model.named_modules() if kernels_loaded() else ():
        if isinstance(modules, WholeList):
            layers = [_stacked_layer(f"{list_name}.{i}", layer) for i, layer in enumerate(modules)]
            stacked = [layer for layer in layers if layer is not None]
            if stacked and len(stacked) == len(layers):
                found[list_name] = stacked
    return found


def _stacked_layer(name: str, layer: nn.Module) -> StackedLayer | None:
    if type(layer).__name__ not in _LAYERS:
        return None
    linears = {
        f"{name}.{linear}": layer.get_submodule(linear)
        for linear in (
            *(f"self_attn.{key}_proj" for key in "qkvo"),
            *(f"mlp.{key}_proj" for key in ("gate", "up", "down")),
        )
    }
    norms = layer.input_layernorm, layer.post_attention_layernorm
    attention = layer.self_attn
    if (
        isinstance(attention, FusedAttention)
        and isinstance(layer.mlp, FusedGatedMlp)
        and isinstance(norms[0], FusedRmsNorm)
        and isinstance(norms[1], FusedRmsNorm)
        and all(isinstance(linear, Int8Linear) for linear in linears.values())
    ):
        int8 = cast("dict[str, Int8Linear]", linears)
        return StackedLayer(name, norms[0], attention, norms[1], int8)
    return None


class DecoderStack:
    """Stands for the layers of a list when the model goes through them."""

    def __init__(self, layers: nn.ModuleList, step: StepSegments) -> None:
        self._layers = layers
        self._step = step
        self._kernel: Any = torch.classes.graftwork.DecoderLayers()

    def add(
        self,
        layer: StackedLayer,
        linears: Mapping[str, LinearTables],
        norms: Sequence[Tensor],
        bottlenecks: Sequence[Tensor],
        gated_prompts: Tensor,
    ) -> None:
        """The next layer, with the tables of its linear modules by name, of its two norms, of the
        bottlenecks behind attention, MLP and layer, and of its attention's gated prompts.

        Raises RuntimeError where shapes do not fit.
        """
        modules = layer.linears
        both = layer.attention_norm, layer.mlp_norm
        constants = [value for norm in both for value in (norm.offset, norm.eps)]
        tables = [linears[name] for name in modules]
        self._kernel.add(
            [norm.weight for norm in both],
            [*constants, layer.attention.scaling],
            layer.attention.sliding_window or 0,
            [linear.codes for linear in modules.values()],
            [linear.scales for linear in modules.values()],
            [linear.bias for linear in modules.values()],
            [linear.out_features for linear in modules.values()],
            [
                table
                for own in tables
                for table in (
                    own.inputs, own.low_ranks, own.terms, own.output_scales, own.rotations
                )
            ],
            [*norms, *bottlenecks, gated_prompts],
        )  # fmt: skip

    def __call__(
        self,
        hidden_states: Tensor,  # (1, tokens, hidden_size)
        *,
        position_embeddings: tuple[Tensor, Tensor],  # (1, tokens, head_dim) each
        attention_step: AttentionStep,
        **others: Any,
    ) -> Tensor:
        """What the layers make of it, one after the other: (1, tokens, hidden_size)."""
        step = attention_step
        if not self._step.is_stackable or step.prefix_writes or step.gated_runs:
            for layer in self._layers:
                hidden_states = layer(
                    hidden_states,
                    position_embeddings=position_embeddings,
                    attention_step=attention_step,
                    **others,
                )
            return hidden_states
        cosine, sine = position_embeddings
        rows: Tensor = torch.ops.graftwork.run_decoder_layers.default(
            self._kernel,
            hidden_states[0].contiguous(),
            cosine[0].contiguous(),
            sine[0].contiguous(),
            [cache.keys for cache in step.caches],
            [cache.values for cache in step.caches],
            step.slot_mapping,
            step.block_tables,
            step.query_start,
            step.context_lens,
            self._step.tokens.run_table,
        )
        return rows.unsqueeze(0)
