"""Brings a version, or a composition of several, from the store into kernel layout."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.composition import compose
from graftwork_adapters.errors import DamagedVersion
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import lower
from graftwork_adapters.pacing import yielding_while
from graftwork_adapters.store import ImmutableStore

from graftwork_server.base_model import BaseModel
from graftwork_server.compositions import Compositions
from graftwork_server.packed_adapter import PackedAdapter, pack_adapter


@dataclass(frozen=True, slots=True)
class AdapterLoader:
    """`load` takes up to seconds and may be called from any thread."""

    store: ImmutableStore
    limits: AdapterLimits
    base: BaseModel
    compositions: Compositions
    factor_dtype: torch.dtype | None  # what low-rank factors are rounded to; None: the file's
    is_engine_busy: Callable[[], bool]  # asked from the calling thread

    def load(self, digest: str) -> PackedAdapter:
        """Raises AdapterError."""
        with yielding_while(self.is_engine_busy):
            components = self.compositions.find(digest)
            if components is None:
                lowered = self._lower(digest)
            else:
                lowered = compose([(part, self._lower(part.digest)) for part in components])
            return pack_adapter(lowered, self.base, self.factor_dtype)

    def _lower(self, digest: str) -> LoweredAdapter:
        artifact = read_artifact(self.store.path(digest), self.limits)
        if artifact.digest != digest:
            raise DamagedVersion(digest)
        return lower(artifact, self.base, max_rank=self.limits.max_rank)
