"""Fused forms of the base's norms, gated MLPs and attention modules, for the CPU.

Each holds the module's own children under their own names and computes the same numbers within
float rounding; which classes of transformers have that arithmetic is listed here. All others stay
as they are.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from graftwork_server.attention import AttentionStep, attend
from graftwork_server.kernels.elementwise import rms_norm, rotate_heads, silu_multiply

# RMS norms, with what is added to the weight.
_NORMS = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
}
# down(act(gate(x)) * up(x)); fused where act is SiLU.
_GATED_MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}
# Rotary over the whole head, nothing else between the projections and the attention.
_ATTENTIONS = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}


def fuse_modules(model: PreTrainedModel) -> None:
    """Replaces in place every module that has a fused form."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.ModuleList:
            model.set_submodule(name, WholeList(module))
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind in _NORMS:
            model.set_submodule(name, FusedRmsNorm(module, _NORMS[kind]))
        elif kind in _GATED_MLPS and model.config.hidden_act == "silu":
            model.set_submodule(name, FusedGatedMlp(module))
        elif kind in _ATTENTIONS:
            model.set_submodule(name, FusedAttention(module))


class WholeList(nn.ModuleList):
    """A list of modules whose slice of all is itself: transformers' models take such a slice of
    their layers at each step, for which nn.ModuleList makes a new module of them all."""

    def __init__(self, modules: nn.ModuleList) -> None:
        super().__init__(modules)
        self.stand_in: Callable[..., Tensor] | None = None  # called instead of one after the other

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self if self.stand_in is None else (self.stand_in,)
        return super().__getitem__(index)


class FusedRmsNorm(nn.Module):
    def __init__(self, norm: nn.Module, offset: float) -> None:
        super().__init__()
        self.weight: nn.Parameter = cast("nn.Parameter", norm.weight)
        self.offset = offset
        # Llama's family says variance_epsilon, Gemma's eps.
        self.eps = cast("float", getattr(norm, "variance_epsilon", None) or norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) to the same."""
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, self.weight, offset=self.offset, eps=self.eps).view(x.shape)


class FusedGatedMlp(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj = mlp.get_submodule("gate_proj")
        self.up_proj = mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")

    def forward(self, x: Tensor) -> Tensor:
        """(1, tokens, hidden_size) to the same."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        silu_multiply(gate.flatten(0, -2), up.flatten(0, -2))
        y: Tensor = self.down_proj(gate)
        return y


class FusedAttention(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.q_proj = attention.get_submodule("q_proj")
        self.k_proj = attention.get_submodule("k_proj")
        self.v_proj = attention.get_submodule("v_proj")
        self.o_proj = attention.get_submodule("o_proj")
        self.layer_idx = cast("int", attention.layer_idx)
        self.head_dim = cast("int", attention.head_dim)
        self.scaling = cast("float", attention.scaling)
        self.sliding_window = _sliding_window(attention)

    def forward(
        self,
        hidden_states: Tensor,  # (1, tokens, hidden_size)
        position_embeddings: tuple[Tensor, Tensor],  # (1, tokens, head_dim) each
        attention_step: AttentionStep,
        **_: Any,
    ) -> tuple[Tensor, None]:
        tokens = hidden_states.shape[1]
        query, key, value = (
            project(hidden_states).view(tokens, -1, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cosine, sine = position_embeddings[0][0], position_embeddings[1][0]
        rotate_heads(query, cosine, sine)
        rotate_heads(key, cosine, sine)
        output = attend(
            attention_step,
            self.layer_idx,
            query,
            key,
            value,
            scale=self.scaling,
            sliding_window=self.sliding_window,
        )
        return self.o_proj(output.view(1, tokens, -1)), None


def _sliding_window(attention: nn.Module) -> int | None:
    """Qwen's layers have one each, Mistral's share the config's, Llama's have none."""
    if type(attention).__name__ == "MistralAttention":
        return cast("int | None", attention.config.sliding_window)  # type: ignore[union-attr]
    return cast("int | None", getattr(attention, "sliding_window", None))
