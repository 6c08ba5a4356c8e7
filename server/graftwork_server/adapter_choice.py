"""Which adapter answers a request: the base, one version, or several with weights, held for it."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graftwork.v1 import generation_service_pb2 as pb
from graftwork_adapters.composition import Component, composition_digest
from graftwork_adapters.errors import CannotCompose
from graftwork_adapters.folder import PROMPT_ONLY
from graftwork_adapters.records import VersionRecord
from graftwork_adapters.registry import Registry

from graftwork_server.calls import WeightedSelector
from graftwork_server.compositions import Compositions


@dataclass(frozen=True, slots=True)
class ServingAdapter:
    """The base where there are no components."""

    components: tuple[tuple[VersionRecord, float], ...]  # with their weights
    digest: str  # of the version or the composition, "" for the base
    # Of the weights, "" for the base's own, as where there is but a prompt; keys slots
    # and prefix cache.
    weights_digest: str
    is_composed: bool  # more than a version as it is

    @property
    def name(self) -> str:
        """What metrics count it under: an adapter's name, "" for the base, or several names joined
        by "+", which no adapter is called."""
        return "+".join(version.adapter for version, _ in self.components)

    @property
    def num_virtual_tokens(self) -> int:
        return sum(version.num_virtual_tokens for version, _ in self.components)

    @property
    def classifier(self) -> VersionRecord | None:
        """The classifier or reward model among the components; None where they generate text."""
        return next((version for version, _ in self.components if version.labels), None)

    def served_by(self, base_digest: str) -> pb.ServedBy:
        served_by = pb.ServedBy(base_digest=base_digest, digest=self.digest)
        if len(self.components) == 1:
            ((version, _),) = self.components
            served_by.adapter, served_by.version = version.adapter, version.version
        if self.is_composed:
            for version, weight in self.components:
                served_by.components.add(
                    adapter=version.adapter,
                    version=version.version,
                    digest=version.digest,
                    weight=weight,
                )
        return served_by


BASE = ServingAdapter((), "", "", is_composed=False)


class AdapterChooser:
    """Lives on the event loop."""

    def __init__(self, registry: Registry, compositions: Compositions) -> None:
        self._registry = registry
        self._compositions = compositions

    @contextlib.contextmanager
    def holding(
        self, wanted: Sequence[WeightedSelector], episode_id: str = ""
    ) -> Iterator[ServingAdapter]:
        """What answers, all of it pinned while inside. Names go to their live version or through
        their traffic split, which `episode_id` keeps sticky.

        Raises UnknownAdapter, NoLiveVersion, CannotCompose.
        """
        with contextlib.ExitStack() as held:
            components: list[tuple[VersionRecord, float]] = []
            for selector, weight in wanted:
                draw = random.random()  # noqa: S311 - splits traffic
                lease = self._registry.resolve(selector, sticky_key=episode_id, draw=draw)
                components.append((held.enter_context(lease).version, weight))
            yield self._serving(tuple(components), held)

    def _serving(
        self, components: tuple[tuple[VersionRecord, float], ...], held: contextlib.ExitStack
    ) -> ServingAdapter:
        if not components:
            return BASE
        parts = tuple(_component(version, weight) for version, weight in components)
        weights_digest = self._weights_digest(parts, held)
        if len(parts) == 1 and parts[0].weight == 1:
            return ServingAdapter(components, parts[0].digest, weights_digest, is_composed=False)
        for version, _ in components:
            if version.digest == weights_digest:
                continue
            part = "virtual tokens" if version.num_virtual_tokens else "classifier"
            if version.num_virtual_tokens or version.labels:
                raise CannotCompose(
                    version.selector, version.method, f"its {part} cannot be scaled or added up"
                )
        return ServingAdapter(
            components, composition_digest(parts), weights_digest, is_composed=True
        )

    def _weights_digest(self, parts: tuple[Component, ...], held: contextlib.ExitStack) -> str:
        weighted = tuple(part for part in parts if part.method != PROMPT_ONLY)
        if not weighted:
            return ""
        if len(weighted) == 1 and weighted[0].weight == 1:
            return weighted[0].digest
        return held.enter_context(self._compositions.holding(weighted))


def _component(version: VersionRecord, weight: float) -> Component:
    return Component(version.selector, version.method, version.digest, weight)
