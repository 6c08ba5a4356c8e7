"""The panel layout of weights: 32 outputs interleaved, in_features inner, so that a kernel reads a
weight once, front to back, whatever the vector width of the machine."""

import torch
from torch import Tensor
from torch.nn import functional

PANEL = 32
_HALF = PANEL // 2

# The 16 values of NF4 (QLoRA, arXiv:2305.14314, appendix E), as bitsandbytes has them.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def to_panels(weight: Tensor) -> Tensor:
    """(out, n) -> (ceil(out / 32), n, 32), any dtype; missing outputs are zeros."""
    missing = -weight.shape[0] % PANEL
    padded = functional.pad(weight, (0, 0, 0, missing)) if missing else weight
    return padded.reshape(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def from_panels(panels: Tensor, out_features: int) -> Tensor:
    """(panels, n, 32) -> (out_features, n)."""
    num_panels, n, _ = panels.shape
    return panels.transpose(1, 2).reshape(num_panels * PANEL, n)[:out_features]


def dequantize_int8(
    codes: Tensor, scales: Tensor, out_features: int, out: Tensor | None = None
) -> Tensor:
    """The float32 weight, (out_features, in_features), of

    codes: (panels, in_features, 32) int8
    scales: (panels, groups, 32) float32; in_features is a multiple of groups

    `out` is memory for it: (panels * 32 * in_features,) float32.
    """
    weight = _rows(codes, out)
    weight.copy_(codes.transpose(1, 2))
    return _scaled(weight, scales, out_features)


def dequantize_nf4(
    codes: Tensor, scales: Tensor, out_features: int, out: Tensor | None = None
) -> Tensor:
    """The same for

    codes: (panels, in_features, 16) uint8: output i of a panel in the low half of byte i, output
        i + 16 in the high half
    """
    weight = _rows(codes, out)
    # A byte's two values in one look-up: (256, 2)
    single = torch.tensor(NF4_VALUES, device=codes.device)
    pairs = torch.stack((single.repeat(16), single.repeat_interleave(16)), dim=1)
    values = pairs.index_select(0, codes.reshape(-1).int())
    values = values.view(*codes.shape, 2).permute(0, 3, 2, 1)  # (panels, 2, 16, in_features)
    weight.view(values.shape).copy_(values)
    return _scaled(weight, scales, out_features)


def _rows(codes: Tensor, out: Tensor | None) -> Tensor:
    """Memory for a weight by panels of whole rows: (panels, 32, in_features) float32."""
    num_panels, in_features, _ = codes.shape
    shape = (num_panels, PANEL, in_features)
    if out is None:
        return torch.empty(shape, device=codes.device)
    return out.view(shape)


def _scaled(weight: Tensor, scales: Tensor, out_features: int) -> Tensor:
    """weight: (panels, 32, in_features), scaled in place -> (out_features, in_features)."""
    num_panels, groups, _ = scales.shape
    in_features = weight.shape[-1]
    by_group = weight.view(num_panels, PANEL, groups, in_features // groups)
    by_group.mul_(scales.transpose(1, 2).unsqueeze(-1))
    return weight.view(-1, in_features)[:out_features]
