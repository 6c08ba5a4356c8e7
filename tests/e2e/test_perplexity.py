"""The int8 base against float32, on a text of the project's own."""

from pathlib import Path

import pytest
import torch
from graftwork_server import attention
from graftwork_server.base_model import load_base_model
from transformers import AutoTokenizer, PreTrainedModel

from tests.support.peft_adapters import alias

PASSAGE = Path(__file__).with_name("passage.txt")


@pytest.mark.model
@torch.inference_mode()
def test_int8_is_near_lossless(float_model: PreTrainedModel, model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    token_ids = torch.tensor([tokenizer(PASSAGE.read_text())["input_ids"]])
    attention.register()
    base = load_base_model(
        model_path, name="default", quantization="int8", device=torch.device("cpu")
    )
    reference = perplexity(float_model, token_ids)
    # The quantized weights in the float model's own modules: what the kernels compute with.
    dequantized = alias(float_model)
    for name, module in dequantized.named_modules():
        if name in base.linear_modules:
            module.weight = torch.nn.Parameter(base.weight(name), requires_grad=False)
    quantized = perplexity(dequantized, token_ids)
    print(f"perplexity: float32 {reference:.4f}, int8 {quantized:.4f}")
    assert 0.99 < quantized / reference < 1.01


def perplexity(model: PreTrainedModel, token_ids: torch.Tensor) -> float:
    logits = model(input_ids=token_ids, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, token_ids[0, 1:]).exp())
