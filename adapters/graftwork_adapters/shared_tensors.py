"""Tensors that many adapters have in common, such as the random projections of a seed: held once in
memory for as long as any adapter uses them."""

import hashlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SharedTensors:
    """Two tensors under the digest of their contents; equality is identity."""

    digest: str
    a: Tensor
    b: Tensor
    _derived: dict[str, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    def derived(
        self, key: str, make: Callable[["SharedTensors"], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What `make` computes from them, under a name of its own: made once, and held as long."""
        with _derivation_lock:
            if key not in self._derived:
                self._derived[key] = make(self)
            return self._derived[key]

    def to(self, device: torch.device) -> "SharedTensors":
        """The one copy on `device`."""
        if self.a.device == device:
            return self
        return _hold(self.digest, device, self.a, self.b)


_held: "weakref.WeakValueDictionary[tuple[str, torch.device], SharedTensors]" = (
    weakref.WeakValueDictionary()
)
_lock = threading.Lock()
_derivation_lock = threading.Lock()


def share(a: Tensor, b: Tensor) -> SharedTensors:
    """The one pair of float32 tensors on the CPU with these contents."""
    a, b = a.float().contiguous(), b.float().contiguous()
    digest = hashlib.sha256()
    for tensor in (a, b):
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return _hold(digest.hexdigest(), torch.device("cpu"), a, b)


def _hold(digest: str, device: torch.device, a: Tensor, b: Tensor) -> SharedTensors:
    with _lock:
        held = _held.get((digest, device))
        if held is None:
            # Clones: the caller's tensors may be parts of a larger buffer.
            held = SharedTensors(digest, a.to(device, copy=True), b.to(device, copy=True))
            _held[digest, device] = held
        return held
