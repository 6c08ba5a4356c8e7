"""Houlsby and Pfeiffer bottleneck layers: served as the trainable model computes them, and that
model as AdapterHub defines them."""

from pathlib import Path

import pytest
import torch
from graftwork_adapters.bottleneck import (
    NON_LINEARITIES,
    BottleneckConfig,
    add_bottlenecks,
    save_bottlenecks,
)
from graftwork_adapters.errors import InvalidArtifact, UnsupportedField, ZeroEffect
from torch import Tensor, nn

from tests.adapters.methods.helpers import FAMILIES, check_mixed_batch
from tests.adapters.methods.test_sequence_methods import change_config
from tests.support.engine import TinyEngine
from tests.support.peft_adapters import alias
from tests.support.tiny_models import tiny_model

CONFIGS = {
    "houlsby": BottleneckConfig("houlsby", "swish", reduction_factor=4),
    "pfeiffer": BottleneckConfig("pfeiffer", "relu", bottleneck_size=6),
    "scaled": BottleneckConfig("pfeiffer", "gelu", bottleneck_size=6, scaling=0.5),
    "one_layer": BottleneckConfig("houlsby", "tanh", reduction_factor=8, layers_to_transform=(1,)),
    "norms": BottleneckConfig(
        "houlsby", "leakyrelu", bottleneck_size=5, norm_before=True, norm_after=True
    ),
}


def save(model: nn.Module, config: BottleneckConfig, folder: Path, std: float = 0.3) -> Path:
    tree = alias(model)
    torch.manual_seed(1)
    for block in add_bottlenecks(tree, config).values():
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=std)
    save_bottlenecks(tree, config, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_trainable_model(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    folders = [save(model, config, tmp_path / name) for name, config in CONFIGS.items()]
    check_mixed_batch(model, folders, tmp_path)


@pytest.mark.parametrize("name", NON_LINEARITIES)
def test_every_non_linearity(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    config = BottleneckConfig("pfeiffer", name, bottleneck_size=4)
    check_mixed_batch(model, [save(model, config, tmp_path / name)], tmp_path, chunk_sizes=[1000])


def adapterhub(block: nn.Module, h: Tensor, stream: Tensor, *, original_ln_before: bool) -> Tensor:
    """The `adapters` library's pre_forward, forward and post_forward, for a layer whose norm is
    None, with residual_before_ln and original_ln_after."""
    residual = h
    if original_ln_before:
        h = h + stream
    up = block.up(torch.relu(block.down(h)))
    return up + residual + stream


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_adapterhubs_definition(placement: str) -> None:
    """A Llama layer, step by step."""
    model = alias(tiny_model("llama"))
    config = BottleneckConfig(placement, "relu", bottleneck_size=6)
    blocks = add_bottlenecks(model, config)
    seen: dict[str, Tensor] = {}
    layer = model.model.layers[0]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0])),
        layer.self_attn.o_proj.register_forward_hook(lambda *a: seen.update(attention=a[2])),
        layer.register_forward_hook(lambda *a: seen.update(output=a[2])),
    ]
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
        for hook in hooks:
            hook.remove()
        if placement == "houlsby":
            block = blocks["model.layers.0.attention_adapter"]
            stream = adapterhub(block, seen["attention"], seen["stream"], original_ln_before=False)
        else:
            stream = seen["attention"] + seen["stream"]
        mlp, normed = layer.mlp, layer.post_attention_layernorm(stream)
        h = mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        block = blocks["model.layers.0.output_adapter"]
        expected = adapterhub(block, h, stream, original_ln_before=placement == "pfeiffer")
    torch.testing.assert_close(seen["output"], expected)


def test_only_the_blocks_train(tmp_path: Path) -> None:
    model = alias(tiny_model("llama"))
    blocks = add_bottlenecks(model, CONFIGS["houlsby"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"{n}.{k}" for n, block in blocks.items() for k, _ in block.named_parameters()
    }
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    losses = []
    for _ in range(5):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("placement", "pfeiffer", InvalidArtifact),
        ("placement", "parallel", UnsupportedField),
        ("non_linearity", "maxout", UnsupportedField),
        ("bottleneck_size", 4, InvalidArtifact),
        ("reduction_factor", 2, InvalidArtifact),
        ("reduction_factor", 0, InvalidArtifact),
        ("layers_to_transform", [0], InvalidArtifact),
        ("norm_before", True, InvalidArtifact),
        ("use_gating", True, UnsupportedField),
    ],
)
def test_a_config_that_contradicts(
    field: str, value: object, error: type[Exception], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS["houlsby"], tmp_path)
    change_config(folder, **{field: value})
    with pytest.raises(error):
        TinyEngine(model).lower(folder)


def test_untrained_blocks_of_zeros(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save(model, CONFIGS["houlsby"], tmp_path, std=0.0)
    with pytest.raises(ZeroEffect):
        TinyEngine(model).lower(folder)
