"""A registry over a store in a folder, without torch."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.records import VersionDraft, VersionRecord
from graftwork_adapters.registry import Registry
from graftwork_adapters.store import ImmutableStore, Staging


class InlineExecutor(Executor):
    """Runs what is submitted before it returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class OpenRegistry:
    """Store and registry in one folder, opened together; `close` it, or drop it as a crash does."""

    def __init__(self, folder: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.store = ImmutableStore(folder / "store", AdapterLimits())
        try:
            self.registry = Registry(
                folder / "registry.sqlite", self.store, InlineExecutor(), clock_ns=clock_ns
            )
        except BaseException:
            self.store.close()
            raise

    def close(self) -> None:
        self.registry.close()
        self.store.close()

    def register(
        self,
        name: str,
        content: bytes,
        *,
        make_live: bool | None = None,
        request: MutationRequest | None = None,
    ) -> VersionRecord:
        with staged(self.store, content) as staging:
            return self.registry.register(
                name,
                draft_of(staging),
                publish=staging.commit,
                make_live=make_live,
                request=request,
            )


def staged(store: ImmutableStore, content: bytes, *, ephemeral: bool = False) -> Staging:
    staging = store.stage(ephemeral=ephemeral)
    staging.write(CONFIG_FILE, b"{}")
    staging.write(WEIGHTS_FILE, content)
    return staging


def draft_of(staging: Staging) -> VersionDraft:
    return VersionDraft(
        digest=staging.finish(),
        method="LORA",
        rank=4,
        num_virtual_tokens=0,
        num_parameters=10,
        size_bytes=staging.size_bytes,
        base_digest="sha256:" + "b" * 64,
        base_verified=False,
        source="upload",
    )
