"""PEFT's methods that are not served, by PEFT's name, and why. docs/adapter-methods.md shows it."""

from collections.abc import Mapping

_DENSE = "it changes the weight by an elementwise or two-sided product with the base's own, which "
_DRAWN = "its frozen factors come from a decomposition of the base's unquantized weight, which "
_BY_INPUT = "what it adds depends on the input through a router, which "
_NOT_LOWERED = "it could be lowered, but no lowering of its files is written and tested"

REFUSED: Mapping[str, str] = {
    "ADAMSS": f"{_DRAWN}a quantized base does not reproduce",
    "BEFT": f"{_NOT_LOWERED}; a LoRA file with trained biases is served",
    "CARTRIDGE": f"{_NOT_LOWERED}; prefix tuning is served",
    "DEFT": f"{_NOT_LOWERED}; DeLoRA is served",
    "FROD": "it replaces the whole weight by factors as large as it, which no adapter slot holds",
    "GLORA": f"{_DENSE}costs as much as a second base",
    "GRALORA": f"{_NOT_LOWERED}; LoRA is served",
    "HIRA": f"{_DENSE}costs as much as a second base",
    "LILY": f"{_BY_INPUT}averages over all tokens of a batch, so that rows would change each other",
    "OSF": f"{_DRAWN}a quantized base does not reproduce",
    "PEANUT": "it makes a delta as large as the weight out of the weight, by a network",
    "POLY": f"{_BY_INPUT}no primitive can express; register each task's LoRA as a version",
    "PSOFT": f"{_DRAWN}a quantized base does not reproduce; OFT is served",
    "PVERA": f"{_NOT_LOWERED}; VeRA is served",
    "SHADOW": "it runs a network of its own beside every layer, which no primitive can express",
    "SUPERTUNING": f"{_NOT_LOWERED}; SHiRA is served",
    "TINYLORA": f"{_DRAWN}a quantized base does not reproduce",
    "UNILORA": f"{_NOT_LOWERED}; VB-LoRA is served",
    "WAVEFT": f"{_NOT_LOWERED}; FourierFT is served",
    "XLORA": f"{_BY_INPUT}needs a second forward pass; name several adapters with weights instead",
}
