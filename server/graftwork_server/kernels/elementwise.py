"""What lies between the linear modules of a decoder layer: norm, rotation, gate.

On the CPU each row is computed by itself in one order, so its bits do not depend on its neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.build import kernels_loaded


def rms_norm(x: Tensor, weight: Tensor, *, offset: float, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * (offset + weight)` (arXiv:1910.07467; Gemma's offset is 1).

    x: (rows, features) float32, contiguous; weight: (features,) float32
    """
    if x.device.type == "cpu" and kernels_loaded():
        y: Tensor = torch.ops.graftwork.rms_norm.default(x, weight, offset, eps)
        return y
    return rms_norm_reference(x, weight, offset=offset, eps=eps)


def rms_norm_reference(x: Tensor, weight: Tensor, *, offset: float, eps: float) -> Tensor:
    """The same in plain torch, on any device."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (offset + weight)


def silu_multiply(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, in place in `gate`, which is returned (arXiv:2002.05202).

    gate, up: (rows, features) float32, contiguous
    """
    if gate.device.type == "cpu" and kernels_loaded():
        torch.ops.graftwork.silu_multiply.default(gate, up)
        return gate
    return gate.copy_(silu_multiply_reference(gate, up))


def silu_multiply_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The same in plain torch, on any device; writes nothing."""
    return functional.silu(gate) * up


def rotate_heads(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding in place (arXiv:2104.09864, halves as in GPT-NeoX and Llama).

    x: (tokens, heads, head_dim) float32, contiguous
    cosine, sine: (tokens, head_dim) float32, contiguous
    """
    if x.device.type == "cpu" and kernels_loaded():
        torch.ops.graftwork.rotate_heads.default(x, cosine, sine)
        return x
    return x.copy_(rotate_heads_reference(x, cosine, sine))


def rotate_heads_reference(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The same in plain torch, on any device; writes nothing."""
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return x * cosine.unsqueeze(1) + turned * sine.unsqueeze(1)
