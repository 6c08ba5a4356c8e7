"""What the global options say, and the client made from it when a command first needs one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from graftwork.aio import AsyncClient
from graftwork.client import Client


@dataclass
class Session:
    """The connection of one run of the command."""

    target: str
    tls: bool
    ca: Path | None
    cert: Path | None
    key: Path | None
    timeout_s: float
    _client: Client | None = field(default=None, init=False)

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.target, **self._connection)
        return self._client

    def async_client(self) -> AsyncClient:
        """Another one, for the event loop that calls this; its caller closes it."""
        return AsyncClient(self.target, **self._connection)

    @property
    def _connection(self) -> dict[str, Any]:
        return {
            "tls": self.tls,
            "ca": self.ca,
            "client_cert": self.cert,
            "client_key": self.key,
            "timeout": self.timeout_s,
        }

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


pass_session = click.make_pass_decorator(Session)
