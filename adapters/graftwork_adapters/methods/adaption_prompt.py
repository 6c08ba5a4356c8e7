"""LLaMA-Adapter (Zhang et al., 2023): prompts that the upper layers attend to beside the tokens,
each layer's with a gate.

Keys in a file: "base_model.model." + attention module + `.adaption_prompt` (1, adapter_len,
hidden_size) and `.adaption_gate` (1,). Keys and values of the prompts come from the base's own
projections, without rotation by position, and are computed once, here.
"""

from torch import Tensor
from torch.nn import functional

from graftwork_adapters.canonical import (
    BaseDescription,
    BiasDelta,
    LoweredAdapter,
    ModuleAdapter,
)
from graftwork_adapters.canonical_parts import DecoderLayer, GatedPrompt
from graftwork_adapters.errors import InvalidArtifact, WrongBase
from graftwork_adapters.methods.base import LoweringInput, Method

_PREFIX = "base_model.model."
_PROMPT = "adaption_prompt"
_GATE = "adaption_gate"
_SEPARATE = ("llama", "mistral")  # families with projections q_proj, k_proj, v_proj and o_proj
_FUSED = ("gpt2",)  # with one projection c_attn; PEFT adds the term after the output projection


def lower(source: LoweringInput) -> LoweredAdapter:
    config, base = source.config, source.base
    if base.model_type not in {*_SEPARATE, *_FUSED}:
        raise WrongBase(
            f"LLaMA-Adapter is defined for {', '.join([*_SEPARATE, *_FUSED])}; this base is "
            f"{base.model_type}"
        )
    length = config.positive_integer("adapter_len")
    count = config.positive_integer("adapter_layers")
    target = config.string("target_modules")
    if count > len(base.layers):
        raise WrongBase(f"adapter_layers is {count}, but the base has {len(base.layers)} layers")
    adapted = range(len(base.layers) - count, len(base.layers))
    for layer in base.layers:
        if layer.attention.rpartition(".")[2] != target:
            raise WrongBase(f"the base has no attention named {target[:80]!r}")
        if layer.num_heads * layer.head_dim != base.hidden_size:
            raise WrongBase("LLaMA-Adapter needs heads that add up to the hidden size")
    names = {f"{base.layers[i].attention}.{part}" for i in adapted for part in (_PROMPT, _GATE)}
    if source.tensors.keys() != {_PREFIX + name for name in names}:
        wrong = sorted(source.tensors.keys() ^ {_PREFIX + name for name in names})
        raise InvalidArtifact(
            f"adapter_layers is {count}, which disagrees with the tensors about {wrong[0][:200]}"
        )
    prompts: dict[int, GatedPrompt] = {}
    modules: dict[str, ModuleAdapter] = {}
    for index in adapted:
        layer = base.layers[index]
        prompt = source.tensors[f"{_PREFIX}{layer.attention}.{_PROMPT}"]
        gate = source.tensors[f"{_PREFIX}{layer.attention}.{_GATE}"]
        if prompt.shape != (1, length, base.hidden_size) or gate.shape != (1,):
            raise InvalidArtifact(
                f"{_PROMPT} and {_GATE} of {layer.attention} have shapes {tuple(prompt.shape)} and "
                f"{tuple(gate.shape)}; expected (1, {length}, {base.hidden_size}) and (1,)"
            )
        prompts[index] = _lower_layer(prompt[0].float(), float(gate), layer, base)
        output = f"{layer.attention}.o_proj"
        if base.model_type in _SEPARATE and base.linear_modules[output].has_bias:
            # PEFT projects the prompt's term by itself, and so adds the bias a second time.
            modules[output] = ModuleAdapter(bias_delta=BiasDelta(base.bias(output).clone()))
    return LoweredAdapter(modules, gated_prompts=prompts)


def _lower_layer(
    prompt: Tensor, gate: float, layer: DecoderLayer, base: BaseDescription
) -> GatedPrompt:
    """prompt: (adapter_len, hidden_size) float32."""
    fused = base.model_type in _FUSED
    if fused:
        _, keys, values = _project(prompt, f"{layer.attention}.c_attn", base).chunk(3, dim=-1)
    else:
        keys = _project(prompt, f"{layer.attention}.k_proj", base)
        values = _project(prompt, f"{layer.attention}.v_proj", base)
    shape = (prompt.shape[0], layer.num_kv_heads, layer.head_dim)
    return GatedPrompt(
        keys=keys.reshape(shape).transpose(0, 1).contiguous(),
        values=values.reshape(shape).transpose(0, 1).contiguous(),
        gate=gate,
        after_output=fused,
    )


def _project(x: Tensor, module: str, base: BaseDescription) -> Tensor:
    bias = base.bias(module) if base.linear_modules[module].has_bias else None
    return functional.linear(x, base.weight(module).cpu(), None if bias is None else bias.cpu())


METHOD = Method(
    peft_type="ADAPTION_PROMPT",
    consumed=frozenset({"adapter_len", "adapter_layers", "target_modules"}),
    lower=lower,
)
