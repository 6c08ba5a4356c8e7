"""The one base model of a server: loaded once, quantized, and never changed afterwards."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard, cast

import torch
from graftwork_adapters.base_file.modules import by_module, fill
from graftwork_adapters.base_file.reader import MappedBase
from graftwork_adapters.canonical import LinearModule
from graftwork_adapters.canonical_parts import DecoderLayer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from graftwork_server.attention import PAGED_ATTENTION
from graftwork_server.errors import StartupError
from graftwork_server.fusion import fuse_modules
from graftwork_server.quantization import quantize_linear, restore_linear
from graftwork_server.quantization.linear import QuantizedLinear, weight_of

logger = logging.getLogger(__name__)


class ModelNotUsable(StartupError):
    """The base model cannot be loaded or served; the message says why."""


class BaseModel:
    """The transformers model with its linear modules quantized; a `BaseDescription` for lowering.

    `linear_modules` are the modules that adapters may change, by name. `transposed` names those
    whose weight the unquantized model, and so a file with a saved one, holds transposed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        name: str,
        quantization: str,
        device: torch.device,
        num_parameters: int,
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.quantization = quantization
        self.device = device
        self.num_parameters = num_parameters
        self.config = model.config
        self._linears = {
            name: module for name, module in model.named_modules() if is_linear(module)
        }
        self.linear_modules: Mapping[str, LinearModule] = {
            name: describe_linear(module, is_transposed=name in transposed)
            for name, module in self._linears.items()
        }
        self._others: dict[str, nn.Module] = {
            name: module
            for name, module in model.named_modules()
            if not is_linear(module) and dict(module.named_parameters(recurse=False))
        }
        self.other_modules: Mapping[str, Mapping[str, tuple[int, ...]]] = {
            name: {
                key: tuple(parameter.shape)
                for key, parameter in module.named_parameters(recurse=False)
            }
            for name, module in self._others.items()
        }
        self.embedding_name = _name_of(model, model.get_input_embeddings())
        self.head_name = _name_of(model, model.get_output_embeddings())
        self.has_tied_head = bool(getattr(self.config, "tie_word_embeddings", False))
        self.layers = tuple(decoder_layers(model))
        # Captured once: the tree may be wrapped later, the tensors stay the same.
        self._tensors = dict(sorted(model.state_dict(keep_vars=True).items()))
        self.digest = self.compute_digest()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor of the model by its name, in order; tied ones more than once."""
        return self._tensors

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Computes with other memory from here on: equal tensors under the names of `tensors`."""
        for name, tensor in self._tensors.items():
            tensor.data = tensors[name]

    def compute_digest(self) -> str:
        """SHA-256 over the names, dtypes, shapes and bytes of all tensors as they are now."""
        return self.digest_of(self._tensors)

    def digest_of(self, tensors: Mapping[str, Tensor]) -> str:
        """What the digest would be with these tensors under the model's names."""
        digest = hashlib.sha256(f"{self.config.architectures}:{self.quantization}".encode())
        seen: set[int] = set()
        for name, tensor in sorted(tensors.items()):
            if tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            plain = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy().data)
        return f"sha256:{digest.hexdigest()}"

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def context_length(self) -> int:
        return int(self.config.max_position_embeddings)

    @property
    def architecture(self) -> str:
        return type(self.model).__name__

    @property
    def dtype(self) -> torch.dtype:
        return cast("Tensor", self.model.get_input_embeddings().weight).dtype

    @property
    def weight_bytes(self) -> int:
        unique = {tensor.data_ptr(): tensor for tensor in self._tensors.values()}
        return sum(tensor.nbytes for tensor in unique.values())

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer: of the generation config, else of the tokenizer."""
        ids = self.model.generation_config.eos_token_id if self.model.generation_config else None
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset(ids if isinstance(ids, list) else [ids])

    def weight(self, name: str) -> Tensor:
        """The dequantized weight of a linear module: (out_features, in_features), float32, on the
        CPU like all that lowering computes with."""
        return weight_of(self._linears[name]).float().cpu()

    def bias(self, name: str) -> Tensor:
        """The bias of a linear module with `has_bias`: (out_features,), float32, on the CPU."""
        return self._linears[name].bias.detach().float().cpu()

    def parameter(self, module: str, name: str) -> Tensor:
        """A parameter of one of `other_modules`, float32, on the CPU."""
        return self._others[module].get_parameter(name).detach().float().cpu()

    def own_module(self, name: str) -> nn.Module:
        """A linear module or one of `other_modules`, without anything that adapters do to it."""
        return self._linears[name] if name in self._linears else self._others[name]


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    return isinstance(module, nn.Linear | Conv1D)


def describe_linear(module: nn.Linear | Conv1D, *, is_transposed: bool) -> LinearModule:
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
    else:
        in_features, out_features = module.in_features, module.out_features
    return LinearModule(in_features, out_features, module.bias is not None, is_transposed)


def _name_of(model: PreTrainedModel, wanted: nn.Module) -> str:
    names = (name for name, module in model.named_modules() if module is wanted)
    return cast("str", next(names))


def decoder_layers(model: PreTrainedModel) -> Iterator[DecoderLayer]:
    """The layers with an attention and an MLP, in order."""
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    for name, module in model.named_modules():
        children = dict(module.named_children())
        attention = next((key for key in ("self_attn", "attn") if key in children), None)
        if attention is not None and "mlp" in children:
            yield DecoderLayer(
                name, f"{name}.{attention}", f"{name}.mlp", heads, kv_heads, head_dim
            )


def load_base_model(
    source: str | Path, *, name: str, quantization: str, device: torch.device
) -> BaseModel:
    """Loads a folder or a hub id and quantizes its linear modules.

    Raises ModelNotUsable where it is no decoder-only causal LM with dense attention.
    """
    with _loading(source):
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=load_config(source),
            dtype=torch.float32 if device.type == "cpu" else "auto",
            attn_implementation=PAGED_ATTENTION,
        )
    tokenizer = load_tokenizer(source)
    return prepare_base_model(model, tokenizer, name=name, quantization=quantization, device=device)


def load_config(source: str | Path) -> PreTrainedConfig:
    """Raises ModelNotUsable."""
    with _loading(source):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source)
    return config


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Raises ModelNotUsable."""
    with _loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelNotUsable(f"model: {str(source)!r} has no tokenizer.json, and needs one")
    return tokenizer


@contextlib.contextmanager
def _loading(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"model: cannot load {str(source)!r}: {error}") from error


def prepare_base_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str,
    quantization: str,
    device: torch.device,
    stored: MappedBase | None = None,
) -> BaseModel:
    """Freezes, quantizes and moves a model that is already in memory.

    stored: the same model as it was packed before, whose tensors are taken instead; the model's own
        may be on the meta device

    Raises InvalidBaseFile where `stored` lacks a tensor.
    """
    if model.config.is_encoder_decoder:
        raise ModelNotUsable(f"model: {name!r} is an encoder-decoder; use a decoder-only one")
    model.set_attn_implementation(PAGED_ATTENTION)
    model.eval().requires_grad_(requires_grad=False)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    transposed = frozenset(n for n, module in model.named_modules() if isinstance(module, Conv1D))
    if stored is not None:
        _take_stored(model, stored)
    elif quantization != "none":
        quantize_modules(model, quantization, device)
    if device.type == "cpu":
        fuse_modules(model)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides nn.Module's
    return BaseModel(
        model,
        tokenizer,
        name=name,
        quantization=quantization,
        device=device,
        num_parameters=num_parameters,
        transposed=transposed,
    )


def _take_stored(model: PreTrainedModel, stored: MappedBase) -> None:
    """Puts in place of the linear modules those that the file packs, and fills in all else."""
    tensors = by_module(stored.tensors)
    for name, module in list(model.named_modules()):
        packed = stored.description.packed.get(name)
        if packed is not None and is_linear(module):
            own = describe_linear(module, is_transposed=False)
            restored = restore_linear(
                own.in_features, own.out_features, packed.packing, tensors.get(name, {})
            )
            model.set_submodule(name, restored)
    fill(model, stored.tensors)


@torch.no_grad()
def quantize_modules(model: PreTrainedModel, quantization: str, device: torch.device) -> None:
    """Replaces every linear module in place, one at a time so that memory peaks at one copy.

    The output head stays as it is under nf4, as in QLoRA; its int8 form is near lossless.
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if not is_linear(module) or isinstance(module, QuantizedLinear):
            continue
        if module is head and quantization == "nf4":
            continue
        model.set_submodule(name, quantize_linear(module, quantization, device))
