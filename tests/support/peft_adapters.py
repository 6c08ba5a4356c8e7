"""Makes PEFT adapter folders with random, effective weights, and PEFT's own answers for them."""

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from graftwork_adapters import bottleneck
from graftwork_adapters.peft_config import TASK_ID_FIELD
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SCALES = ("ia3_l", "road_alpha", "boft_s")  # parameters that are 1 before training


def alias(model: nn.Module) -> nn.Module:
    """A module tree of its own over the same tensors, so that PEFT may rebuild it."""
    return copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})


@contextlib.contextmanager
def peft_remarks_ignored() -> Iterator[None]:
    """PEFT calls deprecated parts of transformers, and remarks on unusual but valid configs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_peft(model: nn.Module, folder: Path | None) -> nn.Module:
    """The model with an adapter as PEFT loads it, or our trainable model where it has bottlenecks,
    in evaluation mode; without one, the model."""
    tree: nn.Module = alias(model)
    if folder is None:
        return tree.eval()
    config = json.loads((folder / "adapter_config.json").read_text())
    if config["peft_type"] == bottleneck.PEFT_TYPE:
        bottleneck.load_bottlenecks(tree, folder)
    else:
        with peft_remarks_ignored():
            tree = PeftModel.from_pretrained(tree, folder)
    return tree.eval()


def save_random_adapter(
    model: nn.Module, config: PeftConfig, folder: Path, *, seed: int, strength: float = 0.02
) -> Path:
    """Writes an adapter of `model` whose trainable weights are drawn from N(0, strength^2)."""
    with peft_remarks_ignored():
        peft_model = get_peft_model(alias(model), copy.deepcopy(config))  # PEFT fills it in
    return save_drawn_anew(peft_model, folder, seed=seed, strength=strength)


def save_drawn_anew(
    peft_model: PeftModel, folder: Path, *, seed: int, strength: float = 0.02
) -> Path:
    """Draws the trainable weights of a PEFT model in place, and writes them as an adapter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator) * strength
        if "lora_magnitude_vector" in name:
            parameter.data.mul_(1 + 5 * noise)
        elif any(part in name for part in SCALES):
            parameter.data.copy_(1 + noise)
        elif "lora_A" in name:
            bound = parameter.shape[-1] ** -0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * bound)
        elif "prompt_encoder" in name or "prompt_embeddings" in name:
            parameter.data.copy_(noise * 10)
        else:
            parameter.data.copy_(noise)
    with peft_remarks_ignored():
        peft_model.save_pretrained(folder)
    return folder


def lora_config(rank: int = 16, **changes: object) -> LoraConfig:
    settings: dict[str, object] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ALL_LINEAR,
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**settings, **changes})  # type: ignore[arg-type]


def prompt_tuning_config(num_virtual_tokens: int = 12) -> PromptTuningConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)


def reference_logits(model: nn.Module, folder: Path | None, token_ids: list[int]) -> Tensor:
    """PEFT's logits for the real tokens of one sequence: (num_tokens, vocab_size) float32.

    PEFT's `forward` over the whole sequence is the oracle; its `generate` is wrong for prompt
    methods with this transformers.
    """
    return _forward(load_peft(model, folder), folder, token_ids)


def reference_greedy(
    model: nn.Module, folder: Path | None, prompt: list[int], num_tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy continuation by PEFT's forward, and the logits that chose each token."""
    token_ids, logits = reference_continuation(model, folder, prompt, num_tokens)
    return token_ids, logits[len(prompt) - 1 :]


def reference_continuation(
    model: nn.Module, folder: Path | None, prompt: list[int], num_tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy continuation by PEFT's forward, and the logits of the prompt and of all of it but the
    last token: (len(prompt) + num_tokens - 1, vocab_size) float32."""
    tree = load_peft(model, folder)
    token_ids = list(prompt)
    logits = torch.empty(0)
    for _ in range(num_tokens):
        logits = _forward(tree, folder, token_ids)
        token_ids.append(int(logits[-1].argmax()))
    return token_ids[len(prompt) :], logits


def _forward(tree: nn.Module, folder: Path | None, token_ids: list[int]) -> Tensor:
    config = {} if folder is None else json.loads((folder / "adapter_config.json").read_text())
    task = config.get(TASK_ID_FIELD)
    chosen = {} if task is None else {"task_ids": torch.tensor([task])}
    with torch.no_grad(), peft_remarks_ignored():
        output = tree(input_ids=torch.tensor([token_ids]), use_cache=False, **chosen)
    return output.logits[0, -len(token_ids) :].float()
