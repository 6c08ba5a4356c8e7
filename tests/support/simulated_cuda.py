"""A CUDA device for machines without one: tensors that say they are on it, computed on the CPU.

What torch would refuse on a real device is refused here: tensors of two devices in one operation,
the CPU's kernels, and `.numpy()`. Numbers are the CPU's, so a simulated run must equal a run on the
CPU by the plain references. Not simulated: asynchrony, streams, graphs, and what kernels of CUDA
compute.

    with simulated_cuda() as device:
        torch.zeros(3, device="cuda") + torch.zeros(3)  # raises DeviceMixError
        device.num_reads  # how often the host has waited for a value
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

_CUDA, _CPU = torch.device("cuda", 0), torch.device("cpu")
# What makes the host wait for the device: values, or shapes that depend on values.
_READS = {"tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "__index__", "cpu"}
# Functions of devices, not of tensors.
_PARSERS = (torch.device, torch._C._nn._parse_to)
# Copies between devices are what these are for.
_CROSSING = {"copy_", "to", "cuda"}


class DeviceMixError(RuntimeError):
    """An operation on tensors of two devices, or one that the device cannot do."""


class SimulatedTensor(Tensor):
    """Says that it is on the device; `inner` is the memory."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "SimulatedTensor":
        strides = inner.stride() if inner.layout == torch.strided else None
        with torch._C.DisableTorchFunction():
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=strides, dtype=inner.dtype, device=_CUDA
            )
            made.inner = inner
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None) -> Any:
        return _run(func, args, kwargs or {}, None)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        raise DeviceMixError(f"{func} was called past torch's Python functions")


class SimulatedCuda(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        return _run(func, args, kwargs or {}, self)


@contextmanager
def simulated_cuda() -> Iterator[SimulatedCuda]:
    mode = SimulatedCuda()
    # A module that moves gets new parameters: memory of the CPU cannot become the device's.
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _run(func: Any, args: Any, kwargs: Any, mode: SimulatedCuda | None) -> Any:
    name = getattr(func, "__name__", "")
    path = resolve_name(func) or name
    leaves = tree_leaves((args, kwargs))
    inputs = [leaf for leaf in leaves if isinstance(leaf, SimulatedTensor)]
    asks = any(_is_cuda(leaf) for leaf in leaves)
    if func in _PARSERS or not (inputs or asks):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if name == "_has_compatible_shallow_copy_type":
        return False
    if name == "__get__" and "device" in path:
        return _CUDA
    if name == "__get__" and "is_cuda" in path:
        return True
    _check(func, name, path, leaves, inputs)
    if mode is not None and name in _READS:
        mode.num_reads += 1
    if name == "__set__" and isinstance(args[0], SimulatedTensor):  # tensor.data = other
        args[0].inner = args[1].inner
        return None
    result = _compute(func, args, kwargs)
    if name == "cpu" or (name == "to" and inputs and _target(leaves) == _CPU):
        return result.clone()
    if inputs and any(result is tensor.inner for tensor in inputs):  # in place
        return next(tensor for tensor in inputs if tensor.inner is result)
    if name == "copy_" and not isinstance(args[0], SimulatedTensor):
        return result
    if asks and not inputs and name in {"to", "cuda"}:
        result = result.clone()  # a transfer shares no memory with its source
    return tree_map(_wrap, result)


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    def plain(leaf: Any) -> Any:
        if isinstance(leaf, SimulatedTensor):
            return leaf.inner
        return _CPU if _is_cuda(leaf) else leaf

    args, kwargs = tree_map(plain, (args, kwargs))
    with torch._C.DisableTorchFunction():
        return func(*args, **kwargs)


def _check(func: Any, name: str, path: str, leaves: list[Any], inputs: list[Any]) -> None:
    if "graftwork" in str(func):
        raise DeviceMixError(f"{func} is a kernel for the CPU")
    if name == "numpy":
        raise DeviceMixError("numpy() of a tensor on the device; take cpu() first")
    if name in _CROSSING or name == "__get__":
        return
    others = [leaf for leaf in leaves if type(leaf) in {Tensor, torch.nn.Parameter}]
    # As in torch, a number in a tensor of the CPU may join any operation.
    if inputs and any(other.dim() for other in others):
        raise DeviceMixError(f"{path}: tensors on cuda and on cpu")


def _wrap(leaf: Any) -> Any:
    return SimulatedTensor(leaf) if isinstance(leaf, Tensor) else leaf


def _is_cuda(leaf: Any) -> bool:
    if isinstance(leaf, torch.device):
        return leaf.type == "cuda"
    return isinstance(leaf, str) and leaf.startswith("cuda")


def _target(leaves: list[Any]) -> torch.device | None:
    found = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    found += [_CPU for leaf in leaves if isinstance(leaf, str) and leaf == "cpu"]
    return found[0] if found else None
