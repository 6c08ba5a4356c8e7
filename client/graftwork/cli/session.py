"""What the global options say, and the client made from it when a command first needs one."""

from dataclasses import dataclass, field
from pathlib import Path

import click

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
            self._client = Client(
                self.target,
                tls=self.tls,
                ca=self.ca,
                client_cert=self.cert,
                client_key=self.key,
                timeout=self.timeout_s,
            )
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


pass_session = click.make_pass_decorator(Session)
