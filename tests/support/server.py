"""A whole server in the test's process, on ports of its own, with a client to it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork import AsyncClient
from graftwork_server.base_model import BaseModel
from graftwork_server.config import load_settings
from graftwork_server.default_model import default_model_path
from graftwork_server.serve import RunningServer, load_base, running_server
from graftwork_server.settings import Settings


@dataclass(frozen=True, slots=True)
class ServerUnderTest:
    server: RunningServer
    client: AsyncClient
    base: BaseModel

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def num_free_blocks(self) -> int:
        return self.server.scheduler.blocks.num_available

    @contextlib.contextmanager
    def engine_held(self) -> Iterator[None]:
        """The engine takes no step while inside: what comes meanwhile is planned together."""
        gate = threading.Event()
        self.server.dispatcher._engine._commands.post(lambda: gate.wait(60))
        try:
            yield
        finally:
            gate.set()

    async def planned_together(self, *calls: Awaitable[Any]) -> list[Any]:
        """The answers of calls, of one sequence each, that all begin in the same step."""
        with self.engine_held():
            answers = asyncio.gather(*calls)
            await until(lambda: self.server.dispatcher.num_in_flight == len(calls))
        return await answers

    async def check_idle(self) -> None:
        """Waits until nothing runs; then nothing may be held any more."""
        scheduler, engine = self.server.scheduler, self.server.dispatcher._engine
        await until(
            lambda: (
                not self.server.dispatcher.num_in_flight
                and not engine._sequences
                and not self.server.registry.leases()
            )
        )
        scheduler.check_integrity()
        assert scheduler.num_running == scheduler.num_waiting == 0
        assert scheduler.blocks.num_available == scheduler.blocks.num_blocks
        assert not engine._runner._sampler._seen


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Waits for a condition; fails where it does not come."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        await asyncio.sleep(0.005)


def server_settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    """Settings with ports chosen by the system and `folder` as data folder and adapter root."""
    tree: dict[str, Any] = {
        "data_dir": str(folder / "data"),
        "model": {"path": str(default_model_path())},
        "grpc": {"port": 0},
        "metrics": {"port": 0},
        "adapters": {"roots": [str(folder)]},
        "engine": {"kv_cache_bytes": "256MiB"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return load_settings(None, tree, environment={})


def tiny_settings(folder: Path, model: Path, /, **sections: dict[str, Any]) -> Settings:
    """The same for a tiny model, not quantized, and on one thread: its steps are so short that
    a second one that the system lets wait for a busy core would take most of the time."""
    sections = {
        **sections,
        "model": {"path": str(model), "quantization": "none", **sections.get("model", {})},
        "engine": {"kv_cache_bytes": "8MiB", "threads": 1, **sections.get("engine", {})},
    }
    return server_settings(folder, **sections)


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, base: BaseModel | None = None
) -> AsyncIterator[ServerUnderTest]:
    base = base or load_base(settings)
    async with (
        running_server(settings, base) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        yield ServerUnderTest(server, client, base)
