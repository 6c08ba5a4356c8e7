"""A whole server in the test's process, on ports of its own, with a client to it."""

import contextlib
from collections.abc import AsyncIterator
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
