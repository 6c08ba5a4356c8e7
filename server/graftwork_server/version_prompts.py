"""The prompts that versions carry, read from the store when they are first wanted."""

from functools import lru_cache

from graftwork_adapters.artifact import read_prompt
from graftwork_adapters.errors import CannotCompose
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.prompt_file import VersionPrompt
from graftwork_adapters.store import ImmutableStore

from graftwork_server.adapter_choice import ServingAdapter

_MAX_KEPT = 64  # of at most `max_config_bytes` each


class VersionPrompts:
    """Thread-safe; may wait for the disk."""

    def __init__(self, store: ImmutableStore, limits: AdapterLimits) -> None:
        @lru_cache(maxsize=_MAX_KEPT)
        def read(digest: str) -> VersionPrompt | None:
            return read_prompt(store.path(digest), limits)

        self._read = read

    def of(self, adapter: ServingAdapter) -> VersionPrompt | None:
        """The prompt around a request's own; the caller holds the adapter.

        Raises CannotCompose where two components carry one.
        """
        found: VersionPrompt | None = None
        for version, _ in adapter.components:
            prompt = self._read(version.digest)
            if prompt is None:
                continue
            if found is not None:
                raise CannotCompose(
                    version.selector, version.method, "another of them carries a prompt too"
                )
            found = prompt
        return found
