"""Tiny random bases, their description, and PEFT folders made on them."""

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.canonical import LinearModule, LoweredAdapter, ModuleAdapter
from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import lower
from graftwork_server.base_model import decoder_layers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.adapters.expand import delta, input_matrix, transform_output

CONTEXT_LENGTH = 64


def tiny_llama(*, attention_bias: bool = False, tied: bool = False, hidden: int = 16) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT_LENGTH,
        attention_bias=attention_bias,
        tie_word_embeddings=tied,
    )
    return _randomized(LlamaForCausalLM(config))


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=CONTEXT_LENGTH, n_embd=16, n_layer=2, n_head=2)
    return _randomized(GPT2LMHeadModel(config))


def _randomized(model: nn.Module) -> nn.Module:
    """Biases too: transformers starts them at zero, where a wrong sign would go unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


class DescribedModel:
    """BaseDescription of an unquantized model."""

    def __init__(self, model: nn.Module, digest: str = "sha256:" + "b" * 64) -> None:
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        }
        self._others = {
            name: module
            for name, module in model.named_modules()
            if name not in self._modules and dict(module.named_parameters(recurse=False))
        }
        self.model_type: str = model.config.model_type
        names = {module: name for name, module in model.named_modules()}
        self.embedding_name = names[model.get_input_embeddings()]
        self.head_name = names[model.get_output_embeddings()]
        self.has_tied_head: bool = model.config.tie_word_embeddings
        self.layers = tuple(decoder_layers(model))
        self.digest = digest
        self.hidden_size: int = model.config.hidden_size
        self.context_length = CONTEXT_LENGTH

    @property
    def linear_modules(self) -> Mapping[str, LinearModule]:
        return {
            name: LinearModule(
                *reversed(self.weight(name).shape),
                module.bias is not None,
                isinstance(module, Conv1D),
            )
            for name, module in self._modules.items()
        }

    @property
    def other_modules(self) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        return {
            name: {k: tuple(p.shape) for k, p in module.named_parameters(recurse=False)}
            for name, module in self._others.items()
        }

    def parameter(self, module: str, name: str) -> Tensor:
        return self._others[module].get_parameter(name).detach().float()

    def weight(self, name: str) -> Tensor:
        module = self._modules[name]
        weight = module.weight.detach().float()
        return weight.T.contiguous() if isinstance(module, Conv1D) else weight

    def bias(self, name: str) -> Tensor:
        return self._modules[name].bias.detach().float()


def randomize(model: PeftModel, *, std: float = 0.1) -> PeftModel:
    """As if trained: every trainable parameter gets random values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter.mul_(1 + std * torch.randn_like(parameter))
            else:
                parameter.normal_(std=std)
    return model.eval()


def make_peft(
    base: nn.Module, config: PeftConfig, folder: Path, *, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """A PeftModel as if trained on a copy of `base`, saved to `folder` in `dtype`."""
    with peft_remarks_ignored():
        model = randomize(get_peft_model(copy.deepcopy(base), config))
        model.save_pretrained(folder)
    path = folder / WEIGHTS_FILE
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return model


def load_peft(base: nn.Module, folder: Path) -> PeftModel:
    """What PEFT makes of a folder: the oracle. (PEFT sorts the patterns of a config when it saves
    them, so the model that was saved is not always the one that is loaded.)"""
    with peft_remarks_ignored():
        return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


@contextlib.contextmanager
def peft_remarks_ignored() -> Iterator[None]:
    """PEFT calls deprecated parts of transformers, and remarks on unusual but valid configs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lora_config(**fields: object) -> LoraConfig:
    settings: dict[str, object] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **fields,
    }
    return LoraConfig(**settings)


def save_lora(folder: Path, base: nn.Module, **fields: object) -> Path:
    make_peft(base, lora_config(**fields), folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    """Changes fields of a folder's adapter_config.json."""
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def apply(adapter: ModuleAdapter | None, base: DescribedModel, name: str, x: Tensor) -> Tensor:
    """y of one module with its adapter, computed as canonical.py defines it. x: (rows, in)."""
    weight = base.weight(name)
    bias = base.bias(name) if base.linear_modules[name].has_bias else torch.zeros(len(weight))
    if adapter is None:
        return x @ weight.T + bias
    if adapter.input_transform is not None:
        x = x @ input_matrix(adapter.input_transform, x.shape[1])
    y = x @ weight.T
    if adapter.low_rank is not None:
        y = y + (x @ adapter.low_rank.a.float().T) @ adapter.low_rank.b.float().T
    if adapter.added_term is not None:
        y = y + x @ delta(adapter.added_term, *weight.shape).T
    if adapter.output_scale is not None:
        y = y * adapter.output_scale.scale
    if adapter.bias_delta is not None:
        bias = bias + adapter.bias_delta.delta
    y = y + bias
    if adapter.output_transform is not None:
        y = transform_output(adapter.output_transform, y)
    return y


def lowered_from(folder: Path, base: nn.Module, *, max_rank: int = 64) -> LoweredAdapter:
    return lower(read_artifact(folder, AdapterLimits()), DescribedModel(base), max_rank=max_rank)


def check_parity(model: PeftModel, base: nn.Module, adapter: LoweredAdapter) -> None:
    """Every linear module of the base computes what PEFT's module of that name computes."""
    described = DescribedModel(base)
    peft_modules = dict(model.base_model.model.named_modules())
    assert adapter.modules.keys() <= described.linear_modules.keys()
    for name, module in described.linear_modules.items():
        x = torch.randn(3, module.in_features)
        with torch.no_grad():
            expected = peft_modules[name](x)
        torch.testing.assert_close(
            apply(adapter.modules.get(name), described, name, x), expected, atol=2e-5, rtol=1e-4
        )


def check_merged(model: PeftModel, base: nn.Module, adapter: LoweredAdapter) -> None:
    """Expanded to a matrix and a bias, every module is what PEFT merges. Takes the model apart."""
    described = DescribedModel(base)
    with peft_remarks_ignored():
        merged = DescribedModel(model.merge_and_unload())
    for name, module in described.linear_modules.items():
        origin = torch.zeros(1, module.in_features)
        inputs = torch.cat([origin, torch.eye(module.in_features)])
        found = apply(adapter.modules.get(name), described, name, inputs)
        bias = merged.bias(name) if merged.linear_modules[name].has_bias else origin.new_zeros(())
        torch.testing.assert_close(
            found - found[0], inputs @ merged.weight(name).T, atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(found[0], bias.expand_as(found[0]), atol=1e-4, rtol=1e-4)
