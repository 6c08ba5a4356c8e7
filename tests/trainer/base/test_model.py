import copy

import pytest
import torch
from graftwork_trainer.base.frozen_linear import FrozenLinear
from graftwork_trainer.base.packed_rows import PackedRows
from torch import nn
from torch.nn import functional

FAMILIES = ["llama", "gpt2", "qwen2", "gemma", "gemma2"]
LENGTHS = [7, 1, 12]


def dequantized(base):
    """The original with the weights that the server computes with."""
    model = copy.deepcopy(base.original).eval()
    for name in base.served.linear_modules:
        module = model.get_submodule(name)
        weight = base.served.weight(name)
        is_conv = type(module).__name__ == "Conv1D"
        module.weight = nn.Parameter(weight.T.contiguous() if is_conv else weight)
    return model


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_what_each_sequence_gives_alone(family, quantization, written_base):
    base = written_base(family, quantization)
    model = base.load().model
    reference = dequantized(base)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 400, (n,), generator=generator) for n in LENGTHS]
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat(sequences).unsqueeze(0),
            position_ids=torch.cat([torch.arange(n) for n in LENGTHS]).unsqueeze(0),
            packed_rows=PackedRows.of(LENGTHS),
            use_cache=False,
        ).logits[0]
        expected = torch.cat([reference(s.unsqueeze(0)).logits[0] for s in sequences])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_gradients_are_those_of_the_dequantized_weight(quantization, written_base):
    module = written_base("qwen2", quantization).load().model.model.layers[0].self_attn.q_proj
    assert isinstance(module, FrozenLinear)
    x = torch.randn(2, 5, 32, requires_grad=True)
    grad = torch.randn(2, 5, 32)
    y = module(x)
    torch.testing.assert_close(y, functional.linear(x, module.weight, module.bias))
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ module.weight)


def test_the_trainer_sees_the_very_weights_that_serve(written_base):
    for quantization in ("none", "int8", "nf4"):
        base = written_base("llama", quantization)
        model = base.load().model
        for name in base.served.linear_modules:
            assert torch.equal(model.get_submodule(name).weight, base.served.weight(name))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_no_weight_is_copied(quantization, written_base):
    base = written_base("llama", quantization).load()
    mapped = {t.untyped_storage().data_ptr() for t in base.model.parameters() if t.numel()}
    mapped |= {
        m.codes.untyped_storage().data_ptr()
        for m in base.model.modules()
        if isinstance(m, FrozenLinear)
    }
    assert len(mapped) == 1
    tree = base.fresh_model()
    shared = [{id(p) for p in m.parameters() if p.numel()} for m in (tree, base.model)]
    assert shared[0] == shared[1]
    assert tree.model.layers[0] is not base.model.model.layers[0]
